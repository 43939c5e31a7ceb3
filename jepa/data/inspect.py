"""Inspect the images of a source: sizes, colors, broken files and duplicates. `jepa data` prints the result."""

from __future__ import annotations

import hashlib
import io
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image

from jepa.config import InputError, require
from jepa.config.auto import DataSummary
from jepa.data.contact_sheet import contact_sheet
from jepa.data.dataset import cores, progress
from jepa.data.decode import FORMATS, Unreadable, decode
from jepa.data.index import EncodedImages, SplitIndex, evenly_spaced
from jepa.data.sources.base import CACHE, open_source, require_training_split
from jepa.distributed import pick_device

__all__ = ["ImageInfo", "InspectionResult", "inspect_images", "inspect_source", "summarize_source"]

GRAY_TOLERANCE = 6  # levels by which the channels of a gray image may differ, as after JPEG compression
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations in which width and height are exchanged
ASPECT_TOLERANCE = 0.02
DECODED_SIZE = 112  # images are decoded to squares of this side, in pixels
MAX_INSPECTED_IMAGES = 2000  # by `jepa data`, unless --all is given
MAX_SUMMARY_IMAGES = 100  # inspected for automatic settings
MIN_SHARE_ONE_ASPECT = 0.8
CPU_MEMORY_GB = 16.0  # assumed for automatic settings
MAX_LISTED = 5  # files, groups, classes or extensions in one list
SHEET_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class ImageInfo:
    """The properties of one file."""

    index: int
    size: tuple[int, int]  # width and height, after rotation by the EXIF orientation
    mode: str  # of Pillow
    format: str
    digest: bytes  # of the content of the file
    gray: bool = False  # whether the channels are equal, even if the file stores colors
    reason: str = ""  # why it is unreadable; empty if it is readable


@dataclass(frozen=True)
class InspectionResult:
    """The properties of the inspected images of a split."""

    files: EncodedImages
    images: list[ImageInfo]
    seconds: float

    @property
    def readable(self) -> list[ImageInfo]:
        """The readable images."""
        return [image for image in self.images if not image.reason]

    @property
    def sizes(self) -> dict[int, tuple[int, int]]:
        """Width and height of each readable image, by index."""
        return {image.index: image.size for image in self.readable}

    @property
    def broken(self) -> list[str]:
        """Name and reason of each unreadable file."""
        return [f"{self.files.name(image.index)}: {image.reason}" for image in self.images if image.reason]

    @property
    def median_size(self) -> tuple[int, int]:
        """Width and height of the image whose shorter side is the median."""
        ordered = sorted((image.size for image in self.readable), key=lambda size: (min(size), max(size)))
        return ordered[len(ordered) // 2]

    @property
    def share_of_median_aspect(self) -> float:
        """Share of the images that have the aspect ratio of the median image, to 2%."""
        width, height = self.median_size
        ratios = np.array([image.size[0] / image.size[1] for image in self.readable])
        return float((np.abs(ratios / (width / height) - 1) < ASPECT_TOLERANCE).mean())

    @property
    def gray(self) -> bool:
        """Whether all images are gray."""
        return all(image.gray for image in self.readable)

    @property
    def duplicates(self) -> list[list[str]]:
        """Names of files with the same content, the largest groups first."""
        groups: dict[bytes, list[int]] = {}
        for image in self.images:
            groups.setdefault(image.digest, []).append(image.index)
        same = sorted((indices for indices in groups.values() if len(indices) > 1), key=len, reverse=True)
        return [[self.files.name(index) for index in indices] for indices in same]

    @property
    def images_per_second(self) -> float:
        """Speed of reading and decoding on all cores."""
        return len(self.images) / self.seconds


def inspect_images(index: SplitIndex, limit: int | None) -> InspectionResult:
    """Read and decode up to `limit` evenly spaced images of a split, or all if it is None."""
    count = len(index.files)
    indices = evenly_spaced(count, count if limit is None else limit)
    start = time.perf_counter()
    images: list[ImageInfo] = []
    with ThreadPoolExecutor(cores()) as pool:
        for chunk in progress(indices.split(64), "inspecting"):
            images += pool.map(lambda number: _inspect_image(index.files, number), chunk.tolist())
    return InspectionResult(index.files, images, time.perf_counter() - start)


def _inspect_image(files: EncodedImages, index: int) -> ImageInfo:
    size, mode, file_format, digest = (0, 0), "", "", b""
    try:
        file = files.read(index)
        digest = hashlib.blake2b(file, digest_size=16).digest()
        pixels = decode(file, 3, (DECODED_SIZE, DECODED_SIZE))
        gray = int(np.ptp(pixels.astype(np.int16), axis=0).max()) <= GRAY_TOLERANCE
        with Image.open(io.BytesIO(file), formats=FORMATS) as image:
            size, mode, file_format = image.size, image.mode, image.format or ""
            orientation = image.getexif().get(ExifTags.Base.Orientation)
            if file_format != "TIFF" and orientation in QUARTER_TURNS:  # Pillow has applied it to the size of a TIFF
                size = size[::-1]
    except Unreadable as reason:
        digest = digest or str(index).encode()  # a file that cannot be read is no duplicate of another
        return ImageInfo(index, size, mode, file_format, digest, reason=str(reason))
    return ImageInfo(index, size, mode, file_format, digest, gray=gray)


def summarize_source(source: str, device: str, runs: Path | None = None) -> tuple[DataSummary, str]:
    """Inspect some training images; return the properties of images and device for `auto_config`, and a line of text.

    The index is cached in the folder `runs`, where training opens it again. Raises `InputError` if the source has no
    training split or no readable images.
    """
    chosen = pick_device(device)
    opened = open_source(source, None if runs is None else runs / CACHE.name)
    require_training_split(source, opened.splits())
    index = opened.open("train")
    result = inspect_images(index, MAX_SUMMARY_IMAGES)
    if not result.readable:
        reasons = "; ".join(result.broken[:3])
        raise InputError(f"none of {len(result.images)} images of {source} can be read: {reasons}")
    width, height = result.median_size
    on_gpu = chosen.type == "cuda"
    memory_gb = torch.cuda.get_device_properties(chosen).total_memory / 1e9 if on_gpu else CPU_MEMORY_GB
    summary = DataSummary(
        count=len(index.files),
        height=height,
        width=width,
        one_aspect=result.share_of_median_aspect > MIN_SHARE_ONE_ASPECT,
        gray=result.gray,
        device=chosen.type,
        memory_gb=memory_gb,
    )
    labels = f"{len(index.classes)} classes" if index.labels is not None else "no labels"
    device_text = f"a GPU with {memory_gb:.0f} GB" if on_gpu else f"{cores()} CPU cores"
    return summary, f"{summary.count:,} images, {labels}, median size {width}x{height} pixels, {device_text}"


def inspect_source(source: str, sheet: Path, inspect_all: bool = False) -> str:
    """Describe every split of a source, inspect one of them, and write its contact sheet to the file `sheet`.

    The training split is inspected, or the first by name if there is none. Raises `InputError` if the source cannot be
    read or if the name of the sheet has an unknown extension.
    """
    require(
        sheet.suffix.lower() in SHEET_EXTENSIONS,
        f"--sheet is {sheet}; it takes a file name that ends in {', '.join(SHEET_EXTENSIONS)}",
    )
    opened = open_source(source)
    indexes = {split: opened.open(split) for split in opened.splits()}
    first = "train" if "train" in indexes else min(indexes)
    order = [first, *sorted(indexes.keys() - {first})]
    result = inspect_images(indexes[first], None if inspect_all else MAX_INSPECTED_IMAGES)
    lines = [source, *(_line(split, _split_text(indexes[split])) for split in order), ""]
    lines += _inspection_lines(first, indexes[first], result)
    if result.readable:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(indexes[first], result.sizes).save(sheet)
        lines += ["", f"contact sheet: {sheet}"]
    return "\n".join(lines)


def _line(title: str, text: str) -> str:
    return f"  {title:<11} {text}"


def _split_text(index: SplitIndex) -> str:
    """Return number and size of the images of a split, and its most frequent classes."""
    count = f"{len(index.files):,} images, {_bytes_text(index.files.nbytes)}"
    if index.labels is None:
        reason = index.metadata.get("why_no_labels")
        return f"{count}, no labels{f' because {reason}' if reason else ''}"
    class_sizes = torch.bincount(index.labels, minlength=len(index.classes))
    order = class_sizes.argsort(descending=True, stable=True).tolist()
    largest = ", ".join(f"{index.classes[label]} {int(class_sizes[label]):,}" for label in order[:MAX_LISTED])
    return f"{count}, {len(index.classes)} classes: {largest}{', …' if len(order) > MAX_LISTED else ''}"


def _bytes_text(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def _inspection_lines(split: str, index: SplitIndex, result: InspectionResult) -> list[str]:
    """Describe the inspected images of a split."""
    count, inspected = len(index.files), len(result.images)
    some = f"{inspected:,} of {count:,} images inspected, evenly spaced (--all inspects all of them)"
    lines = [f"{split}: {'all images inspected' if inspected == count else some}"]
    if readable := result.readable:
        modes = Counter(image.mode for image in readable).most_common()
        formats = Counter(image.format for image in readable).most_common()
        lines.append(_line("sizes", _sizes_text(result)))
        lines.append(_line("colors", ", ".join(f"{mode} {number:,}" for mode, number in modes)))
        lines.append(_line("formats", ", ".join(f"{name} {number:,}" for name, number in formats)))
        speed = f"{result.images_per_second:,.0f} images/s on {cores()} cores"
        lines.append(_line("decoding", f"{speed}, to {DECODED_SIZE}x{DECODED_SIZE} pixels"))
    groups = [" = ".join(names[:4]) + (" = …" if len(names) > 4 else "") for names in result.duplicates]
    lines += _list_lines("broken", result.broken) + _list_lines("duplicates", groups)
    if ignored := index.metadata.get("ignored"):
        others = ", ".join(f"{number:,} {extension}" for extension, number in list(ignored.items())[:MAX_LISTED])
        lines.append(_line("ignored", others))
    return lines


def _sizes_text(result: InspectionResult) -> str:
    sizes = sorted(dict.fromkeys(image.size for image in result.readable), key=lambda size: size[0] * size[1])
    width, height = result.median_size
    if len(sizes) == 1:
        return f"all {width}x{height} pixels"
    smallest, largest = (f"{size[0]}x{size[1]}" for size in (sizes[0], sizes[-1]))
    return (
        f"{len(sizes)} from {smallest} to {largest} pixels, median {width}x{height}; "
        f"{result.share_of_median_aspect:.0%} of the images have the median's aspect ratio"
    )


def _list_lines(title: str, items: list[str]) -> list[str]:
    """Return the number of items and the first of them, one per line."""
    if not items:
        return [_line(title, "none")]
    lines = [_line(title, f"{len(items):,}: {items[0]}"), *(_line("", item) for item in items[1:MAX_LISTED])]
    return lines + ([_line("", "…")] if len(items) > MAX_LISTED else [])
