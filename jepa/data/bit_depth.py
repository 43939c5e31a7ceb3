"""Scale the samples of an image to 8 bits, with the range of the pixels that have data and are visible."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

__all__ = ["BLOCK_PIXELS", "Layout", "Unreadable", "color_to_eight_bits", "is_dark", "rows", "to_eight_bits"]

BIT_DEPTHS = (8, 10, 12, 14, 16)  # possible bit depths of integers
BLOCK_PIXELS = 2**19  # number of pixels that are converted at a time, to bound the memory

UNDECLARED_NO_DATA = (-9999.0, -32768.0, float(np.finfo(np.float32).min), float(np.finfo(np.float32).max))
"""Values that mean that there is no data, if all others are far from them; many files do not declare it."""

Blocks = Callable[[], Iterator[np.ndarray]]  # arrays of consecutive rows, each (rows, W, samples)


class Unreadable(Exception):  # noqa: N818  (describes a file, which is counted and listed)
    """Raised if a file cannot be decoded. The message is a one-line reason."""


@dataclass(frozen=True)
class Layout:
    """Meaning of the samples of an image."""

    bands: int = 1  # 1 (gray) or 3 (RGB); a further sample is 16-bit alpha
    white_is_zero: bool = False
    no_data: float | None = None  # pixels of this value have no data
    transparent: tuple[int, ...] | None = None  # pixels of this color are transparent
    maximum: int | None = None  # value of white, if the file declares it


RGB_LAYOUT = Layout(bands=3)


def to_eight_bits(blocks: Blocks, size: tuple[int, int], layout: Layout) -> Image.Image:
    """Scale samples to 8 bits, and return an image of the mode L, LA, RGB or RGBA.

    Integers are scaled by the maximum of the smallest bit depth (8, 10, 12, 14 or 16) that can represent the image,
    because cameras and microscopes store 10, 12 or 14 bits in 16-bit files, or by the maximum that the file declares.
    Floats between 0 and 1 are multiplied by 255. Images with other values are scaled linearly from their minimum and
    maximum to 0 and 255. Values count if they are finite, not the no-data value, and not transparent. Pixels without
    data become black.
    """
    low, high = _range(blocks, layout)
    if layout.no_data is None and (no_data := _undeclared_no_data(blocks, layout, (low, high))) is not None:
        layout = dataclasses.replace(layout, no_data=no_data)
        low, high = _range(blocks, layout)
    parts = []
    for block in blocks():
        color, valid, alpha = _split(block, layout)
        values = np.where(valid[..., None], color, low).astype(np.float64)
        scaled = ((values - low) * (255 / max(high - low, 1e-12))).clip(0, 255)
        levels = (255 - scaled if layout.white_is_zero else scaled).round().astype(np.uint8)
        levels[~valid] = 0
        parts.append(levels if alpha is None else np.concatenate([levels, alpha[..., None]], -1))
    pixels = np.concatenate(parts)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def color_to_eight_bits(
    upper: Image.Image, open_lower: Callable[[], Image.Image], layout: Layout = RGB_LAYOUT
) -> Image.Image:
    """Scale 16-bit color to 8 bits, from two images: Pillow reads either the upper or the lower 8 bits of each sample.

    The upper ones of RGB suffice if they use 16 bits.
    """
    if upper.mode == "RGB" and layout == RGB_LAYOUT and not is_dark(upper):
        return upper
    lower = open_lower()

    def blocks() -> Iterator[np.ndarray]:
        for high, low in zip(rows(upper), rows(lower), strict=True):
            yield high.astype(np.uint16) << 8 | low

    return to_eight_bits(blocks, upper.size, layout)


def is_dark(upper: Image.Image) -> bool:
    """Return whether samples use 14 bits or fewer, given the upper 8 of 16 bits (mode RGB or RGBA)."""
    return max(upper.getchannel(band).getextrema()[1] for band in "RGB") < 64  # type: ignore[operator]


def rows(image: Image.Image) -> Iterator[np.ndarray]:
    """Yield the samples of consecutive rows, each (rows, W, bands)."""
    width, height = image.size
    step = max(1, BLOCK_PIXELS // width)
    for top in range(0, height, step):
        block = np.asarray(image.crop((0, top, width, min(height, top + step))))
        yield block.reshape(*block.shape[:2], -1)


def _split(block: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the colors (rows, W, bands), which pixels have data (rows, W), and 8-bit alpha (rows, W) or None."""
    color, alpha = block[..., : layout.bands], None
    valid = np.isfinite(color).all(-1)
    if layout.no_data is not None:
        with np.errstate(over="ignore"):
            no_data = np.float64(layout.no_data).astype(np.float32 if color.dtype.kind == "f" else np.float64)
        valid &= (color != no_data).any(-1)
    if layout.transparent is not None:
        alpha = np.where((color == layout.transparent).all(-1), np.uint8(0), np.uint8(255))
    elif block.shape[-1] > layout.bands:
        alpha = ((block[..., -1].astype(np.uint32) + 128) // 257).astype(np.uint8)
    return color, valid, alpha


def _undeclared_no_data(blocks: Blocks, layout: Layout, ends: tuple[float, float]) -> float | None:
    """Return an end of the range that is a usual no-data value, and farther from all others than these are wide."""
    for value in set(ends).intersection(UNDECLARED_NO_DATA):
        least, most = _range(blocks, dataclasses.replace(layout, no_data=value))
        if max(value - most, least - value) > most - least:
            return value
    return None


def _range(blocks: Blocks, layout: Layout) -> tuple[float, float]:
    """Return the values that become 0 and 255."""
    if layout.maximum is not None:
        return 0.0, float(layout.maximum)
    low, high, kind = np.inf, -np.inf, "u"
    for block in blocks():
        color, valid, alpha = _split(block, layout)
        if alpha is not None:
            valid &= alpha > 0
        used, kind = color if valid.all() else color[valid], color.dtype.kind
        if used.size:
            low, high = min(low, float(used.min())), max(high, float(used.max()))
    if low > high:  # no pixel has data
        return 0.0, 1.0
    if kind in "ui" and low >= 0 and high < 2**16:
        return 0.0, 2.0 ** next(bits for bits in BIT_DEPTHS if high < 2**bits) - 1
    return (0.0, 1.0) if kind == "f" and low >= 0 and high <= 1 else (low, high)
