"""Pages of thumbnails: self-contained HTML in the style of the report."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image
from torch import Tensor

from jepa.config import require
from jepa.files import atomic_write, printable

__all__ = ["check_output", "encode_thumbnail", "html_card", "html_grid", "write_page"]

SIDE = 128  # largest side of a thumbnail, in pixels
LOSSLESS_SIDE = 64  # images of small sides are stored as PNG, without compression artifacts, and shown as pixels
JPEG_QUALITY = 85
STYLE = """
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); gap: 0.8rem 0.6rem }
.grid figure { margin: 0; min-width: 0 }
.grid figure > img { width: 100%; padding: 0; border-radius: 0.25rem; filter: none }
.grid .small > img { image-rendering: pixelated }
.grid .query > img { outline: 3px solid #0072b2 }
.grid figcaption { font-size: 0.75rem; line-height: 1.35; margin-top: 0.2rem; overflow-wrap: anywhere }
.grid figcaption b { color: inherit }
"""


def check_output(flag: str, file: Path | None, suffix: str) -> None:
    """Raise `InputError` unless `file` is a name with this suffix in an existing folder, or None."""
    if file is not None:
        require(file.suffix == suffix, f"{flag} must be a file name that ends in {suffix}, got {file.name or file}")
        require(file.parent.is_dir(), f"the folder {file.parent} of {flag} {file} does not exist; create it first")
        require(not file.is_dir(), f"{flag} {file} is a folder; give the name of a file")


def encode_thumbnail(pixels: Tensor) -> bytes:
    """Return an image (C, H, W) uint8, reduced to 128 pixels, as the content of a PNG or JPEG file."""
    array = pixels.permute(1, 2, 0).numpy()
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    if is_small(pixels):
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def is_small(pixels: Tensor) -> bool:
    """Return whether an image (C, H, W) is shown pixel by pixel."""
    return max(pixels.shape[1:]) <= LOSSLESS_SIDE


def html_card(pixels: Tensor, caption: Sequence[str], is_query: bool = False) -> str:
    """Return an image (C, H, W) with lines of text below it; the first line is set in bold."""
    kind = "png" if is_small(pixels) else "jpeg"
    source = f"data:image/{kind};base64,{base64.b64encode(encode_thumbnail(pixels)).decode()}"
    first, *rest = (escape(text) for text in caption)
    css_class = " ".join(["small"] * is_small(pixels) + ["query"] * is_query)
    image = f'<img alt="{escape(caption[-1])}" src="{source}">'
    lines = "<br>".join([f"<b>{first}</b>", *rest])
    return f'<figure class="{css_class}">{image}<figcaption>{lines}</figcaption></figure>'


def html_grid(cards: Sequence[str]) -> str:
    """Return cards in rows."""
    return '<div class="grid">\n' + "\n".join(cards) + "\n</div>"


def write_page(file: Path, title: str, sections: Sequence[str]) -> None:
    """Write a page with a title; an existing file is replaced."""
    from jepa.report.page import html_document  # imports matplotlib

    text = html_document(title, [f"<h1>{escape(title)}</h1>", *sections], STYLE)
    with atomic_write(file) as temporary:
        temporary.write_text(printable(text, keep="\n"), encoding="utf-8")
