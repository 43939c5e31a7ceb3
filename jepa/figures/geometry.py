"""The cloud of features: its correlation dimension and the spectrum of its covariance."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from jepa.config import InputError
from jepa.evaluation import CLOUD, Dimension, correlation_dimension, rankme
from jepa.evaluation import spectrum as spectrum_of
from jepa.figures.style import COLORS, GREY, across, canvas, titles
from jepa.subject import Subject

__all__ = ["dimension", "spectrum"]

DASHES = {"trained": "-", "context": "--", "untrained": "-"}  # the first two may coincide


def dimension(subject: Subject) -> Figure:
    """Draw C(r) with its scaling region, and the local slopes with the line that is read at r = 0."""
    found = {}
    for name in ("trained", "untrained"):
        x = subject.features(name).x
        if (one := correlation_dimension(x[:: -(-len(x) // CLOUD)])) is not None:
            found[name] = one
    if "trained" not in found:
        raise InputError(
            f"there is no scaling region in the distances of {len(subject.test[1]):,} images of "
            f"{subject.test[0].name}; a correlation dimension needs 200 or more that differ"
        )
    figure = canvas(3.2)
    left, right = figure.subplots(1, 2)
    names = titles(subject.encoders)
    for name, one in found.items():
        label = f"{names[name]}: {one.value:.1f} ± {one.error:.1f}"
        draw_correlation(left, one, COLORS[name])
        draw_slopes(right, one, COLORS[name], label)
    left.set(xscale="log", yscale="log", xlabel="r, units of the features", title="C(r), share of pairs closer than r")
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    left.xaxis.set_major_formatter("{x:g}")
    left.xaxis.set_minor_formatter(NullFormatter())
    right.set(xlabel="r², of the largest radius of the region", title="local slope, d log C / d log r")
    right.set(xlim=(0, None), ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def draw_correlation(axes: Axes, found: Dimension, color: str) -> None:
    """Draw C(r), strong inside the scaling region."""
    radii, share = found.radii.numpy(), found.correlation.numpy()
    inside = (radii >= found.region[0] * 0.999) & (radii <= found.region[1] * 1.001)
    axes.plot(radii, share, color=color, linewidth=1, alpha=0.5)
    axes.plot(radii[inside], share[inside], color=color, linewidth=2.4)
    axes.axvspan(*found.region, color=color, alpha=0.07, linewidth=0)


def draw_slopes(axes: Axes, found: Dimension, color: str, label: str) -> None:
    """Draw local slopes against r², those outside of the region hollow, and the fitted line down to r = 0."""
    radii, slopes = found.radii.numpy(), found.slopes.numpy()
    square = radii[1:] * radii[:-1] / found.region[1] ** 2
    inside = (radii[:-1] >= found.region[0] * 0.999) & (radii[1:] <= found.region[1] * 1.001)
    shown = square < 1.3
    axes.plot(square[inside], slopes[inside], "o", color=color)
    axes.plot(square[~inside & shown], slopes[~inside & shown], "o", color=color, markerfacecolor="none")
    ends = np.array([0.0, square[inside].max()])
    axes.plot(ends, found.value - found.tilt * ends, color=color, label=label)
    axes.errorbar([0], [found.value], yerr=[found.error], color=color, fmt="s", capsize=3, clip_on=False)


def spectrum(subject: Subject) -> Figure:
    """Draw the share of the variance along each principal axis of the features, the largest first."""
    figure = canvas(3.0)
    axes = figure.subplots()
    names = titles(subject.encoders)
    lowest = 1.0
    for name in subject.encoders:
        x = subject.features(name).x
        shares = spectrum_of(x).numpy()
        lowest = min(lowest, float(np.quantile(shares, 0.05)))
        label = f"{names[name]}: RankMe {rankme(x):.1f}"
        axes.plot(np.arange(1, len(shares) + 1), shares.clip(1e-12), DASHES[name], color=COLORS[name], label=label)
    dim = subject.encoders["trained"].backbone.dim
    across(axes, 1 / dim, "all axes alike", GREY)
    axes.set(yscale="log", xlabel=f"principal axis, of {dim}", title="share of the variance")
    axes.set(xlim=(0, dim), ylim=(max(lowest, 1e-9) / 3, 1))
    axes.legend()
    return figure
