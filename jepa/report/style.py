"""Style shared by all figures: one width, a color-blind-safe palette, no frames."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor

__all__ = [
    "BLUE",
    "CLASS_COLORS",
    "ENCODER_COLORS",
    "GRAY",
    "HIGHLIGHT",
    "INK",
    "PALE",
    "RED",
    "SKY",
    "STYLE",
    "WIDTH",
    "YELLOW",
    "literal",
    "new_figure",
    "outline_box",
    "reference_line",
    "series_style",
    "show_image",
]

WIDTH = 7.2  # width in inches; at 150 dpi and displayed 720 pixels wide, 9 pt text matches page text
BLUE, SKY, RED = "#0072B2", "#56B4E9", "#D55E00"  # Okabe & Ito
INK, GRAY, PALE, HIGHLIGHT = "#222222", "#6A6A6A", "#DDDDDD", RED
ENCODER_COLORS = {"trained": BLUE, "untrained": GRAY}
YELLOW = "#F0E442"
CLASS_COLORS = (  # ten color-blind-safe colors (Petroff 2021, arXiv 2107.02270)
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
LINES, MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D")
STYLE: Any = {
    "figure.dpi": 150,
    "figure.facecolor": "white",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRAY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": GRAY,
    "ytick.color": GRAY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.color": INK,
    "image.cmap": "magma",
}


def literal(text: str) -> str:
    """Return a text that matplotlib draws as it is: a pair of dollar signs would enclose a formula."""
    return text.replace("$", r"\$")


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure with constrained layout; height and width are in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def series_style(index: int) -> dict[str, Any]:
    """Return the color, line style and marker of a series; those of the first forty are all different."""
    cycle, color = divmod(index, len(CLASS_COLORS))
    return {"color": CLASS_COLORS[color], "linestyle": LINES[cycle % 4], "marker": MARKERS[cycle % 4]}


def show_image(axes: Axes, pixels: Tensor) -> None:
    """Show an image (C, H, W), uint8 or floats in [0, 1], grayscale or color, without axes."""
    array = pixels.permute(1, 2, 0).numpy()
    if pixels.is_floating_point():
        array = array.clip(0, 1)  # against rounding errors
    axes.imshow(np.repeat(array, 3, -1) if array.shape[-1] == 1 else array, interpolation="nearest")
    axes.set_axis_off()


def outline_box(axes: Axes, corner: tuple[float, float], width: float, height: float) -> None:
    """Outline a rectangle of an image, visible on any background."""
    box = Rectangle(corner, width, height, fill=False, edgecolor=YELLOW, linewidth=1.3)
    box.set_path_effects([withStroke(linewidth=2.6, foreground=INK)])
    axes.add_patch(box)


def reference_line(axes: Axes, y: float, text: str) -> None:
    """Draw a dotted horizontal line at `y`, labeled at its right end."""
    axes.axhline(y, color=GRAY, linestyle=":", linewidth=1, zorder=0)
    axes.annotate(
        text,
        (1, y),
        (0, 3),
        textcoords="offset points",
        xycoords=("axes fraction", "data"),
        ha="right",
        color=GRAY,
        fontsize=8,
    )
