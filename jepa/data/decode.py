"""Decode an image file of any supported format to 8 bits per channel, at the smallest sufficient scale."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
from PIL import Image, ImageOps

__all__ = ["EXTENSIONS", "FORMATS", "Unreadable", "decode"]

Image.init()
warnings.filterwarnings("ignore", module="PIL")  # warnings about damaged metadata and large images
FORMATS = tuple(
    sorted(
        {"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP"}
        & Image.OPEN.keys()
    )
)
"""Accepted Pillow formats: raster formats only, because opening an EPS file launches an external program."""
EXTENSIONS = frozenset(extension for extension, name in Image.registered_extensions().items() if name in FORMATS)
"""File extensions of these formats, in lowercase and with a leading dot."""
REDUCING_GAP = 2.0  # images more than twice as large as needed are first reduced by an integer factor
BIT_DEPTHS = (8, 10, 12, 14, 16)  # possible bit depths of integer grayscale images


class Unreadable(Exception):  # noqa: N818  (describes a file, which is counted and listed)
    """Raised if a file cannot be decoded. The message is a one-line reason."""


def decode(file: bytes, channels: int, canvas: tuple[int, int] | None = None) -> np.ndarray:
    """Decode an image file to uint8 (C, H, W), center-cropped and resized if `canvas` (height, width) is given.

    Images are rotated by their EXIF orientation, transparent images are composited onto white, and only the first frame
    of an animation is decoded. Images of more than 8 bits are converted by `to_eight_bits`. JPEGs are decoded at the
    smallest scale of 1, 1/2, 1/4 and 1/8 that covers the canvas. Raises `Unreadable` if the file cannot be decoded.
    """
    if not file:
        raise Unreadable("the file is empty")
    try:
        with Image.open(io.BytesIO(file), formats=FORMATS) as opened:
            if canvas is not None:
                opened.draft(None, min_draft_size(opened.size, canvas))
            ImageOps.exif_transpose(opened, in_place=True)
            image = remove_transparency(to_eight_bits(opened))
            if canvas is not None:
                image = fit_canvas(image, canvas)
            image = image.convert("L" if channels == 1 else "RGB")
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise Unreadable(f"it has more than {limit:.0f} megapixels, the decoder's limit") from error
    except Exception as error:  # damaged files can raise almost any exception
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if "cannot identify" in reason:
            reason = "it is not an image that Pillow can read"
        raise Unreadable(reason) from error
    array = np.asarray(image).reshape(image.height, image.width, channels)
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def min_draft_size(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest width and height with the aspect ratio of `size` that cover the canvas (height, width).

    The EXIF orientation is not known yet, so they also cover the canvas rotated by 90 degrees.
    """
    factor = max(canvas) / min(size) if canvas[0] != canvas[1] else canvas[0] / min(size)
    return math.ceil(size[0] * factor), math.ceil(size[1] * factor)


def fit_canvas(image: Image.Image, canvas: tuple[int, int]) -> Image.Image:
    """Center-crop an image to the aspect ratio of the canvas (height, width), and resize it with antialiasing."""
    height, width = canvas
    if image.size == (width, height):
        return image
    factor = min(image.width / width, image.height / height)
    crop_width, crop_height = min(image.width, width * factor), min(image.height, height * factor)
    left, top = (image.width - crop_width) / 2, (image.height - crop_height) / 2
    box = (left, top, min(image.width, left + crop_width), min(image.height, top + crop_height))
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return image.resize((width, height), Image.Resampling.BILINEAR, box, REDUCING_GAP)


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Convert a grayscale image of 16- or 32-bit integers or floats to 8 bits; return other images unchanged.

    Unsigned integers are scaled by the maximum of the smallest bit depth (8, 10, 12, 14 or 16) that can represent the
    image, because cameras and microscopes store 10, 12 or 14 bits in 16-bit files. Floats between 0 and 1 are
    multiplied by 255. Images with other values are scaled linearly from their minimum and maximum to 0 and 255.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if image.mode != "F" and low >= 0 and high < 2**16:
        low, high = 0.0, 2.0 ** next(bits for bits in BIT_DEPTHS if high < 2**bits) - 1
    elif image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled = (values - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray(scaled.round().astype(np.uint8))


def remove_transparency(image: Image.Image) -> Image.Image:
    """Composite transparent images onto white; return other images unchanged."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
