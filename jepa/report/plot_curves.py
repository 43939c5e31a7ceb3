"""Training curves of a run: losses, online kNN, and measures of collapse."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from jepa.config import InputError
from jepa.report.style import CLASS_COLORS, ENCODER_COLORS, INK, new_figure, reference_line
from jepa.runs import Run

__all__ = ["curves"]

TITLES = {"knn": "online kNN, %", "feature_std": "feature std", "rankme": "RankMe"}
NOT_LOSSES = {"step", "lr", "images_per_s", "data_wait", "feature_std", "padding", "knn", "rankme", "loss"}
SMOOTHING = 50  # divisor of the moving average: window = run / 50


def curves(run: Run) -> Figure:
    """Draw the losses, the online kNN accuracy (without labels, the feature standard deviation) and RankMe by step.

    Only the metrics are read: the run needs neither a checkpoint nor its images.

    Raises `InputError` if the run has no logged losses.
    """
    records = run.metrics()
    losses = [record for record in records if "loss" in record]
    online = [record for record in records if "rankme" in record]
    if not losses:
        raise InputError(
            f"{run.path} has no logged losses because it ended before its first record of them; continue training "
            "with --resume"
        )
    quality = "knn" if any("knn" in record for record in online) else "feature_std"
    panels = {quality: online, "rankme": online} if online else {"feature_std": losses}
    panels = {key: part for key, part in panels.items() if any(key in record for record in part)}
    figure = new_figure(2.9)
    ratios = (1.3, *(1 for _ in panels))
    loss_axes, *other_axes = figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
    draw_losses(loss_axes, losses)
    for axes, (key, panel_records) in zip(other_axes, panels.items(), strict=True):
        draw_series(axes, panel_records, key)
    return figure


def draw_losses(axes: Axes, records: list[dict[str, Any]]) -> None:
    """Draw the loss and each of its terms on a logarithmic scale, as moving averages."""
    window = max(1, len(records) // SMOOTHING)
    steps = [record["step"] for record in records]
    names = ["loss", *sorted({name for record in records for name in record} - NOT_LOSSES)]
    for name, color in zip(names, (INK, *CLASS_COLORS), strict=False):
        axes.plot(
            steps,
            moving_average([record.get(name, math.nan) for record in records], window),
            color=color,
            linewidth=2 if name == "loss" else 1.2,
            label=name,
            marker="o" if len(steps) < 10 else None,
        )
    axes.set(yscale="log", xlabel="step", title="loss and its unweighted terms")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.22), columnspacing=1)


def moving_average(values: list[float], window: int) -> list[float]:
    """Return the trailing moving average of values."""
    windows = [values[max(0, end - window) : end] for end in range(1, len(values) + 1)]
    return [sum(part) / len(part) for part in windows]


def draw_series(axes: Axes, records: list[dict[str, Any]], key: str) -> None:
    """Draw one metric by step, with its value before training as a horizontal line."""
    points = [(record["step"], record[key]) for record in records if key in record]
    axes.plot(*zip(*points, strict=True), color=ENCODER_COLORS["trained"], marker="o" if len(points) < 30 else None)
    if points[0][0] == 0:
        reference_line(axes, points[0][1], "untrained")
    axes.set(title=TITLES[key], xlabel="step")
    axes.margins(y=0.2)
