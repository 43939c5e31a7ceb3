"""Contact sheet: many images of a split on one page."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from jepa.data.decode import decode
from jepa.data.index import SplitIndex, evenly_spaced

__all__ = ["contact_sheet"]

COLUMNS = 8  # the sheet has at most as many rows
CELL, GAP, CAPTION = 144, 8, 16  # in pixels: side of an image, space between images, height of a class name
BORDER_COLOR = "#cccccc"


def contact_sheet(index: SplitIndex, sizes: dict[int, tuple[int, int]]) -> Image.Image:
    """Draw up to 64 of some images, evenly spaced and without cropping, above their class if it is known.

    `sizes` has the width and height of the images to choose from, by index.
    """
    images = list(sizes.items())
    chosen = [images[i] for i in evenly_spaced(len(images), COLUMNS**2).tolist()]
    caption = CAPTION if index.labels is not None else 0
    rows = -(-len(chosen) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (CELL + GAP) + GAP, rows * (CELL + caption + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (image, size) in enumerate(chosen):
        left = GAP + number % COLUMNS * (CELL + GAP)
        top = GAP + number // COLUMNS * (CELL + caption + GAP)
        width, height = (max(1, round(length * CELL / max(size))) for length in size)
        pixels: np.ndarray = decode(index.files.read(image), 3, (height, width))
        picture = ImageOps.expand(Image.fromarray(pixels.transpose(1, 2, 0)), 1, BORDER_COLOR)
        sheet.paste(picture, (left + (CELL - width) // 2, top + (CELL - height) // 2))
        if index.labels is not None:
            text = _shorten(draw, index.classes[int(index.labels[image])])
            draw.text((left + CELL / 2, top + CELL + 2), text, fill="black", anchor="ma")
    return sheet


def _shorten(draw: ImageDraw.ImageDraw, text: str) -> str:
    """Shorten a text to the width of an image."""
    text = " ".join(text.split())
    while draw.textlength(text) > CELL:
        text = text[:-2].rstrip("…") + "…"
    return text
