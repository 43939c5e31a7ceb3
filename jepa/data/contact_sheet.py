"""Contact sheet: sample images of a split on one page."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from jepa.data.decode import decode
from jepa.data.index import SplitIndex, evenly_spaced

__all__ = ["contact_sheet"]

COLUMNS = 8  # number of columns, and maximum number of rows
CELL, GAP, CAPTION = 144, 8, 16  # pixels: side of an image, gap between images, height of a caption
BORDER_COLOR = "#cccccc"


def contact_sheet(index: SplitIndex, sizes: dict[int, tuple[int, int]]) -> Image.Image:
    """Draw up to 64 evenly spaced images, uncropped, with class names below if they are known.

    `sizes` maps the indices of the candidate images to their width and height.
    """
    images = list(sizes.items())
    shown = [images[i] for i in evenly_spaced(len(images), COLUMNS**2).tolist()]
    caption = CAPTION if index.labels is not None else 0
    rows = -(-len(shown) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (CELL + GAP) + GAP, rows * (CELL + caption + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, size) in enumerate(shown):
        left = GAP + i % COLUMNS * (CELL + GAP)
        top = GAP + i // COLUMNS * (CELL + caption + GAP)
        width, height = (max(1, round(length * CELL / max(size))) for length in size)
        pixels: np.ndarray = decode(index.files.read(image), 3, (height, width))
        picture = ImageOps.expand(Image.fromarray(pixels.transpose(1, 2, 0)), 1, BORDER_COLOR)
        sheet.paste(picture, (left + (CELL - width) // 2, top + (CELL - height) // 2))
        if index.labels is not None and index.labels[image] >= 0:
            text = _shorten(draw, index.classes[int(index.labels[image])])
            draw.text((left + CELL / 2, top + CELL + 2), text, fill="black", anchor="ma")
    return sheet


def _shorten(draw: ImageDraw.ImageDraw, text: str) -> str:
    """Truncate a text to the width of an image."""
    text = " ".join(text.split())
    while draw.textlength(text) > CELL:
        text = text[:-2].rstrip("…") + "…"
    return text
