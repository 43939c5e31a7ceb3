"""Inputs of Saccade JEPA and VICReg (pairs of fixations), and the prediction error of Saccade JEPA."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jepa.config import InputError
from jepa.config.hints import command
from jepa.evaluation_run import EvaluationRun
from jepa.objectives.saccade import SaccadeInputs
from jepa.report.style import ENCODER_COLORS, GRAY, HIGHLIGHT, new_figure, show_image
from jepa.transforms.saccade import Pose

__all__ = ["saccades"]

NUM_PAIRS = 5
ERRORS = {
    "prediction": ("correct saccade", ENCODER_COLORS["trained"]),
    "shuffled": ("wrong saccade", HIGHLIGHT),
    "no change": ("no change predicted", GRAY),
}


def saccades(run: EvaluationRun) -> Figure:
    """Draw pairs of fixations and, if there is a predictor, its error against the length of the saccade.

    Raises `InputError` if the objective does not sample fixations.
    """
    inputs = run.sample_inputs(NUM_PAIRS)
    if not isinstance(inputs, SaccadeInputs):
        raise InputError(
            f"the objective {run.config.objective.kind} has no saccades to draw; "
            f"run '{command('plot', run.folder.path)}' to draw all applicable figures"
        )
    retrieval = run.saccade_retrieval
    has_errors = retrieval is not None and len(retrieval["lengths"]) > 1
    figure = new_figure(6.2 if has_errors else 3.6)
    ratios = (3.4, 2.6) if has_errors else (1,)
    subfigures = figure.subfigures(len(ratios), 1, height_ratios=ratios, squeeze=False)[:, 0]
    count = len(inputs.context)
    axes_grid = subfigures[0].subplots(2, count, squeeze=False)
    for i in range(count):
        show_image(axes_grid[0, i], inputs.context[i].cpu())
        show_image(axes_grid[1, i], inputs.target[i].cpu())
        axes_grid[0, i].set_title("before")
        axes_grid[1, i].set_title(describe_saccade(inputs.saccade, i), fontsize=7.5)
    if has_errors:
        assert retrieval is not None
        error_axes, rank_axes = subfigures[1].subplots(1, 2, width_ratios=(1.4, 1))
        draw_errors(error_axes, retrieval)
        draw_ranks(rank_axes, retrieval)
    return figure


def describe_saccade(saccade: Pose, index: int) -> str:
    """Return the shift, rotation and zoom of one saccade as text."""
    x, y = (round(component, 2) + 0.0 for component in saccade.shift[index].tolist())  # + 0.0 turns -0.0 into 0.0
    degrees = round(torch.rad2deg(saccade.angle[index]).item()) + 0.0
    return f"after: shift {x:+.2f} {y:+.2f},\nrotation {degrees:+.0f}°, zoom {saccade.zoom[index].item():.2f}"


def draw_errors(axes: Axes, retrieval: dict[str, Any]) -> None:
    """Draw the squared errors against the length of the saccade."""
    for name, (title, color) in ERRORS.items():
        axes.plot(retrieval["lengths"], retrieval["errors"][name], color=color, marker="o", label=title)
    axes.set(xlabel="saccade length, in view sides", title="squared error / variance", ylim=(0, None))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, columnspacing=1, handlelength=1.5)


def draw_ranks(axes: Axes, retrieval: dict[str, Any]) -> None:
    """Draw how often the prediction is closest to the correct view of the same image."""
    count = retrieval["fixations"]
    bars = (
        ("correct saccade", retrieval["same image"]["top1"], ENCODER_COLORS["trained"]),
        ("wrong saccade", retrieval["shuffled"]["top1"], HIGHLIGHT),
        ("chance", 100 / count, GRAY),
    )
    names, scores, colors = zip(*bars, strict=True)
    axes.bar_label(axes.barh(names, scores, color=colors, height=0.6), fmt="%.0f", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.tick_params(left=False)
    axes.set_title(f"top-1 among {count} views, %")
