"""How every figure looks: one width, one set of colours that colour-blind readers can tell apart, no frames."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

__all__ = [
    *("CLASSES", "COLORS", "GREY", "INK", "MARK", "PALE", "SKY", "STYLE", "WIDTH"),
    *("across", "canvas", "image", "titles"),
]

WIDTH = 7.2  # inches, at 150 pixels each: 9 pt are read as they are on a page 720 pixels wide
BLUE, ORANGE, SKY, RED = "#0072B2", "#E69F00", "#56B4E9", "#D55E00"  # Okabe & Ito
INK, GREY, PALE, MARK = "#222222", "#6A6A6A", "#DDDDDD", RED
COLORS = {"trained": BLUE, "context": SKY, "untrained": GREY, "pixels": ORANGE}  # of the rows of a table
CLASSES = (  # M. Petroff, 2107.02270: ten that keep apart, also for colour-blind readers
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
STYLE: Any = {
    "figure.dpi": 150,
    "figure.facecolor": "white",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.color": INK,
    "image.cmap": "magma",
}


def canvas(height: float) -> Figure:
    """Make a figure of the one width, `height` inches high, that lays itself out."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def image(axes: Axes, pixels: Tensor) -> None:
    """Show an image (C, H, W), uint8 or floats in [0, 1], grey or in colour, without axes."""
    shown = pixels.permute(1, 2, 0).numpy()
    axes.imshow(np.repeat(shown, 3, -1) if shown.shape[-1] == 1 else shown, interpolation="nearest")
    axes.set_axis_off()


def across(axes: Axes, y: float, text: str, color: str) -> None:
    """Draw a line across at `y`, named at its right end."""
    axes.axhline(y, color=color, linestyle=":", linewidth=1, zorder=0)
    axes.annotate(
        text,
        (1, y),
        (0, 3),
        textcoords="offset points",
        xycoords=("axes fraction", "data"),
        ha="right",
        color=color,
        fontsize=8,
    )


def titles(encoders: Iterable[str]) -> dict[str, str]:
    """Name encoders for a legend; `trained` is the target encoder where there is a context encoder as well."""
    names = {"trained": "trained", "context": "context encoder", "untrained": "untrained"}
    encoders = list(encoders)
    return names | ({"trained": "target encoder"} if "context" in encoders else {})
