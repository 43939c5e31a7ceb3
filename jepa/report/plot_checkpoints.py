"""Measures without labels against the linear probe, over the kept checkpoints of a run."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jepa.config import InputError
from jepa.evaluation.checkpoint_scores import MEASURES, choices, measure_values
from jepa.evaluation_run import EvaluationRun
from jepa.report.style import BLUE, GRAY, HIGHLIGHT, new_figure
from jepa.report.text import MEASURE_TITLES

__all__ = ["checkpoints"]

COLORS = "viridis"  # of the steps


def checkpoints(run: EvaluationRun) -> Figure:
    """Draw accuracies by step, and the linear probe of each checkpoint against each measure without labels.

    Without labels, the measures are drawn by step. Raises `InputError` if the run has no kept checkpoints.
    """
    scores = run.checkpoint_scores
    if not scores:
        raise InputError("the run has no kept checkpoints; train it with --keep-every N")
    measures = [name for name in MEASURES if measure_values(scores, name)]
    found, steps = choices(scores), np.array([part["step"] for part in scores])
    has_labels = "linear" in found
    panels = ["accuracy"] * has_labels + measures
    columns = 3 if has_labels else 2
    figure = new_figure(2.4 * -(-len(panels) // columns))
    grid = figure.subplots(-(-len(panels) // columns), columns, squeeze=False)
    for axes, name in zip(grid.flat, panels, strict=False):
        if name == "accuracy":
            draw_accuracies(axes, scores, found["linear"]["step"])
        else:
            draw_measure(axes, name, scores, found[name])
    if unread := len(run.unread_checkpoints):
        figure.suptitle(f"without {unread} kept checkpoint{'s' * (unread > 1)} that cannot be read", color=HIGHLIGHT)
    spare = grid.flat[len(panels) :]
    for axes in spare:
        axes.set_axis_off()
    if has_labels:
        colors = ScalarMappable(Normalize(steps.min(), steps.max()), COLORS)
        if len(spare):
            place = spare[0].inset_axes((0.05, 0.6, 0.9, 0.08))
            figure.colorbar(colors, cax=place, orientation="horizontal", label="step")
        else:
            figure.colorbar(colors, ax=grid[:, -1].tolist(), label="step")
    return figure


def draw_accuracies(axes: Axes, scores: list[dict[str, float]], best: int) -> None:
    """Draw kNN and linear accuracy by step; a ring marks the best linear probe."""
    steps = [part["step"] for part in scores]
    linear, errors = (np.array([part[key] for part in scores]) for key in ("linear", "linear_error"))
    axes.plot(steps, linear, color=BLUE, marker="o", label="linear")
    axes.fill_between(steps, linear - errors, linear + errors, color=BLUE, alpha=0.2, linewidth=0)
    if all("knn" in part for part in scores):
        axes.plot(steps, [part["knn"] for part in scores], color=GRAY, marker="s", linestyle="--", label="kNN")
    ring(axes, best, float(linear[steps.index(best)]))
    axes.set(title=f"accuracy, %: best at step {best:,}", xlabel="step")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.legend()


def draw_measure(axes: Axes, name: str, scores: list[dict[str, float]], chosen: dict[str, float]) -> None:
    """Draw the linear probe against a measure, or the measure by step without labels; a ring marks what it chooses."""
    values = measure_values(scores, name)
    assert values is not None
    steps = [part["step"] for part in scores]
    index, title = steps.index(chosen["step"]), MEASURE_TITLES[name]
    if "linear" in chosen:
        linear = [part["linear"] for part in scores]
        axes.plot(values, linear, color=GRAY, linewidth=0.6, zorder=1)
        axes.scatter(values, linear, c=steps, cmap=COLORS, s=22, zorder=2)
        ring(axes, values[index], linear[index])
        axes.set(ylabel="linear, %")
        correlation = f", ρ = {chosen['correlation']:.2f}" if "correlation" in chosen else ""
        axes.set(title=f"{title}{correlation}", xlabel=f"chooses step {chosen['step']:,}: {linear[index]:.1f}%")
    else:
        axes.plot(steps, values, color=BLUE, marker="o")
        ring(axes, steps[index], values[index])
        axes.set(title=f"{title}: chooses step {chosen['step']:,}", xlabel="step")
    if name == "alpha_req":
        (axes.axvline if "linear" in chosen else axes.axhline)(1, color=GRAY, linestyle=":", linewidth=1, zorder=0)


def ring(axes: Axes, x: float, y: float) -> None:
    """Mark a point by a ring."""
    axes.plot([x], [y], "o", markersize=10, fillstyle="none", color=HIGHLIGHT, markeredgewidth=1.5, zorder=3)
