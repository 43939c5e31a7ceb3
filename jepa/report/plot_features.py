"""Features of a run: their correlation dimension, spectrum, and projection to two dimensions."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from jepa.config import InputError
from jepa.data import evenly_spaced
from jepa.evaluation.collapse import rankme
from jepa.evaluation.collapse import spectrum as spectrum_of
from jepa.evaluation.correlation_dimension import Dimension, correlation_dimension
from jepa.evaluation.projection import Projection
from jepa.evaluation.scores import MAX_DIMENSION_POINTS
from jepa.evaluation_run import EvaluationRun
from jepa.report.names import shorten_names
from jepa.report.style import CLASS_COLORS, ENCODER_COLORS, PALE, SKY, literal, new_figure, reference_line
from jepa.report.text import row_titles

__all__ = ["dimension", "spectrum", "umap"]

MAX_CLASS_NAME = 20  # maximum length of a class name in a legend
MAX_FINE_RANGE = 30  # ratio of the ends of the axis of radii up to which more than powers of ten are labeled
MAX_SQUARED_RADIUS = 1.3  # limit of the drawn slopes, relative to the largest squared radius of the scaling region


def dimension(run: EvaluationRun) -> Figure:
    """Draw C(r) with its scaling region, and the local slopes, with the fitted line extrapolated to r = 0.

    Raises `InputError` if there is no scaling region.
    """
    dimensions = {}
    for name in ("trained", "untrained"):
        x = run.features(name).x
        estimate = correlation_dimension(x[evenly_spaced(len(x), MAX_DIMENSION_POINTS)])
        if estimate is not None:
            dimensions[name] = estimate
    if "trained" not in dimensions:
        raise InputError(
            f"the distances between {len(run.test.indices):,} images of {run.test.dataset.name} have no scaling "
            "region; a correlation dimension requires several hundred distinct images, and distances above the noise"
        )
    figure = new_figure(3.2)
    left, right = figure.subplots(1, 2)
    titles = row_titles(run.encoder_names)
    for name, estimate in dimensions.items():
        label = f"{titles[name]}: {estimate.value:.1f} ± {estimate.error:.1f}"
        draw_correlation(left, estimate, ENCODER_COLORS[name])
        draw_slopes(right, estimate, ENCODER_COLORS[name], label)
    left.set(
        xscale="log", yscale="log", xlabel="r, in units of the features", title="C(r), fraction of pairs closer than r"
    )
    low, high = left.get_xlim()
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7) if high < MAX_FINE_RANGE * low else (1,)))
    left.xaxis.set_major_formatter("{x:g}")
    left.xaxis.set_minor_formatter(NullFormatter())
    right.set(xlabel="(r / largest radius of the scaling region)²", title="local slope, d log C / d log r")
    right.set(xlim=(0, None), ylim=(0, None))
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17))
    return figure


def draw_correlation(axes: Axes, estimate: Dimension, color: str) -> None:
    """Draw C(r), with a thick line inside the scaling region."""
    radii, correlation = estimate.radii.numpy(), estimate.correlation.numpy()
    inside = (radii >= estimate.region[0] * 0.999) & (radii <= estimate.region[1] * 1.001)
    axes.plot(radii, correlation, color=color, linewidth=1, alpha=0.5)
    axes.plot(radii[inside], correlation[inside], color=color, linewidth=2.4)
    axes.axvspan(*estimate.region, color=color, alpha=0.07, linewidth=0)


def draw_slopes(axes: Axes, estimate: Dimension, color: str, label: str) -> None:
    """Draw local slopes against r², hollow outside the scaling region, with the fitted line extrapolated to r = 0."""
    radii, slopes = estimate.radii.numpy(), estimate.slopes.numpy()
    squares = radii[1:] * radii[:-1] / estimate.region[1] ** 2
    inside = (radii[:-1] >= estimate.region[0] * 0.999) & (radii[1:] <= estimate.region[1] * 1.001)
    outside = ~inside & (squares < MAX_SQUARED_RADIUS)
    axes.plot(squares[inside], slopes[inside], "o", color=color)
    axes.plot(squares[outside], slopes[outside], "o", color=color, markerfacecolor="none")
    ends = np.array([0.0, squares[inside].max()])
    axes.plot(ends, estimate.value - estimate.tilt * ends, color=color, label=label)
    axes.errorbar([0], [estimate.value], yerr=[estimate.error], color=color, fmt="s", capsize=3, clip_on=False)


def spectrum(run: EvaluationRun) -> Figure:
    """Draw the explained variance of each principal axis of the features, in decreasing order."""
    figure = new_figure(3.0, 4.8)
    axes = figure.subplots()
    titles = row_titles(run.encoder_names)
    lowest = 1.0
    for name in run.compared_encoders:
        x = run.features(name).x
        ratios = spectrum_of(x).numpy()
        lowest = min(lowest, float(np.quantile(ratios, 0.05)))
        axes.plot(
            np.arange(1, len(ratios) + 1),
            ratios.clip(1e-12),
            "-" if name in ENCODER_COLORS else "--",  # curves of context and target encoder may coincide
            color=ENCODER_COLORS.get(name, SKY),
            label=f"{titles[name]}: RankMe {rankme(x):.1f}",
        )
    dim = run.encoders["trained"].backbone.dim
    reference_line(axes, 1 / dim, "equal variance on all axes")
    axes.set(yscale="log", xlabel=f"principal axis, 1 to {dim}", title="explained variance")
    axes.set(xlim=(0, dim), ylim=(max(lowest, 1e-9) / 3, 1))
    axes.legend()
    return figure


def umap(run: EvaluationRun) -> Figure:
    """Draw the features of up to 5,000 test images, trained and untrained, by UMAP, or few by PCA."""
    figure = new_figure(3.2)
    titles, classes = row_titles(run.encoder_names), run.test.dataset.classes
    colored: list[int] = []
    for axes, (name, projection) in zip(figure.subplots(1, 2), run.projections.items(), strict=True):
        colored = draw_points(axes, projection)
        axes.set_title(f"{projection.method}: {titles[name]}")
    names = shorten_names([classes[label] for label in colored], MAX_CLASS_NAME)
    entries = [(color, literal(name)) for name, color in zip(names, CLASS_COLORS, strict=False)]
    if len(classes) > len(colored) > 0:
        entries.append((PALE, f"{len(classes) - len(colored)} others"))
    handles = [Line2D([], [], color=color, marker="o", linestyle="", label=label) for color, label in entries]
    if handles:
        figure.legend(handles=handles, loc="outside right center", handletextpad=0.1)
    return figure


def draw_points(axes: Axes, projection: Projection) -> list[int]:
    """Draw projected images, with the ten most frequent classes in color, and return these classes."""
    points = projection.points.numpy()
    order = np.random.default_rng(0).permutation(len(points))  # shuffled, so that no class is drawn on top
    colors = np.full(len(points), PALE if projection.labels is not None else ENCODER_COLORS["trained"], dtype=object)
    colored: list[int] = []
    if projection.labels is not None:
        labels = projection.labels.numpy()
        frequent = np.bincount(labels[labels >= 0]).argsort(kind="stable")[::-1][: len(CLASS_COLORS)]
        colored = [label for label in sorted(frequent.tolist()) if (labels == label).any()]
        for label, color in zip(colored, CLASS_COLORS, strict=False):
            colors[labels == label] = color
    x, y = points[order].T
    axes.scatter(x, y, c=colors[order].tolist(), s=max(3, min(40, 4000 / len(points))), linewidths=0, alpha=0.8)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return colored
