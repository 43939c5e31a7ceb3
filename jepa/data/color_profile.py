"""Convert images with a color profile (ICC) to sRGB."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

__all__ = ["to_srgb"]

SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}  # color spaces of profiles by Pillow mode
MAX_ROUNDING = 2  # levels by which profiles of sRGB itself differ from it


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an image (mode L, RGB, CMYK or LAB) to sRGB.

    Images without a profile are returned unchanged, except that LAB becomes sRGB. Profiles that are damaged or made for
    another color space are ignored.
    """
    transform = _transform(profile, image.mode) if profile or image.mode == "LAB" else None
    return image if transform is None else transform.apply(image)


@lru_cache(maxsize=32)  # the images of a camera have the same profile
def _transform(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from a profile to sRGB, or None if there is none or it changes nothing."""
    srgb = ImageCms.createProfile("sRGB")
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile) if profile else ImageCms.createProfile("LAB"))
        if opened.profile.xcolor_space.strip() != SPACES.get(mode):
            return None if mode != "LAB" or profile is None else _transform(None, mode)
        transform = ImageCms.buildTransform(opened, srgb, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return _transform(None, mode) if mode == "LAB" and profile else None
    if mode in ("L", "RGB"):
        levels = np.arange(0, 256, 15, dtype=np.uint8)
        colors = Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), -1).reshape(len(levels), -1, 3))
        colors = colors.convert(mode)
        changed = np.asarray(transform.apply(colors)).astype(int) - np.asarray(colors.convert("RGB"))
        if np.abs(changed).max() <= MAX_ROUNDING:
            return None
    return transform
