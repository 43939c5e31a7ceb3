"""Look at the images of a source: sizes, colours, broken files, duplicates, and a contact sheet."""

from __future__ import annotations

import hashlib
import io
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps

from jepa.data.decode import FORMATS, Unreadable, decode
from jepa.data.files import Files, Listing
from jepa.data.images import cores, progress

__all__ = ["Seen", "Survey", "contact_sheet", "look"]

GREY = 6  # levels by which the channels of a grey image may differ
ORIENTATION = 0x0112  # EXIF
TURNED = (5, 6, 7, 8)


@dataclass(frozen=True)
class Seen:
    """What one file turned out to be."""

    row: int
    size: tuple[int, int]  # width and height, upright
    mode: str
    format: str
    digest: bytes
    grey: bool = False  # as it is seen, however it is stored
    reason: str = ""  # why it cannot be read


@dataclass(frozen=True)
class Survey:
    """What a look at some images of a split shows."""

    files: Files
    seen: list[Seen]
    seconds: float

    @property
    def readable(self) -> list[Seen]:
        """Those that are images."""
        return [one for one in self.seen if not one.reason]

    @property
    def broken(self) -> list[str]:
        """Name and reason of those that are not."""
        return [f"{self.files.name(one.row)}: {one.reason}" for one in self.seen if one.reason]

    @property
    def middle(self) -> tuple[int, int]:
        """Width and height of the image whose shorter side is the median."""
        ordered = sorted((one.size for one in self.readable), key=lambda size: (min(size), max(size)))
        return ordered[len(ordered) // 2]

    @property
    def one_aspect(self) -> float:
        """Share of the images that have the aspect of the one in the middle, to 2 %."""
        width, height = self.middle
        ratios = np.array([one.size[0] / one.size[1] for one in self.readable])
        return float((np.abs(ratios / (width / height) - 1) < 0.02).mean())

    @property
    def grey(self) -> bool:
        """Whether all of them are grey."""
        return all(one.grey for one in self.readable)

    @property
    def modes(self) -> Counter[str]:
        """How many there are of each of Pillow's modes."""
        return Counter(one.mode for one in self.readable)

    @property
    def formats(self) -> Counter[str]:
        """How many there are of each file format."""
        return Counter(one.format for one in self.readable)

    @property
    def duplicates(self) -> list[list[str]]:
        """Names of files with the same content, the largest groups first."""
        groups: dict[bytes, list[int]] = {}
        for one in self.seen:
            groups.setdefault(one.digest, []).append(one.row)
        same = sorted((rows for rows in groups.values() if len(rows) > 1), key=len, reverse=True)
        return [[self.files.name(row) for row in rows] for rows in same]

    @property
    def rate(self) -> float:
        """Images read and decoded a second, on all cores."""
        return len(self.seen) / self.seconds


def look(listing: Listing, limit: int | None, canvas: int = 112) -> Survey:
    """Read and decode up to `limit` images (None: all), spread evenly, to squares of `canvas` pixels."""
    count = len(listing.files)
    rows = torch.linspace(0, count - 1, count if limit is None else min(limit, count), dtype=torch.float64)
    rows = rows.round().long()
    began = time.perf_counter()
    seen: list[Seen] = []
    with ThreadPoolExecutor(cores()) as pool:
        for part in progress(rows.split(64), "looking"):
            seen += pool.map(lambda row: examine(listing.files, row, canvas), part.tolist())
    return Survey(listing.files, seen, time.perf_counter() - began)


def examine(files: Files, row: int, canvas: int) -> Seen:
    """Read one file for what it is, and see whether it decodes."""
    size, mode, kind, digest = (0, 0), "", "", b""
    try:
        file = files.read(row)
        digest = hashlib.blake2b(file, digest_size=16).digest()
        pixels = decode(file, 3, (canvas, canvas))
        grey = int(np.ptp(pixels.astype(np.int16), axis=0).max()) <= GREY
        with Image.open(io.BytesIO(file), formats=FORMATS) as image:
            size, mode, kind = image.size, image.mode, image.format or ""
            if kind != "TIFF" and image.getexif().get(ORIENTATION) in TURNED:  # a TIFF's size is upright already
                size = size[::-1]
    except Unreadable as reason:
        return Seen(row, size, mode, kind, digest or str(row).encode(), reason=str(reason))
    return Seen(row, size, mode, kind, digest, grey)


def contact_sheet(listing: Listing, survey: Survey, columns: int = 8, cell: int = 144) -> Image.Image:
    """Lay up to columns² of the images out on one sheet, whole, with their class under them where there is one."""
    readable = survey.readable
    chosen = [
        readable[i] for i in np.linspace(0, len(readable) - 1, min(columns**2, len(readable))).round().astype(int)
    ]
    caption = 16 if listing.labels is not None else 0
    rows = -(-len(chosen) // columns)
    gap = 8
    sheet = Image.new("RGB", (columns * (cell + gap) + gap, rows * (cell + caption + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for number, one in enumerate(chosen):
        factor = cell / max(one.size)
        height, width = (max(1, round(length * factor)) for length in reversed(one.size))
        pixels = decode(listing.files.read(one.row), 3, (height, width))
        left = gap + (number % columns) * (cell + gap)
        top = gap + number // columns * (cell + caption + gap)
        picture = ImageOps.expand(Image.fromarray(pixels.transpose(1, 2, 0)), 1, "#cccccc")
        sheet.paste(picture, (left + (cell - width) // 2, top + (cell - height) // 2))
        if listing.labels is not None:
            word = " ".join(listing.classes[int(listing.labels[one.row])].split())
            while draw.textlength(word) > cell:
                word = word[:-2].rstrip("…") + "…"
            draw.text((left + cell / 2, top + cell + 2), word, fill="black", anchor="ma")
    return sheet
