"""Load an opened image with 8 bits per sample, without losing what Pillow has no mode for."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from jepa.data.bit_depth import BLOCK_PIXELS, Layout, Unreadable, color_to_eight_bits, is_dark, rows, to_eight_bits
from jepa.data.tiff import load_tiff

__all__ = ["codec_of", "load_eight_bits"]

JPEG_2000_START, JPEG_2000_DEPTH = b"\xff\x4f\xff\x51", 38  # markers, and where the depth of the first band follows
TGA_FLAGS, TGA_ALPHA_BITS = 17, 15  # byte of the header, and its bits that give the number of bits of alpha


def load_eight_bits(image: ImageFile.ImageFile, file: bytes) -> Image.Image:
    """Load an opened image, and return it in a Pillow mode of 8 bits per sample, as described in `to_eight_bits`.

    Raises `Unreadable` if Pillow cannot read its samples as they are.
    """
    if image.format == "TIFF":
        return load_tiff(image, file)
    codec, arguments = codec_of(image)
    if image.format == "PPM" and codec == "ppm":
        return _load_pnm(image, file, int(arguments[1]))
    if image.format == "PNG" and str(arguments).endswith(";16B") and image.mode in ("RGB", "RGBA"):
        return _load_color_png(image, file, arguments)
    if image.format == "JPEG2000":
        return _load_jpeg_2000(image, file)
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")  # most programs leave alpha at 0, and ignore it
    if image.format == "TGA" and not file[TGA_FLAGS] & TGA_ALPHA_BITS:  # a band of which nothing is said
        return image.convert({"RGBA": "RGB", "LA": "L"}.get(image.mode, image.mode))
    key = image.info.get("transparency")
    if key is not None and arguments in ("L;2", "L;4"):  # Pillow scales the samples of these PNGs, but not the key
        image.info["transparency"] = key * (85 if arguments == "L;2" else 17)
    image.load()
    if image.mode.startswith(("I", "F")):
        declared = image.format == "PPM" and codec == "ppm_plain" and arguments[1] < 65535
        layout = Layout(transparent=None if key is None else (key,), maximum=65535 if declared else None)
        return to_eight_bits(lambda: rows(image), image.size, layout)
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
        return to_eight_bits(lambda: (block.view(">u2") for block in rows(image)), image.size, Layout())

    def open_lower() -> Image.Image:
        lower = Image.open(io.BytesIO(file), formats=("PNG",))
        _set_raw_mode(lower, raw_mode[:-1] + "L")
        lower.load()
        return lower

    image.load()
    return color_to_eight_bits(image, open_lower, Layout(bands=3, transparent=key))


def _load_jpeg_2000(image: ImageFile.ImageFile, file: bytes) -> Image.Image:
    """Load a JPEG 2000, of which Pillow returns signed samples shifted to positive ones, and 8 bits of color."""
    depth = file[file.index(JPEG_2000_START) + len(JPEG_2000_START) + JPEG_2000_DEPTH]
    bits, signed = (depth & 127) + 1, depth > 127
    image.load()
    if image.mode.startswith("I"):
        offset = 2 ** (bits - 1) if signed else 0
        return to_eight_bits(lambda: (block.astype(np.int32) - offset for block in rows(image)), image.size, Layout())
    if bits > 8 and image.mode in ("RGB", "RGBA") and (signed or is_dark(image)):
        raise Unreadable("its colors of more than 8 bits are signed or dark; convert it to 8 bits")
    return image


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
    return to_eight_bits(lambda: (samples[top : top + step] for top in range(0, height, step)), image.size, layout)


def _set_raw_mode(image: Image.Image, raw_mode: str) -> None:
    """Choose how Pillow reads the bytes of an image that it has not loaded yet."""
    assert isinstance(image, ImageFile.ImageFile)
    image.tile = [tile._replace(args=raw_mode) for tile in image.tile]
