"""What a Saccade JEPA is asked, two fixations of an image and the movement between, and how well it foresees."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jepa.config import InputError
from jepa.data import Batch
from jepa.figures.style import COLORS, GREY, MARK, canvas, image
from jepa.objectives import Saccade, VICReg
from jepa.rng import Rng
from jepa.saccades import Pose
from jepa.subject import Subject

__all__ = ["saccades"]

PAIRS = 5
ERRORS = {
    "prediction": ("told the movement", COLORS["trained"]),
    "shuffled": ("told a wrong movement", MARK),
    "no change": ("no change foreseen", GREY),
}


def saccades(subject: Subject) -> Figure:
    """Draw pairs of fixations with the movement between them, and the error by the length of the jump."""
    objective = subject.objective
    if not isinstance(objective, (Saccade, VICReg)):
        raise InputError(
            f"the objective {subject.config.objective.kind} moves no eye; "
            f"'jepa plot {subject.run.path} masks' shows what it is asked"
        )
    found = subject.foresight
    errors = found is not None and len(found["lengths"]) > 1
    figure = canvas(6.2 if errors else 3.6)
    ratios = (3.4, 2.6) if errors else (1,)
    parts = figure.subfigures(len(ratios), 1, height_ratios=ratios, squeeze=False)[:, 0]
    pixels = subject.pixels(PAIRS, subject.train)
    device = next(objective.parameters()).device
    rows = torch.arange(len(pixels), device=device)
    context, target, saccade = objective.sample(Batch(pixels.to(device), None, rows), Rng(subject.config.seed, 0, rows))
    grid = parts[0].subplots(2, len(pixels), squeeze=False)
    for column in range(len(pixels)):
        image(grid[0, column], context[column].cpu())
        image(grid[1, column], target[column].cpu())
        grid[1, column].set_title(tell(saccade, column), fontsize=7.5)
    grid[0, 0].set_title("before")
    if errors:
        assert found is not None
        draw_errors(parts[1].subplots(), found)
    return figure


def tell(saccade: Pose, row: int) -> str:
    """Say a movement in numbers."""
    x, y = (round(part, 2) + 0.0 for part in saccade.shift[row].tolist())  # + 0.0: no -0.00
    turn = f"{torch.rad2deg(saccade.angle[row]).item():+.0f}°"
    return f"after: shift {x:+.2f} {y:+.2f},\nturn {turn}, zoom {saccade.zoom[row].item():.2f}"


def draw_errors(axes: Axes, found: dict[str, Any]) -> None:
    """Draw the squared error of three guesses against the length of the jump."""
    for name, (title, color) in ERRORS.items():
        axes.plot(found["lengths"], found["errors"][name], color=color, marker="o", label=title)
    right, wrong, chance = found["same image"]["top1"], found["shuffled"]["top1"], 100 / found["fixations"]
    told = f"told the movement {right:.0f} %, a wrong one {wrong:.0f} %, chance {chance:.0f} %"
    axes.set_title(f"found among {found['fixations']} fixations of an image: {told}")
    axes.set(xlabel="length of the jump, sides of a view", ylabel="squared error / variance", ylim=(0, None))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
