"""Inputs of Saccade JEPA and VICReg (pairs of fixations), errors of predictions, and what fixations tell."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jepa.config import InputError
from jepa.config.hints import command
from jepa.evaluation.averaged_fixations import COUNTS
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
    """Draw pairs of fixations, the errors of the predictor by saccade length, and what the features of fixations tell.

    What cannot be computed is left out. Raises `InputError` if the objective does not sample fixations.
    """
    inputs = run.sample_inputs(NUM_PAIRS)
    if not isinstance(inputs, SaccadeInputs):
        raise InputError(
            f"the objective {run.config.objective.kind} has no saccades to draw; "
            f"run '{command('plot', run.folder.path)}' to draw all applicable figures"
        )
    retrieval = run.saccade_retrieval
    has_errors = retrieval is not None and len(retrieval["lengths"]) > 1
    has_features = bool(run.movement_r2 or run.averaged_fixations)
    ratios = [3.6, *([2.6] * has_errors), *([2.4] * has_features)]
    figure = new_figure(sum(ratios))
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
    if has_features:
        r2_axes, accuracy_axes = subfigures[-1].subplots(1, 2, width_ratios=(1.4, 1))
        draw_r2(r2_axes, run.movement_r2)
        draw_accuracies(accuracy_axes, run.averaged_fixations)
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


def draw_r2(axes: Axes, r2: dict[str, Any]) -> None:
    """Draw R² of each component of the movement: bars of the linear regression, and dots of the MLP."""
    if not r2:
        axes.set_axis_off()
        return
    for i, (encoder, scores) in enumerate(r2.items()):
        at = [position + 0.38 * (i - 0.5) for position in range(len(scores["linear"]))]
        axes.bar(at, scores["linear"].values(), 0.36, color=ENCODER_COLORS[encoder], label=f"{encoder}, linear")
        style: dict[str, Any] = {
            "color": "white",
            "markeredgecolor": ENCODER_COLORS[encoder],
            "linestyle": "",
            "marker": "o",
        }
        axes.plot(at, list(scores["mlp"].values()), **style, label=f"{encoder}, MLP")
    axes.set_xticks(range(len(scores["linear"])), list(scores["linear"]))
    axes.axhline(0, color=GRAY, linewidth=0.8)
    axes.set(title="R² of the movement, from two views", ylim=(None, 1.02))
    axes.tick_params(bottom=False, axis="x")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, columnspacing=1, handlelength=1.5)


def draw_accuracies(axes: Axes, accuracies: dict[str, Any]) -> None:
    """Draw the accuracy of averaged fixations by their number, and that of the whole image as a dotted line."""
    if not accuracies:
        axes.set_axis_off()
        return
    for encoder, scores in accuracies.items():
        values, errors = ([scores[f"{count}{suffix}"] for count in COUNTS] for suffix in ("", "_error"))
        style: dict[str, Any] = {"color": ENCODER_COLORS[encoder], "marker": "o", "capsize": 2, "elinewidth": 0.8}
        axes.errorbar(COUNTS, values, errors, **style, label=encoder)
        axes.axhline(scores["whole image"], color=ENCODER_COLORS[encoder], linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
    axes.set(xlabel="fixations averaged (dotted: whole image)", title="kNN, %")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=2, columnspacing=1, handlelength=1.5)
