"""Decode one image file of any kind to 8 bits a channel, no larger than it needs to be."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
from PIL import Image, ImageOps

__all__ = ["EXTENSIONS", "Unreadable", "decode"]

Image.init()
warnings.filterwarnings("ignore", module="PIL")  # what Pillow thinks of a file's metadata, or of its size
FORMATS = tuple(
    sorted(
        {"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP"}
        & Image.OPEN.keys()
    )
)
"""Raster formats only: opening an EPS would start another program."""
EXTENSIONS = frozenset(extension for extension, name in Image.registered_extensions().items() if name in FORMATS)
REDUCING_GAP = 2.0  # shrink by whole numbers first where the image is more than twice as large as needed
DEPTHS = (8, 10, 12, 14, 16)


class Unreadable(Exception):  # noqa: N818  (a fact about a file, which is counted and listed)
    """A file that gives no image; the message is the reason, on one line."""


def decode(file: bytes, channels: int, canvas: tuple[int, int] | None = None) -> np.ndarray:
    """Decode an image file to uint8 (C, H, W); with `canvas` (height, width), its centre of that aspect and size.

    Turned upright by its EXIF orientation; the first frame of an animation; transparent parts on white; deeper than
    8 bits: see `eight_bits`. JPEGs are decoded at the smallest fraction of their size that still covers the canvas.
    Raises `Unreadable`.
    """
    if not file:
        raise Unreadable("the file is empty")
    try:
        with Image.open(io.BytesIO(file), formats=FORMATS) as opened:
            if canvas is not None:
                opened.draft(None, covering(opened.size, canvas))
            ImageOps.exif_transpose(opened, in_place=True)
            image = opaque(eight_bits(opened))
            if canvas is not None:
                image = fit(image, canvas)
            image = image.convert("L" if channels == 1 else "RGB")
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise Unreadable(f"it has more than {limit:.0f} megapixels, as a decompression bomb has") from error
    except Exception as error:  # damaged files raise almost anything: each is listed with its reason
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise Unreadable("is no image that Pillow can read" if "cannot identify" in reason else reason) from error
    array = np.asarray(image).reshape(image.height, image.width, channels)
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def covering(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """Return the least width and height that cover the canvas (height, width), upright or turned by 90 degrees."""
    factor = max(canvas) / min(size) if canvas[0] != canvas[1] else canvas[0] / min(size)
    return math.ceil(size[0] * factor), math.ceil(size[1] * factor)


def fit(image: Image.Image, canvas: tuple[int, int]) -> Image.Image:
    """Cut the centre of the canvas's aspect and bring it to the canvas (height, width), antialiased."""
    height, width = canvas
    if image.size == (width, height):
        return image
    factor = min(image.width / width, image.height / height)
    across, down = min(image.width, width * factor), min(image.height, height * factor)
    left, top = (image.width - across) / 2, (image.height - down) / 2
    box = (left, top, min(image.width, left + across), min(image.height, top + down))
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return image.resize((width, height), Image.Resampling.BILINEAR, box, REDUCING_GAP)


def eight_bits(image: Image.Image) -> Image.Image:
    """Bring a grey image of 16 or 32 bits or of floats to 8 bits.

    Integers are taken to fill the 10, 12, 14 or 16 bits that their largest value needs, as cameras and microscopes
    write them; floats in 0 to 1 are taken as they are; anything else is stretched from its least to its largest value.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if image.mode != "F" and low >= 0 and high < 2**16:
        low, high = 0.0, 2.0 ** next(bits for bits in DEPTHS if high < 2**bits) - 1
    elif image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled = (values - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray(scaled.round().astype(np.uint8))


def opaque(image: Image.Image) -> Image.Image:
    """Lay an image with transparent parts on white, as browsers and printers do."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
