"""Decode an image file of any supported format to 8 bits per channel, at the smallest sufficient scale."""

from __future__ import annotations

import io
import math
import os
import threading
import warnings
from contextlib import nullcontext, suppress

import numpy as np
from PIL import ExifTags, Image, ImageFile

from jepa.data.bit_depth import Layout, Unreadable, rows, to_eight_bits
from jepa.data.color_profile import to_srgb
from jepa.data.repair import END_OF_IMAGE, JPEG, end_jpeg, lacks_end, repairs
from jepa.data.samples import codec_of, load_eight_bits
from jepa.files import printable

__all__ = ["EXTENSIONS", "FORMATS", "Unreadable", "decode", "decode_opened", "read_header"]

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
MAX_DECODED_BYTES = 2**29  # 8-bit RGB images of this size have 179 megapixels, the limit of Pillow
LARGE_IMAGE_BYTES = 2**26  # larger images are decoded one at a time in each process, to bound the memory of all threads
MISSING_GRAY = 128  # level by which the decoder of JPEGs replaces missing data
TIFF_BITS = 258  # TIFF tag: bits of each sample
TIFF_REASON = "it is damaged, or a kind of TIFF that Pillow cannot read; convert it to 8 bits, grayscale or RGB"
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_one_large_image = threading.Lock()


def _unlock() -> None:
    """Replace the lock in a new worker process, in which no thread would release it."""
    global _one_large_image
    _one_large_image = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_unlock)


def decode(file: bytes, channels: int, canvas: tuple[int, int] | None = None) -> np.ndarray:
    """Decode an image file to uint8 (C, H, W), center-cropped and resized if `canvas` (height, width) is given.

    Images are rotated by their EXIF orientation, transparent images are composited onto white, color profiles are
    applied, and only the first frame of an animation is decoded. Images of more than 8 bits are converted by
    `to_eight_bits`. JPEGs are decoded at the smallest scale of 1, 1/2, 1/4 and 1/8 that covers the canvas. Damage
    outside of the pixels is ignored. Raises `Unreadable` if the file cannot be decoded.
    """
    if not file:
        raise Unreadable("the file is empty")
    try:
        image = _decode_damaged(file, canvas)
        mode = "L" if channels == 1 else "RGB"
        image = image if image.mode == mode else image.convert(mode)  # which would copy it
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise Unreadable(f"it has more than {limit:.0f} megapixels, the decoder's limit") from error
    except Unreadable:
        raise
    except Exception as error:  # damaged files can raise almost any exception
        reason = printable(" ".join(str(error).split()).rstrip(".") or type(error).__name__)
        if "cannot identify" in reason:
            reason = TIFF_REASON if file[:2] in (b"II", b"MM") else "it is not an image that Pillow can read"
        raise Unreadable(reason) from error
    return _as_array(image, channels)


def decode_opened(image: Image.Image, channels: int, canvas: tuple[int, int] | None = None) -> np.ndarray:
    """Convert an image that Pillow has opened or created to uint8 (C, H, W), as `decode` converts a file.

    Pillow reduces color of 16 bits to 8 bits when it opens a file, so such files are better passed to `decode`. Raises
    `Unreadable` if the pixels cannot be loaded.
    """
    try:
        image.load()
    except Exception as error:  # damaged files can raise almost any exception
        raise Unreadable(printable(" ".join(str(error).split()))) from error
    profile, orientation = image.info.get("icc_profile"), _orientation(image)
    if image.mode[0] in "IF":  # integers of 16 or 32 bits, or floats
        image = to_eight_bits(lambda: rows(image), image.size, Layout())
    image = _in_plain_mode(_upright(image, orientation))
    if canvas is not None:
        image = fit_canvas(image, canvas)
    image = to_srgb(remove_transparency(image), profile)
    mode = "L" if channels == 1 else "RGB"
    return _as_array(image if image.mode == mode else image.convert(mode), channels)


def _as_array(image: Image.Image, channels: int) -> np.ndarray:
    """Return the pixels of an image of mode L or RGB as (C, H, W)."""
    array = np.asarray(image).reshape(image.height, image.width, channels)
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def _decode_damaged(file: bytes, canvas: tuple[int, int] | None) -> Image.Image:
    """Decode an image file; if this fails, try again without damaged metadata."""
    try:
        return _decode_to_end(file, canvas)
    except (Image.DecompressionBombError, Unreadable):
        raise
    except Exception:
        for repaired in repairs(file):
            with suppress(Exception):
                return _decode_to_end(repaired, canvas)
        raise


def _decode_to_end(file: bytes, canvas: tuple[int, int] | None) -> Image.Image:
    """Decode an image file, or a JPEG without its end marker. Raises `Unreadable` if a JPEG lacks rows."""
    if not lacks_end(file):
        try:
            return _decode(file, canvas, refuse_gray_end=True)
        except _GrayEndError:
            file = file[: file.rfind(END_OF_IMAGE)]
    first, second = (_decode(version, canvas) for version in end_jpeg(file))
    if first.tobytes() != second.tobytes():
        raise Unreadable("the image file is truncated")
    return first


class _GrayEndError(Exception):
    """Raised if a JPEG ends in gray, as the decoder replaces missing rows before an end marker."""


def _decode(file: bytes, canvas: tuple[int, int] | None, refuse_gray_end: bool = False) -> Image.Image:
    """Decode an image file, cropped and resized to the canvas, in any Pillow mode of 8 bits without alpha."""
    with Image.open(io.BytesIO(file), formats=FORMATS) as opened:
        if canvas is not None:
            opened.draft(None, min_draft_size(opened.size, canvas))
        nbytes = decoded_bytes(opened)
        if nbytes > MAX_DECODED_BYTES:
            raise Unreadable(
                f"it has {nbytes / 1e6:.0f} MB of pixels, more than the limit of {MAX_DECODED_BYTES / 1e6:.0f} MB; "
                "reduce its size or bit depth"
            )
        with _one_large_image if nbytes > LARGE_IMAGE_BYTES else nullcontext():
            return _load(opened, file, canvas, refuse_gray_end)


def _load(
    opened: ImageFile.ImageFile, file: bytes, canvas: tuple[int, int] | None, refuse_gray_end: bool
) -> Image.Image:
    """Load an opened image: upright, cropped and resized to the canvas, without alpha, in sRGB or CMYK."""
    image = load_eight_bits(opened, file)
    if refuse_gray_end and file.startswith(JPEG):
        corner = image.crop((image.width - 4, image.height - 4, *image.size))
        if np.all(np.asarray(corner) == MISSING_GRAY):
            raise _GrayEndError
    profile = opened.info.get("icc_profile")
    image = _in_plain_mode(_upright(image, _orientation(opened)))
    if canvas is not None:
        image = fit_canvas(image, canvas)
    return to_srgb(remove_transparency(image), profile)


def read_header(file: bytes) -> tuple[tuple[int, int], str, str]:
    """Return the width and height after EXIF rotation, the Pillow mode and the format of an image that decodes."""
    for version in (file, *repairs(file)):
        with suppress(Exception), Image.open(io.BytesIO(version), formats=FORMATS) as image:
            turned = image.format != "TIFF" and _orientation(image) in QUARTER_TURNS  # Pillow swaps the size of TIFFs
            return (image.size[::-1] if turned else image.size), image.mode, image.format or ""
    return (0, 0), "", ""


def decoded_bytes(image: Image.Image) -> int:
    """Return the size of an opened image in memory in bytes, at the depth of the file."""
    depth = {"I;16": 2, "I;16B": 2, "I": 4, "F": 4}.get(image.mode, 1)
    if codec_of(image)[1] in ("RGB;16B", "RGBA;16B"):  # PNG
        depth = 2
    bits: tuple[int, ...] = getattr(image, "tag_v2", {}).get(TIFF_BITS, ())
    return image.width * image.height * max(depth * len(image.getbands()), sum(bits) // 8)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata can raise almost any exception, and the image is upright without it
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    """Rotate or mirror an image by its EXIF orientation."""
    return image.transpose(TRANSPOSITIONS[orientation]) if orientation in TRANSPOSITIONS else image


def _in_plain_mode(image: Image.Image) -> Image.Image:
    """Convert an image to one of the modes L, LA, RGB, RGBA, CMYK and LAB."""
    if image.mode == "La" or (image.mode == "L" and image.has_transparency_data):
        return image.convert("LA")
    if image.has_transparency_data:
        return image if image.mode in ("LA", "RGBA") else image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("L", "RGB", "CMYK", "LAB") else image.convert("RGB")


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
    return image.resize((width, height), Image.Resampling.BILINEAR, box, REDUCING_GAP)


def remove_transparency(image: Image.Image) -> Image.Image:
    """Composite images of mode LA or RGBA onto white; return other images unchanged."""
    if image.mode not in ("LA", "RGBA"):
        return image
    mode = "L" if image.mode == "LA" else "RGB"
    background = Image.new(mode, image.size, "white")
    background.paste(image.convert(mode), mask=image.getchannel("A"))
    return background
