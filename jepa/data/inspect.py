"""Inspect the images of a source for `jepa data`: sizes, colors, broken files and duplicates."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from jepa.config import InputError, require
from jepa.config.auto import DataSummary
from jepa.data.contact_sheet import contact_sheet
from jepa.data.dataset import cores, progress
from jepa.data.decode import Unreadable, decode, read_header
from jepa.data.index import EncodedImages, SplitIndex, evenly_spaced
from jepa.data.sources.base import CACHE, open_source, require_training_split
from jepa.distributed import pick_device

__all__ = ["ImageInfo", "InspectionResult", "inspect_images", "inspect_source", "summarize_source"]

GRAY_TOLERANCE = 6  # maximum difference between channels of a grayscale image, e.g. after JPEG compression
ASPECT_TOLERANCE = 0.02  # relative difference within which aspect ratios count as equal
DECODED_SIZE = 112  # side of the decoded squares in pixels
MAX_INSPECTED_IMAGES = 2000  # maximum number of images inspected by `jepa data` without --all
MAX_SUMMARY_IMAGES = 100  # maximum number of images inspected for automatic settings
MIN_ONE_ASPECT_FRACTION = 0.8  # minimum fraction of images with the median aspect ratio to adopt it
CPU_MEMORY_GB = 16.0  # memory assumed for automatic settings on the CPU
MAX_LISTED = 5  # maximum number of files, groups, classes or extensions in a list
SHEET_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class ImageInfo:
    """Properties of an image file."""

    index: int
    size: tuple[int, int]  # width and height after EXIF rotation
    mode: str  # Pillow mode
    format: str
    digest: bytes  # hash of the file content
    gray: bool = False  # whether all channels are equal, even if the file stores colors
    reason: str = ""  # reason why the file is unreadable; empty if it is readable


@dataclass(frozen=True)
class InspectionResult:
    """Properties of the inspected images of a split."""

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
        """Width and height of the image with the median shorter side."""
        ordered = sorted((image.size for image in self.readable), key=lambda size: (min(size), max(size)))
        return ordered[len(ordered) // 2]

    @property
    def median_aspect_fraction(self) -> float:
        """Fraction of readable images with the aspect ratio of the median image, within 2%."""
        width, height = self.median_size
        ratios = np.array([image.size[0] / image.size[1] for image in self.readable])
        return float((np.abs(ratios / (width / height) - 1) < ASPECT_TOLERANCE).mean())

    @property
    def gray(self) -> bool:
        """Whether all readable images are grayscale."""
        return all(image.gray for image in self.readable)

    @property
    def duplicates(self) -> list[list[str]]:
        """Groups of names of files with identical content, largest groups first."""
        groups: dict[bytes, list[int]] = {}
        for image in self.images:
            groups.setdefault(image.digest, []).append(image.index)
        same = sorted((indices for indices in groups.values() if len(indices) > 1), key=len, reverse=True)
        return [[self.files.name(index) for index in indices] for indices in same]

    @property
    def images_per_second(self) -> float:
        """Throughput of reading and decoding on all cores."""
        return len(self.images) / self.seconds


def inspect_images(index: SplitIndex, limit: int | None) -> InspectionResult:
    """Read and decode up to `limit` evenly spaced images of a split, or all images if `limit` is None."""
    count = len(index.files)
    indices = evenly_spaced(count, count if limit is None else limit)
    start = time.perf_counter()
    images: list[ImageInfo] = []
    with ThreadPoolExecutor(cores()) as pool:
        for chunk in progress(indices.split(64), "inspecting"):
            images += pool.map(lambda i: _inspect_image(index.files, i), chunk.tolist())
    return InspectionResult(index.files, images, time.perf_counter() - start)


def _inspect_image(files: EncodedImages, index: int) -> ImageInfo:
    size, mode, file_format, digest = (0, 0), "", "", b""
    try:
        file = files.read(index)
        digest = hashlib.blake2b(file, digest_size=16).digest()
        pixels = decode(file, 3, (DECODED_SIZE, DECODED_SIZE))
        gray = int(np.ptp(pixels.astype(np.int16), axis=0).max()) <= GRAY_TOLERANCE
        size, mode, file_format = read_header(file)
    except Unreadable as reason:
        digest = digest or str(index).encode()  # an unreadable file is not a duplicate of any other
        return ImageInfo(index, size, mode, file_format, digest, reason=str(reason))
    return ImageInfo(index, size, mode, file_format, digest, gray=gray)


def summarize_source(source: str, device: str, runs: Path | None = None) -> tuple[DataSummary, str]:
    """Inspect a sample of training images; return the data summary for `auto_config` and a one-line description.

    The index is cached in the folder `runs`, where training reuses it. Raises `InputError` if the source has no
    training split or no readable images.
    """
    torch_device = pick_device(device)
    opened = open_source(source, None if runs is None else runs / CACHE.name)
    require_training_split(source, opened.splits())
    index = opened.open("train")
    result = inspect_images(index, MAX_SUMMARY_IMAGES)
    if not result.readable:
        reasons = "; ".join(result.broken[:3])
        raise InputError(f"none of the {len(result.images)} inspected images of {source} can be read: {reasons}")
    width, height = result.median_size
    on_gpu = torch_device.type == "cuda"
    memory_gb = torch.cuda.get_device_properties(torch_device).total_memory / 1e9 if on_gpu else CPU_MEMORY_GB
    summary = DataSummary(
        count=len(index.files),
        height=height,
        width=width,
        one_aspect=result.median_aspect_fraction > MIN_ONE_ASPECT_FRACTION,
        gray=result.gray,
        device=torch_device.type,
        memory_gb=memory_gb,
    )
    labels = f"{len(index.classes)} classes" if index.labels is not None else "no labels"
    device_text = f"a GPU with {memory_gb:.0f} GB" if on_gpu else f"{cores()} CPU cores"
    return summary, f"{summary.count:,} images, {labels}, median size {width}x{height} pixels, {device_text}"


def inspect_source(source: str, sheet: Path, inspect_all: bool = False) -> str:
    """Describe every split of a source, inspect one of them, and save its contact sheet to the file `sheet`.

    The training split is inspected, or the alphabetically first split if there is none. Raises `InputError` if the
    source cannot be read or the extension of `sheet` is not supported.
    """
    require(
        sheet.suffix.lower() in SHEET_EXTENSIONS,
        f"--sheet must be a file name ending in {', '.join(SHEET_EXTENSIONS)}, got {sheet}",
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
    """Describe a split: number of images, size on disk, largest classes."""
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
    sampled = f"{inspected:,} of {count:,} images inspected, evenly spaced (use --all to inspect all of them)"
    lines = [f"{split}: {'all images inspected' if inspected == count else sampled}"]
    if readable := result.readable:
        modes = Counter(image.mode for image in readable).most_common()
        formats = Counter(image.format for image in readable).most_common()
        lines.append(_line("sizes", _sizes_text(result)))
        lines.append(_line("colors", ", ".join(f"{mode} {total:,}" for mode, total in modes)))
        lines.append(_line("formats", ", ".join(f"{name} {total:,}" for name, total in formats)))
        speed = f"{result.images_per_second:,.0f} images/s on {cores()} cores"
        lines.append(_line("decoding", f"{speed}, to {DECODED_SIZE}x{DECODED_SIZE} pixels"))
    groups = [" = ".join(names[:4]) + (" = …" if len(names) > 4 else "") for names in result.duplicates]
    lines += _list_lines("broken", result.broken) + _list_lines("duplicates", groups)
    if ignored := index.metadata.get("ignored"):
        counts = ", ".join(f"{total:,} {extension}" for extension, total in list(ignored.items())[:MAX_LISTED])
        lines.append(_line("ignored", counts))
    return lines


def _sizes_text(result: InspectionResult) -> str:
    sizes = sorted(dict.fromkeys(image.size for image in result.readable), key=lambda size: size[0] * size[1])
    width, height = result.median_size
    if len(sizes) == 1:
        return f"all {width}x{height} pixels"
    smallest, largest = (f"{size[0]}x{size[1]}" for size in (sizes[0], sizes[-1]))
    return (
        f"{len(sizes)} sizes from {smallest} to {largest} pixels, median {width}x{height}; "
        f"{result.median_aspect_fraction:.0%} of images have the median aspect ratio"
    )


def _list_lines(title: str, items: list[str]) -> list[str]:
    """Return the number of items and the first few, one per line."""
    if not items:
        return [_line(title, "none")]
    lines = [_line(title, f"{len(items):,}: {items[0]}"), *(_line("", item) for item in items[1:MAX_LISTED])]
    return lines + ([_line("", "…")] if len(items) > MAX_LISTED else [])
