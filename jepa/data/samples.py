"""Load an opened image with 8 bits per sample, without losing what Pillow does not say or reads wrongly.

Pillow has no mode for more than 8 bits of color, and ignores some tags of TIFF files: white at 0, signed 8-bit samples,
no-data values, bands that are not said to be transparency, and the byte order of compressed floats.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

__all__ = ["Unreadable", "codec_of", "load_eight_bits"]

BIT_DEPTHS = (8, 10, 12, 14, 16)  # possible bit depths of integers
BLOCK_PIXELS = 2**19  # number of pixels that are converted at a time, to bound the memory
LOW_BYTE = "B" if sys.byteorder == "little" else "L"  # raw mode that takes the lower byte of native 16-bit samples
EXTRA_SAMPLES, SAMPLE_FORMAT, GDAL_NODATA = 338, 339, 42113  # TIFF tags
SIGNED, ASSOCIATED_ALPHA = 2, 1  # values of these tags

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


def load_eight_bits(image: ImageFile.ImageFile, file: bytes) -> Image.Image:
    """Load an opened image, and return it in a Pillow mode of 8 bits per sample.

    Integers of more than 8 bits are scaled by the maximum of the smallest bit depth (8, 10, 12, 14 or 16) that can
    represent the image, because cameras and microscopes store 10, 12 or 14 bits in 16-bit files, or by the maximum that
    the file declares (PGM, PPM). Floats between 0 and 1 are multiplied by 255. Images with other values are scaled
    linearly from their minimum and maximum to 0 and 255. Values count if they are finite, not the no-data value of a
    GeoTIFF, and not transparent. Pixels without data become black. Raises `Unreadable` if the samples cannot be read.
    """
    if image.format == "TIFF":
        return _load_tiff(image, file)
    codec, arguments = codec_of(image)
    if image.format == "PPM" and codec == "ppm":
        return _load_pnm(image, file, int(arguments[1]))
    if image.format == "PNG" and str(arguments).endswith(";16B") and image.mode in ("RGB", "RGBA"):
        return _load_color_png(image, file, arguments)
    key = image.info.get("transparency")
    if key is not None and arguments in ("L;2", "L;4"):  # Pillow scales the samples of these PNGs, but not the key
        image.info["transparency"] = key * (85 if arguments == "L;2" else 17)
    image.load()
    if image.mode.startswith(("I", "F")):
        declared = image.format == "PPM" and codec == "ppm_plain" and arguments[1] < 65535
        layout = Layout(transparent=None if key is None else (key,), maximum=65535 if declared else None)
        return _reduce(lambda: _rows(image), image.size, layout)
    return image


def codec_of(image: Image.Image) -> tuple[str, Any]:
    """Return the codec of an opened image and its arguments, such as the raw mode; some formats have none."""
    codec, _, _, arguments = (getattr(image, "tile", None) or [("", None, 0, None)])[0]
    return codec, arguments


def _load_color_png(image: ImageFile.ImageFile, file: bytes, raw_mode: str) -> Image.Image:
    """Load a PNG of 16-bit color or of 16-bit gray and alpha."""
    key = image.info.pop("transparency", None)
    if raw_mode == "LA;16B":  # the two bytes of both samples are read as four bands
        _set_raw_mode(image, "RGBA")
        image.load()
        return _reduce(lambda: (block.view(">u2") for block in _rows(image)), image.size, Layout())

    def low_bytes() -> Image.Image:
        low = Image.open(io.BytesIO(file), formats=("PNG",))
        _set_raw_mode(low, raw_mode[:-1] + "L")
        return low

    return _load_color(image, low_bytes, key)


def _load_color(
    image: Image.Image, open_low: Callable[[], Image.Image], key: tuple[int, ...] | None = None
) -> Image.Image:
    """Load 16-bit color, of which Pillow keeps the upper 8 bits of each sample.

    `open_low` opens the lower 8 bits, which are used if the upper ones do not suffice: if the image has transparency,
    or fewer than 16 bits.
    """
    image.load()
    if image.mode == "RGB" and key is None and not _is_dark(image):
        return image
    low = open_low()
    low.load()

    def blocks() -> Iterator[np.ndarray]:
        for upper, lower in zip(_rows(image), _rows(low), strict=True):
            yield upper.astype(np.uint16) << 8 | lower

    return _reduce(blocks, image.size, Layout(bands=3, transparent=key))


def _is_dark(image: Image.Image) -> bool:
    """Return whether the upper 8 bits of an image are those of 14 bits or fewer."""
    return max(image.getchannel(band).getextrema()[1] for band in "RGB") < 64  # type: ignore[operator]


def _load_pnm(image: ImageFile.ImageFile, file: bytes, maximum: int) -> Image.Image:
    """Load a binary PGM or PPM with a maximum other than 255; Pillow takes a microsecond for each sample."""
    width, height = image.size
    bands, dtype = len(image.getbands()), np.dtype(">u1" if maximum < 256 else ">u2")
    count, offset = width * height * bands, image.tile[0][2]
    if len(file) < offset + count * dtype.itemsize:
        raise Unreadable("the image file is truncated")
    samples = np.frombuffer(file, dtype, count, offset).reshape(height, width, bands)
    step = max(1, BLOCK_PIXELS // width)
    layout = Layout(bands=bands, maximum=maximum if maximum < 65535 else None)
    return _reduce(lambda: (samples[top : top + step] for top in range(0, height, step)), image.size, layout)


def _load_tiff(image: ImageFile.ImageFile, file: bytes) -> Image.Image:
    """Load a TIFF file."""
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    tags = image.tag_v2
    depth, white_is_zero = max(tags.get(258, (1,))), tags.get(262, 0) == 0
    signed, no_data = SIGNED in tags.get(SAMPLE_FORMAT, (1,)), _no_data(tags.get(GDAL_NODATA))
    has_alpha = image.mode == "RGBA" and EXTRA_SAMPLES in tags
    separate = tags.get(284) == 2
    raw_mode = _native_raw_mode(image, depth, signed)
    if separate and len(image.getbands()) > 1 and image.mode not in ("RGB", "RGBA"):
        raise Unreadable(f"its {image.mode} bands are stored separately; convert it to RGB")
    if image.mode == "YCbCr":  # Pillow ignores that the colors have fewer pixels
        image._mode, raw_mode, separate = "RGB", "RGBX", True
    if raw_mode and (separate or depth in (16, 32)):
        _use_libtiff(image, raw_mode)
    image.load()
    if image.mode == "RGBA" and not has_alpha:
        image = image.convert("RGB")  # type: ignore[assignment]  # a band of which the file does not say what it is
    if depth == 16 and image.mode in ("RGB", "RGBA"):
        if "a" in raw_mode or (separate and _is_dark(image)):
            if _is_dark(image):
                raise Unreadable("its 16-bit colors use 14 bits or fewer; convert it to 8 bits")
            return image

        def low_bytes() -> Image.Image:
            low = Image.open(io.BytesIO(file), formats=("TIFF",))
            _use_libtiff(low, raw_mode[:-1] + LOW_BYTE)
            low.load()
            return low if has_alpha else low.convert("RGB")

        return _load_color(image, low_bytes) if not separate else image
    if image.mode in ("L", "RGB") and (signed or (no_data is not None and depth == 8)):
        if white_is_zero and no_data is not None and image.mode == "L":
            no_data = 255 - no_data  # Pillow has inverted the samples
        layout = Layout(bands=len(image.getbands()), no_data=no_data)
        return _reduce(
            lambda: (block.view(np.int8 if signed else np.uint8) for block in _rows(image)), image.size, layout
        )
    if image.mode.startswith(("I", "F")):
        layout, unsigned = Layout(white_is_zero=white_is_zero, no_data=no_data), depth == 32 and not signed
        as_unsigned = image.mode == "I" and unsigned
        return _reduce(lambda: (b.view("u4") if as_unsigned else b for b in _rows(image)), image.size, layout)
    return image


def _native_raw_mode(image: TiffImagePlugin.TiffImageFile, depth: int, signed: bool) -> str:
    """Return Pillow's name of the samples as libtiff returns them, in the byte order of the machine."""
    mode = image.mode
    if mode == "F":
        return "F;32NF"
    if mode == "I":
        return f"I;{depth}N{'S' * signed}"
    if mode.startswith("I;16"):
        return "I;16N" if depth == 16 else ""
    if mode not in ("L", "RGB", "RGBA", "CMYK"):
        return ""
    extra = image.tag_v2.get(EXTRA_SAMPLES, ())
    name = "RGBa" if mode == "RGBA" and ASSOCIATED_ALPHA in extra else mode
    if mode == "RGB" and extra and image.tag_v2.get(284) != 2:
        name += "X" * len(extra)
    return name + (";16N" if depth == 16 else "")


def _use_libtiff(image: Image.Image, raw_mode: str) -> None:
    """Decode a TIFF by libtiff, also if it is not compressed.

    Pillow reads 16-bit planes as 8-bit ones, and swaps the bytes of compressed big-endian numbers twice.
    """
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    image.use_load_libtiff = True
    offset: int = image.tag_v2.offset
    image.tile = [ImageFile._Tile("libtiff", (0, 0, *image._tile_size), 0, (raw_mode, False, offset))]


def _set_raw_mode(image: Image.Image, raw_mode: str) -> None:
    """Choose how Pillow reads the bytes of an image that it has not loaded yet."""
    assert isinstance(image, ImageFile.ImageFile)
    image.tile = [ImageFile._Tile(codec, extents, offset, raw_mode) for codec, extents, offset, _ in image.tile]


def _no_data(text: object) -> float | None:
    """Return the no-data value of a GeoTIFF, or None if there is none."""
    try:
        return float(str(text).strip("\0 "))
    except ValueError:
        return None


def _rows(image: Image.Image) -> Iterator[np.ndarray]:
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


def _reduce(blocks: Blocks, size: tuple[int, int], layout: Layout) -> Image.Image:
    """Scale samples to 8 bits, and return an image of the mode L, LA, RGB or RGBA."""
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
