"""Load TIFF files with 8 bits per sample.

Pillow ignores some of their tags: white at 0, signed 8-bit samples, no-data values, bands that are not said to be
transparency, and the byte order of compressed numbers.
"""

from __future__ import annotations

import io
import sys

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from jepa.data.bit_depth import Layout, Unreadable, color_to_eight_bits, is_dark, rows, to_eight_bits

__all__ = ["load_tiff"]

BITS, PHOTOMETRIC, PLANES, EXTRA_SAMPLES, SAMPLE_FORMAT, GDAL_NODATA = 258, 262, 284, 338, 339, 42113  # tags
COLOR_MAP = 320
WHITE_IS_ZERO, SEPARATE, ASSOCIATED_ALPHA, SIGNED = 0, 2, 1, 2  # values of these tags
LOWER_BYTES = "B" if sys.byteorder == "little" else "L"  # end of the raw mode for the lower bytes of native 16 bits


def load_tiff(image: ImageFile.ImageFile, file: bytes) -> Image.Image:
    """Load an opened TIFF, and return it in a Pillow mode of 8 bits per sample.

    Raises `Unreadable` if Pillow cannot read its samples as they are.
    """
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    tags, mode = image.tag_v2, image.mode
    depth, signed = max(tags.get(BITS, (1,))), SIGNED in tags.get(SAMPLE_FORMAT, (1,))
    raw_mode, separate = _native_raw_mode(image, depth, signed), tags.get(PLANES) == SEPARATE
    if separate and len(image.getbands()) > 1 and mode not in ("RGB", "RGBA"):
        raise Unreadable(f"its {mode} bands are stored separately; convert it to RGB")
    if PHOTOMETRIC not in tags:
        raise Unreadable("it does not say whether 0 is black or white; convert it to 8 bits, grayscale or RGB")
    if mode == "YCbCr":
        image._mode = "RGB"
    if raw_mode and (separate or depth in (16, 32) or mode == "YCbCr"):
        _use_libtiff(image, raw_mode)
    image.load()
    if mode == "P" and max(tags.get(COLOR_MAP, (256,))) < 256:  # 8 bits instead of 16, which Pillow shifts to 0
        image.putpalette(np.reshape(tags[COLOR_MAP], (3, -1)).T.astype(np.uint8).tobytes())
    loaded: Image.Image = image
    if mode == "RGBA" and EXTRA_SAMPLES not in tags:  # the file does not say that the fourth band is transparency
        loaded = image.convert("RGB")
    layout = Layout(len(loaded.getbands()), tags[PHOTOMETRIC] == WHITE_IS_ZERO, _no_data(tags.get(GDAL_NODATA)))
    if depth == 16 and mode in ("RGB", "RGBA"):
        return _load_color(loaded, file, raw_mode, separate, layout)
    if mode.startswith(("I", "F")):
        unsigned = mode == "I" and depth == 32 and not signed  # Pillow has signed integers only
        return to_eight_bits(lambda: (b.view(np.uint32) if unsigned else b for b in rows(loaded)), loaded.size, layout)
    if loaded.mode in ("L", "RGB") and (signed or (layout.no_data is not None and depth == 8)):
        dtype = np.int8 if signed else np.uint8
        if mode == "L" and layout.white_is_zero:  # Pillow has inverted the samples
            layout = Layout(no_data=255 - (layout.no_data or 0))
        return to_eight_bits(lambda: (block.view(dtype) for block in rows(loaded)), loaded.size, layout)
    return loaded


def _load_color(image: Image.Image, file: bytes, raw_mode: str, separate: bool, layout: Layout) -> Image.Image:
    """Return an image whose upper 8 of 16 bits are loaded as RGB or RGBA."""
    if not separate and "a" not in raw_mode:

        def open_lower() -> Image.Image:
            lower = Image.open(io.BytesIO(file), formats=("TIFF",))
            _use_libtiff(lower, raw_mode[:-1] + LOWER_BYTES)
            lower.load()
            return lower.convert(image.mode)

        return color_to_eight_bits(image, open_lower, Layout(bands=3, no_data=layout.no_data))
    if is_dark(image) or layout.no_data is not None:  # Pillow reads the upper 8 bits only
        raise Unreadable("its 16-bit colors have 14 bits, or no-data values; convert it to 8 bits")
    return image


def _native_raw_mode(image: TiffImagePlugin.TiffImageFile, depth: int, signed: bool) -> str:
    """Return Pillow's name of the samples as libtiff returns them, in the byte order of the machine."""
    mode, extra = image.mode, image.tag_v2.get(EXTRA_SAMPLES, ())
    if mode in ("F", "I"):
        return "F;32NF" if mode == "F" else f"I;{depth}N{'S' * signed}"
    if mode.startswith("I;16"):
        return "I;16N" if depth == 16 else ""
    if mode == "YCbCr":
        return "RGBX"  # converted by libtiff; Pillow ignores that the colors have fewer pixels
    if mode == "RGBA" and ASSOCIATED_ALPHA in extra:
        mode = "RGBa"
    elif mode == "RGB" and image.tag_v2.get(PLANES) != SEPARATE:
        mode += "X" * len(extra)
    return mode + (";16N" if depth == 16 else "")


def _use_libtiff(image: Image.Image, raw_mode: str) -> None:
    """Decode a TIFF by libtiff, also if it is not compressed.

    Pillow reads 16-bit planes as 8-bit ones, and swaps the bytes of compressed big-endian numbers twice.
    """
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    image.use_load_libtiff = True
    offset: int = image.tag_v2.offset
    whole, arguments = (0, 0, *image._tile_size), (raw_mode, False, offset)
    image.tile = [image.tile[0]._replace(codec_name="libtiff", extents=whole, offset=0, args=arguments)]


def _no_data(text: object) -> float | None:
    """Return the no-data value of a GeoTIFF, or None if there is none."""
    try:
        return float(str(text).strip("\0 "))
    except ValueError:
        return None
