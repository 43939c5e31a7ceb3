"""Inputs of I-JEPA and of masked autoencoders: views and masks of several training images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from jepa.config import InputError
from jepa.config.hints import command
from jepa.evaluation_run import EvaluationRun
from jepa.objectives.ijepa import IJepaInputs
from jepa.objectives.mae import MAEInputs
from jepa.report.style import WIDTH, new_figure, show_image

__all__ = ["masks"]

NUM_IMAGES = 4
MASKED_GRAY = 0.88


def masks(run: EvaluationRun) -> Figure:
    """Draw the view, context and targets (masked autoencoder: the visible patches) of several training images.

    Raises `InputError` if the objective has no masks.
    """
    inputs = run.sample_inputs(NUM_IMAGES)
    if isinstance(inputs, MAEInputs):
        return visible_patches(inputs, run.grid)
    if not isinstance(inputs, IJepaInputs):
        raise InputError(
            f"the objective {run.config.objective.kind} has no masks to draw; "
            f"run '{command('plot', run.folder.path)}' to draw all applicable figures"
        )
    views, block_masks = inputs.images.cpu(), inputs.masks
    num_targets = block_masks.targets.shape[1]
    columns = 2 + num_targets
    figure = new_figure(0.25 + len(views) * WIDTH / columns * 1.02)
    axes_grid = figure.subplots(len(views), columns, squeeze=False)
    for i, view in enumerate(views):
        context = token_map(block_masks.context[i], block_masks.context_valid[i], run.grid)
        targets = [
            token_map(indices, valid, run.grid)
            for indices, valid in zip(block_masks.targets[i], block_masks.targets_valid[i], strict=True)
        ]
        panels = [view, *(hide_tokens(view, ~tokens) for tokens in (context, *targets))]
        for axes, panel in zip(axes_grid[i], panels, strict=True):
            show_image(axes, panel)
    titles = ["view", "context", *(f"target {i + 1}" for i in range(num_targets))]
    for axes, title in zip(axes_grid[0], titles, strict=True):
        axes.set_title(title)
    return figure


def visible_patches(inputs: MAEInputs, grid: tuple[int, int]) -> Figure:
    """Draw views, and their visible patches below them."""
    views = inputs.images.cpu()
    figure = new_figure(0.25 + 2 * WIDTH / len(views) * 1.02)
    columns = figure.subplots(2, len(views), squeeze=False).T
    for (above, below), view, indices in zip(columns, views, inputs.visible, strict=True):
        visible = token_map(indices, torch.ones_like(indices, dtype=torch.bool), grid)
        show_image(above, view)
        show_image(below, hide_tokens(view, ~visible))
        above.set_title("view")
        below.set_title("visible")
    return figure


def token_map(indices: Tensor, valid: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return a boolean map of the grid that is True at the valid token indices."""
    tokens = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
    tokens[indices[valid].cpu()] = True
    return tokens.view(grid)


def hide_tokens(view: Tensor, tokens: Tensor) -> Tensor:
    """Paint tokens of a view (C, H, W) light gray."""
    hidden = F.interpolate(tokens[None, None].float(), view.shape[-2:])[0].bool()
    return torch.where(hidden, torch.full_like(view, MASKED_GRAY), view)
