"""What the run logged: losses, the online evaluation, the signs of collapse."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from jepa.config import InputError
from jepa.figures.style import CLASSES, COLORS, GREY, INK, across, canvas
from jepa.subject import Subject

__all__ = ["curves"]

TITLES = {"knn": "online kNN, %", "spread": "spread of the features", "rankme": "RankMe"}
NOT_LOSSES = {"step", "lr", "images_per_s", "data_wait", "spread", "padding", "knn", "rankme", "loss"}


def curves(subject: Subject) -> Figure:
    """Draw loss and terms, online kNN (spread, without labels) and RankMe against the step."""
    records = subject.run.metrics()
    losses = [record for record in records if "loss" in record]
    online = [record for record in records if "rankme" in record]
    if not losses:
        raise InputError(
            f"{subject.run.path} logged no loss: it ended before its first {subject.config.log_every} steps"
        )
    quality = "knn" if any("knn" in record for record in online) else "spread"
    panels = {quality: online, "rankme": online} if online else {"spread": losses}
    figure = canvas(2.9)
    left, *others = figure.subplots(1, 1 + len(panels), width_ratios=(1.3, *(1 for _ in panels)))
    draw_losses(left, losses)
    for axes, (key, shown) in zip(others, panels.items(), strict=True):
        series(axes, shown, key)
        axes.set(title=TITLES[key], xlabel="step")
        axes.margins(y=0.2)
    return figure


def draw_losses(axes: Axes, records: list[dict[str, Any]]) -> None:
    """Draw the loss and each of its terms, on a logarithmic axis, smoothed over a fiftieth of the run."""
    width = max(1, len(records) // 50)
    steps = [record["step"] for record in records]
    names = ["loss", *sorted({name for record in records for name in record} - NOT_LOSSES)]
    for name, color in zip(names, (INK, *CLASSES), strict=False):
        values = [record.get(name, math.nan) for record in records]
        smooth = [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i - width + 1) : i + 1])]
        axes.plot(
            steps,
            smooth,
            color=color,
            linewidth=2 if name == "loss" else 1.2,
            label=name,
            marker="o" if len(steps) < 10 else None,
        )
    axes.set(yscale="log", xlabel="step", title="loss, and its terms before weighting")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.22), columnspacing=1)


def series(axes: Axes, records: list[dict[str, Any]], key: str) -> None:
    """Draw one value against the step; that of the untrained encoder as a line across."""
    points = [(record["step"], record[key]) for record in records if key in record]
    axes.plot(*zip(*points, strict=True), color=COLORS["trained"], marker="o" if len(points) < 30 else None)
    if points[0][0] == 0:
        across(axes, points[0][1], "untrained", GREY)
