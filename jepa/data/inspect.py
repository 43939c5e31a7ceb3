"""Inspect the images of a source: sizes, colors and broken files."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from jepa.config import InputError
from jepa.config.auto import DataSummary
from jepa.data.dataset import cores, progress
from jepa.data.decode import Unreadable, decode, read_header
from jepa.data.index import EncodedImages, SplitIndex, evenly_spaced
from jepa.data.sources.base import CACHE, open_source, require_training_split
from jepa.distributed import pick_device

__all__ = ["DECODED_SIZE", "ImageInfo", "InspectionResult", "inspect_images", "summarize_source"]

GRAY_TOLERANCE = 6  # maximum difference between channels of a grayscale image, e.g. after JPEG compression
ASPECT_TOLERANCE = 0.02  # relative difference within which aspect ratios count as equal
DECODED_SIZE = 112  # side of the decoded squares in pixels
MAX_SUMMARY_IMAGES = 100  # maximum number of images inspected for automatic settings
MIN_ONE_ASPECT_FRACTION = 0.8  # minimum fraction of images with the median aspect ratio to adopt it
CPU_MEMORY_GB = 16.0  # memory assumed for automatic settings on the CPU


@dataclass(frozen=True)
class ImageInfo:
    """Properties of an image file."""

    index: int
    size: tuple[int, int]  # width and height after EXIF rotation
    mode: str  # Pillow mode
    format: str
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
    size, mode, file_format = (0, 0), "", ""
    try:
        file = files.read(index)
        pixels = decode(file, 3, (DECODED_SIZE, DECODED_SIZE))
        gray = int(np.ptp(pixels.astype(np.int16), axis=0).max()) <= GRAY_TOLERANCE
        size, mode, file_format = read_header(file)
    except Unreadable as reason:
        return ImageInfo(index, size, mode, file_format, reason=str(reason))
    return ImageInfo(index, size, mode, file_format, gray=gray)


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
    device_text = f"a GPU with {memory_gb:.0f} GB" if on_gpu else f"{cores()} CPU core{'s' * (cores() > 1)}"
    return summary, f"{summary.count:,} images, {labels}, median size {width}x{height} pixels, {device_text}"
