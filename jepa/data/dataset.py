"""A split of a source as uint8 images of one size, decoded on demand and cached in a file."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from jepa.config import DataConfig, InputError
from jepa.data.decode import Unreadable, decode
from jepa.data.index import EncodedImages, SplitIndex, evenly_spaced
from jepa.data.pixel_cache import PixelCache
from jepa.data.sources.base import open_source, require_training_split

__all__ = ["DecodedBatch", "ImageDataset", "cores", "open_dataset", "progress"]

DECODER_VERSION = 1  # increase it when `decode` returns other pixels than before, so that caches are written again
EAGER_DECODE_BYTES = 300e6  # encoded sets up to this size are decoded before training starts, which takes seconds
SHAPE_IMAGES = 32  # images that are decoded to find the common shape
MAX_THREADS = 16  # threads that decode


def progress(chunks: Sequence[Tensor], description: str) -> Iterator[Tensor]:
    """Yield chunks of indices, with a progress bar over the images if it takes more than two seconds."""
    total = sum(len(chunk) for chunk in chunks)
    with tqdm(desc=description, total=total, unit=" images", delay=2, leave=False) as bar:
        for chunk in chunks:
            yield chunk
            bar.update(len(chunk))


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class DecodedBatch:
    """The decoded images at some indices of a dataset."""

    pixels: Tensor  # (B, C, H, W) uint8; black if a file is unreadable
    indices: Tensor  # (B,)
    unreadable: dict[int, str]  # reason by index

    @property
    def readable(self) -> Tensor:
        """Whether each image could be read, (B,) bool."""
        return torch.tensor([index not in self.unreadable for index in self.indices.tolist()], dtype=torch.bool)


@dataclass
class ImageDataset:
    """Images of one size, with labels if the source has them."""

    name: str
    files: EncodedImages
    labels: Tensor | None  # (N,) long
    classes: tuple[str, ...]
    shape: tuple[int, int, int]  # C, H, W of every image
    canvas: tuple[int, int] | None = None  # height and width to crop to; None if all images have one size
    cache: PixelCache | None = None
    signature: str = ""  # changes when files are added, removed or modified
    unreadable: dict[int, str] = field(default_factory=dict)  # reason by index, of the images read so far

    def __len__(self) -> int:
        return len(self.files)

    @property
    def nbytes(self) -> int:
        """Size of all decoded images in bytes."""
        return len(self) * math.prod(self.shape)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        """The threads that decode. Pillow releases the interpreter lock while it decodes."""
        return ThreadPoolExecutor(min(MAX_THREADS, cores()), thread_name_prefix="decode")

    def read(self, indices: Tensor, threads: bool = True) -> DecodedBatch:
        """Decode the images at `indices` (B,), with several threads unless `threads` is False."""
        numbers = indices.tolist()
        cache = self.cache
        if cache is not None and cache.verified[numbers].all():
            return DecodedBatch(cache.tensor[indices], indices, {})
        pixels = np.zeros((len(numbers), *self.shape), np.uint8)
        unreadable: dict[int, str] = {}

        def read_one(position: int) -> None:
            try:
                pixels[position] = self._read_image(numbers[position])
            except Unreadable as reason:
                unreadable[numbers[position]] = str(reason)

        positions = range(len(numbers))
        list(self._pool.map(read_one, positions, chunksize=4) if threads else map(read_one, positions))
        self.unreadable |= unreadable
        return DecodedBatch(torch.from_numpy(pixels), indices, unreadable)

    def _read_image(self, index: int) -> np.ndarray:
        """Return one image (C, H, W), from the cache if it is there. Raises `Unreadable`."""
        if self.cache is not None and self.cache.has(index):
            return np.asarray(self.cache.pixels[index])
        pixels = decode(self.files.read(index), self.shape[0], self.canvas)
        if pixels.shape != self.shape:
            raise Unreadable(
                f"its size is {pixels.shape[2]}x{pixels.shape[1]} pixels, that of other images is "
                f"{self.shape[2]}x{self.shape[1]}; crop all images to one size with --data.canvas PIXELS"
            )
        if self.cache is not None:
            self.cache.write(index, pixels)
        return pixels


def open_dataset(config: DataConfig, split: str = "train", cache: Path | None = None) -> ImageDataset | None:
    """Open a split, `train` or `test`, of the source that a config names.

    If the source has no `test` split with labels, its `validation` split is used instead; None is returned if it has
    neither. Indexes and decoded images are kept in the folder `cache`. Raises `InputError` if the source is missing,
    holds no images, or cannot be read.
    """
    source = open_source(config.source, cache)
    splits = source.splits()
    if split == "train":
        require_training_split(config.source, splits)
    dataset = None
    for name in ("test", "validation") if split == "test" else (split,):
        if name in splits and (dataset is None or dataset.labels is None):  # the labels of a test split may be hidden
            dataset = _build_dataset(source.open(name), config, name, source.cache)
    return dataset


def _build_dataset(index: SplitIndex, config: DataConfig, split: str, cache: Path) -> ImageDataset:
    """Decide how the images of a split are decoded, and decode small sets at once."""
    name = f"{config.source} ({split})"
    canvas = None if config.canvas is None else config.canvas_size
    shape = (config.channels, *canvas) if canvas is not None else _common_shape(index.files, config.channels, name)
    dataset = ImageDataset(
        name=name,
        files=index.files,
        labels=index.labels,
        classes=index.classes,
        shape=shape,
        canvas=canvas,
        signature=index.metadata["signature"],
    )
    if dataset.nbytes <= config.cache_gb * 1e9:
        dataset.cache = _open_cache(dataset, split, cache)
        if index.files.nbytes <= EAGER_DECODE_BYTES and not dataset.cache.complete:
            for indices in progress(torch.arange(len(dataset)).split(500), f"decoding {name}"):
                dataset.read(indices)
    return dataset


def _open_cache(dataset: ImageDataset, split: str, folder: Path) -> PixelCache:
    """Open the cache of a dataset, and remove those of its split from before the files changed."""
    channels, height, width = dataset.shape
    prefix = f"{split}-{width}x{height}x{channels}-{'cut' if dataset.canvas else 'whole'}"
    path = folder / f"{prefix}-{dataset.signature}-{DECODER_VERSION}.pixels"
    for old in folder.glob(f"{prefix}-*.pixels"):
        if old != path:
            old.unlink(missing_ok=True)
            old.with_suffix(".crc32").unlink(missing_ok=True)
    try:
        return PixelCache(path, len(dataset), dataset.shape)
    except OSError as error:
        raise InputError(
            f"{dataset.nbytes / 1e9:.1f} GB of decoded images cannot be cached in {folder} ({error.strerror}); free "
            "disk space, or give --data.cache-gb 0 to decode them in every epoch"
        ) from error


def _common_shape(files: EncodedImages, channels: int, name: str) -> tuple[int, int, int]:
    """Return the shape (C, H, W) that some of the images have. Raises `InputError` if they differ."""
    shapes: set[tuple[int, ...]] = set()
    reasons = []
    for index in evenly_spaced(len(files), SHAPE_IMAGES).tolist():
        try:
            shapes.add(decode(files.read(index), channels).shape)
        except Unreadable as reason:
            reasons.append(f"{files.name(index)}: {reason}")
    if not shapes:
        raise InputError(f"no image of {name} can be read: {'; '.join(reasons[:3])}")
    if len(shapes) > 1:
        sizes = " and ".join(f"{shape[2]}x{shape[1]}" for shape in sorted(shapes)[:2])
        raise InputError(
            f"the images of {name} differ in size, {sizes} for example; crop them to one size with --data.canvas "
            "PIXELS (a square) or --data.canvas HEIGHT WIDTH"
        )
    channels, height, width = shapes.pop()
    return channels, height, width
