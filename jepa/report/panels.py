"""A figure cut into its panels, so that a page can show them side by side, or below each other on a narrow screen."""

from __future__ import annotations

import io
import warnings
from itertools import groupby, pairwise

from matplotlib.figure import Figure, SubFigure
from PIL import Image

from jepa.report.figures import save

__all__ = ["cut_into_panels", "draw_whole"]


def cut_into_panels(figure: Figure) -> list[list[Image.Image]]:
    """Return the rows of a figure, each a list of panels that show the row of the figure if placed side by side.

    Rows are those of its subfigures. A panel holds one column of axes, a legend of the figure, or a subfigure with a
    title.
    """
    image = draw_whole(figure)  # also computes the layout
    parts = sorted(undivided(figure), key=lambda part: (-round(part.bbox.y1), part.bbox.x0))
    rows = [list(row) for _, row in groupby(parts, key=lambda part: round(part.bbox.y1))]
    borders = [image.height - center(above[0].bbox.y0, below[0].bbox.y1) for above, below in pairwise(rows)]
    result = []
    for row, (top, bottom) in zip(rows, pairwise([0, *borders, image.height]), strict=True):
        edges = [0, *cuts([span for part in row for span in spans(part)]), image.width]
        result.append([image.crop((left, top, right, bottom)) for left, right in pairwise(edges)])
    return result


def draw_whole(figure: Figure) -> Image.Image:
    """Return a figure as an image."""
    buffer = io.BytesIO()
    save(figure, buffer)
    return Image.open(buffer).convert("RGB")


def center(start: float, end: float) -> int:
    """Return the pixel between two positions."""
    return round((start + end) / 2)


def undivided(figure: Figure | SubFigure) -> list[Figure | SubFigure]:
    """Return the subfigures that have none of their own."""
    return [part for sub in figure.subfigs for part in undivided(sub)] if figure.subfigs else [figure]


def spans(part: Figure | SubFigure) -> list[tuple[float, float]]:
    """Return the left and right ends of the contents of a subfigure, in pixels."""
    if part.get_suptitle():
        return [(part.bbox.x0, part.bbox.x1)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        boxes = [artist.get_tightbbox() for artist in (*part.axes, *part.legends)]
    return [(box.x0, box.x1) for box in boxes if box is not None]


def cuts(intervals: list[tuple[float, float]]) -> list[int]:
    """Return the centers of the gaps between intervals."""
    result, ends = [], list[float]()
    for left, right in sorted(intervals):
        if ends and left > max(ends):
            result.append(center(max(ends), left))
        ends.append(right)
    return result
