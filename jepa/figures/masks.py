"""What an I-JEPA is asked: the views, context and targets that its objective draws."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor

from jepa.config import InputError
from jepa.data import Batch
from jepa.figures.style import WIDTH, canvas, image
from jepa.objectives import IJepa
from jepa.rng import Rng
from jepa.subject import Subject

__all__ = ["masks"]

ROWS = 4


def masks(subject: Subject) -> Figure:
    """Draw the view of some training images, the context that the encoder sees, and each target."""
    objective = subject.objective
    if not isinstance(objective, IJepa):
        raise InputError(
            f"the objective {subject.config.objective.kind} masks nothing; "
            f"'jepa plot {subject.run.path} saccades' shows what it is asked"
        )
    pixels = subject.pixels(ROWS, subject.train)
    rng = Rng(subject.config.seed, 0, torch.arange(len(pixels)))
    device = objective.context.mean.device
    views, drawn = objective.sample(Batch(pixels.to(device), None, torch.arange(len(pixels), device=device)), rng)
    views = views.cpu()
    count = drawn.targets.shape[1]
    columns = 2 + count
    figure = canvas(0.25 + len(views) * WIDTH / columns * 1.02)
    grid = figure.subplots(len(views), columns, squeeze=False)
    for row, view in enumerate(views):
        context = shown(drawn.context[row], drawn.context_valid[row], objective.grid)
        targets = [
            shown(*pair, objective.grid) for pair in zip(drawn.targets[row], drawn.targets_valid[row], strict=True)
        ]
        for axes, tokens in zip(grid[row], [None, context, *targets], strict=True):
            image(axes, view if tokens is None else grey_out(view, tokens))
    for axes, title in zip(grid[0], ["view", "context", *(f"target {k + 1}" for k in range(count))], strict=True):
        axes.set_title(title)
    return figure


def shown(index: Tensor, valid: Tensor, grid: tuple[int, int]) -> Tensor:
    """Turn token indices into a boolean map of the grid, leaving out padding."""
    tokens = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
    tokens[index[valid].cpu()] = True
    return tokens.view(grid)


def grey_out(view: Tensor, tokens: Tensor) -> Tensor:
    """Hide all but the tokens of a view (C, H, W) behind light grey."""
    kept = torch.nn.functional.interpolate(tokens[None, None].float(), view.shape[-2:])[0].bool()
    return torch.where(kept, view, torch.full_like(view, 0.88))
