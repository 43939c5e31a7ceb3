"""Thumbnails of images, as encoded files and on pages."""

from __future__ import annotations

import base64
import io
from html import escape

from PIL import Image
from torch import Tensor

__all__ = ["encode_thumbnail", "html_card"]

SIDE = 128  # largest side of a thumbnail, in pixels
LOSSLESS_SIDE = 64  # images of small sides are stored as PNG, without compression artifacts
JPEG_QUALITY = 85


def encode_thumbnail(pixels: Tensor) -> bytes:
    """Return an image (C, H, W) uint8, reduced to 128 pixels, as the content of a PNG or JPEG file."""
    array = pixels.permute(1, 2, 0).numpy()
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    if max(image.size) <= LOSSLESS_SIDE:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def html_card(pixels: Tensor, caption: list[str], css_class: str = "") -> str:
    """Return an image with lines of text below it; the first line is set in bold."""
    data = encode_thumbnail(pixels)
    kind = "png" if data[:1] == b"\x89" else "jpeg"
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    first, *rest = map(escape, caption)
    lines = "<br>".join([f"<b>{first}</b>", *rest])
    named = f' class="{css_class}"' if css_class else ""
    image = f'<img alt="{escape(" ".join(caption))}" src="{source}">'
    return f"<figure{named}>{image}<figcaption>{lines}</figcaption></figure>"
