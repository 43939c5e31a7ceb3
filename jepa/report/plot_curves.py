"""Training curves of a run: losses, online kNN, and measures of collapse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from jepa.config import InputError
from jepa.config.serialization import read_json
from jepa.report.names import shorten_names
from jepa.report.style import ENCODER_COLORS, INK, literal, new_figure, reference_line, series_style
from jepa.runs import Run

__all__ = ["curves"]

TITLES = {"knn": "online kNN, %", "feature_std": "feature std", "rankme": "RankMe", "lidar": "LiDAR"}
NOT_LOSSES = {"step", "lr", "images_per_s", "data_wait", "feature_std", "padding", "knn", "rankme", "loss"}
MAX_TERM_NAME = 22  # maximum length of the name of a term in the legend
MAX_FINE_RANGE = 200  # ratio of the ends of a logarithmic axis up to which 2 and 5 are labeled, besides 1
SMOOTHING = 50  # divisor of the moving average: window = run / 50


def curves(run: Run) -> Figure:
    """Draw the losses, the online kNN accuracy (without labels, the feature std), RankMe and LiDAR by step.

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
    panels = {quality: online, "rankme": online, "lidar": online} if online else {"feature_std": losses}
    panels = {key: part for key, part in panels.items() if any(key in record for record in part)}
    figure = new_figure(2.5 + 0.16 * -(-len(loss_names(losses)) // 2))
    ratios = (1.5, *(1 for _ in panels))
    loss_axes, *other_axes = figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
    draw_losses(loss_axes, losses)
    has_init = run.exists and read_json(run.path / "config.json").get("init") is not None
    start = "at the start" if has_init else "untrained"
    for axes, (key, panel_records) in zip(other_axes, panels.items(), strict=True):
        draw_series(axes, panel_records, key, start)
    return figure


def loss_names(records: list[dict[str, Any]]) -> list[str]:
    """Return the names of the loss and of its terms."""
    return ["loss", *sorted({name for record in records for name in record} - NOT_LOSSES)]


def draw_losses(axes: Axes, records: list[dict[str, Any]]) -> None:
    """Draw the loss and each of its terms on a logarithmic scale, as moving averages."""
    window = max(1, len(records) // SMOOTHING)
    steps = [record["step"] for record in records]
    names = loss_names(records)
    for i, (name, label) in enumerate(zip(names, shorten_names(names, MAX_TERM_NAME), strict=True)):
        style = series_style(i - 1) if i else {"color": INK, "marker": "o"}
        if len(steps) >= 10:
            style["marker"] = ""
        values = moving_average([record.get(name, math.nan) for record in records], window)
        axes.plot(steps, values, label=literal(label), linewidth=1.2 if i else 2, **style)
    axes.set(yscale="log", xlabel="step", title="loss and its unweighted terms")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < MAX_FINE_RANGE * low else (1,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.22), columnspacing=1)


def moving_average(values: list[float], window: int) -> list[float]:
    """Return the trailing moving average of values."""
    windows = [values[max(0, end - window) : end] for end in range(1, len(values) + 1)]
    return [sum(part) / len(part) for part in windows]


def draw_series(axes: Axes, records: list[dict[str, Any]], key: str, start: str) -> None:
    """Draw one metric by step with its standard error, if any, and its value before training as a horizontal line.

    `start` names the encoder before training: "untrained".
    """
    points = [(record["step"], record[key], record.get(f"{key}_error", 0)) for record in records if key in record]
    steps, values, errors = (np.array(column) for column in zip(*points, strict=True))
    color = ENCODER_COLORS["trained"]
    axes.plot(steps, values, color=color, marker="o" if len(points) < 30 else None)
    if errors.any():
        axes.fill_between(steps, values - errors, values + errors, color=color, alpha=0.2, linewidth=0)
    if points[0][0] == 0:
        reference_line(axes, points[0][1], start)
    axes.set(title=TITLES[key], xlabel="step")
    axes.margins(y=0.2)
