"""A dataset split as uint8 images of a single size, decoded on demand and cached on disk."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor
from tqdm import tqdm

from jepa.config import DataConfig, InputError, require, suggest
from jepa.data.decode import Unreadable, decode
from jepa.data.index import EncodedImages, SplitIndex, evenly_spaced
from jepa.data.labels import align_classes
from jepa.data.pixel_cache import PixelCache
from jepa.data.sources.base import Source, open_source, require_training_split
from jepa.files import printable

__all__ = ["DECODER", "DecodedBatch", "ImageDataset", "cores", "open_dataset", "open_splits", "progress"]

DECODER_VERSION = 3  # bump when the pixels returned by `decode` change, to invalidate caches
DECODER = f"{DECODER_VERSION}-{PIL.__version__}"  # changes when pixels may change
EAGER_DECODE_BYTES = 300e6  # encoded splits up to this size are decoded before training, which takes seconds
SHAPE_IMAGES = 32  # number of images decoded to find the common shape
MAX_THREADS = 16  # maximum number of decoding threads


def progress(chunks: Sequence[Tensor], description: str) -> Iterator[Tensor]:
    """Yield chunks of indices, and show a progress bar if this takes more than two seconds."""
    total = sum(len(chunk) for chunk in chunks)
    with tqdm(desc=printable(description), total=total, unit=" images", delay=2, leave=False, disable=None) as bar:
        for chunk in chunks:
            yield chunk
            bar.update(len(chunk))


def cores() -> int:
    """Return the number of CPU cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class DecodedBatch:
    """Decoded images for a batch of dataset indices."""

    pixels: Tensor  # (B, C, H, W) uint8; unreadable images are black
    indices: Tensor  # (B,)
    unreadable: dict[int, str]  # maps indices of unreadable images to reasons

    @property
    def readable(self) -> Tensor:
        """Mask of the readable images, (B,) bool."""
        return torch.tensor([index not in self.unreadable for index in self.indices.tolist()], dtype=torch.bool)


@dataclass
class ImageDataset:
    """Images of a single size, with labels if the source has them."""

    name: str
    files: EncodedImages
    labels: Tensor | None  # (N,) long; -1 for unlabeled images
    classes: tuple[str, ...]
    shape: tuple[int, int, int]  # C, H, W of every image
    canvas: tuple[int, int] | None = None  # height and width to crop to; None if all images have the same size
    cache: PixelCache | None = None
    signature: str = ""  # changes when files are added, removed or modified
    why_no_labels: str = ""  # the reason if no image has a label
    notes: tuple[str, ...] = ()  # what may be wrong with the split, in one sentence each
    unreadable: dict[int, str] = field(default_factory=dict)  # maps indices to reasons, for the images read so far

    def __len__(self) -> int:
        return len(self.files)

    @property
    def nbytes(self) -> int:
        """Size of all decoded images in bytes."""
        return len(self) * math.prod(self.shape)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        """Pool of decoding threads. Pillow releases the GIL while it decodes."""
        return ThreadPoolExecutor(min(MAX_THREADS, cores()), thread_name_prefix="decode")

    def read(self, indices: Tensor, threads: bool = True) -> DecodedBatch:
        """Decode the images at `indices` (B,), on multiple threads unless `threads` is False."""
        image_ids = indices.tolist()
        cache = self.cache
        if cache is not None and cache.verified[image_ids].all():
            return DecodedBatch(cache.tensor[indices], indices, {})
        pixels = np.zeros((len(image_ids), *self.shape), np.uint8)
        unreadable: dict[int, str] = {}

        def read_one(position: int) -> None:
            try:
                pixels[position] = self._read_image(image_ids[position])
            except Unreadable as reason:
                unreadable[image_ids[position]] = str(reason)

        positions = range(len(image_ids))
        list(self._pool.map(read_one, positions, chunksize=4) if threads else map(read_one, positions))
        self.unreadable |= unreadable
        return DecodedBatch(torch.from_numpy(pixels), indices, unreadable)

    def _read_image(self, index: int) -> np.ndarray:
        """Return one image (C, H, W), from the cache if possible.

        Raises `Unreadable` if it cannot be decoded or its size differs from `shape`.
        """
        if self.cache is not None and self.cache.has(index):
            return np.asarray(self.cache.pixels[index])
        pixels = decode(self.files.read(index), self.shape[0], self.canvas)
        if pixels.shape != self.shape:
            raise Unreadable(
                f"it is {pixels.shape[2]}x{pixels.shape[1]} pixels, but other images are "
                f"{self.shape[2]}x{self.shape[1]}; crop all images to the same size with --data.canvas PIXELS"
            )
        if self.cache is not None:
            self.cache.write(index, pixels)
        return pixels


def open_dataset(config: DataConfig, split: str = "train", cache: Path | None = None) -> ImageDataset | None:
    """Open the `train` or `test` split of the config's source.

    If `test` is missing or has no labels, falls back to `validation`; returns None if neither exists. Its labels number
    the classes of the training split, by name, and then the classes without training images. Indexes and decoded images
    are stored in the folder `cache`. Raises `InputError` if the source is missing, contains no images,
    or cannot be read.
    """
    source = open_source(config.source, cache)
    splits = source.splits()
    if split == "train":
        require_training_split(config.source, splits)
    names = [name for name in (("test", "validation") if split == "test" else (split,)) if name in splits]
    indexes = {name: source.open(name) for name in names}
    name = next((name for name in names if indexes[name].labels is not None), next(iter(names), None))  # may be hidden
    if name is None:
        return None
    return _build_dataset(_align(indexes[name], name, source, splits), config, name, source.cache)


def open_splits(config: DataConfig, split: str | None = None, cache: Path | None = None) -> dict[str, ImageDataset]:
    """Open all splits of the config's source, `train` first, or only the one named `split`.

    Labels are numbered as in `open_dataset`. Raises `InputError` if the source is missing, contains no images, has no
    such split, or cannot be read.
    """
    source = open_source(config.source, cache)
    splits = sorted(source.splits(), key=lambda name: (name != "train", name))
    near = suggest(split or "", splits) or "; give one of them"
    require(split in (None, *splits), f"{config.source} has no split '{split}', only {', '.join(splits)}{near}")
    return {
        name: _build_dataset(_align(source.open(name), name, source, splits), config, name, source.cache)
        for name in splits
        if split in (None, name)
    }


def _align(index: SplitIndex, name: str, source: Source, splits: Sequence[str]) -> SplitIndex:
    """Return the index of a split with labels that number the classes of the training split, if there is one."""
    return index if name == "train" or "train" not in splits else align_classes(index, source.open("train"))


def _build_dataset(index: SplitIndex, config: DataConfig, split: str, cache: Path) -> ImageDataset:
    """Build the dataset of a split; decode small ones immediately."""
    name = printable(f"{config.source} ({split})")
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
        why_no_labels=index.metadata.get("why_no_labels", ""),
        notes=tuple(index.metadata.get("notes", ())),
    )
    if dataset.nbytes <= config.cache_gb * 1e9:
        dataset.cache = _open_cache(dataset, split, cache)
        if dataset.cache and index.files.nbytes <= EAGER_DECODE_BYTES and not dataset.cache.complete:
            for indices in progress(torch.arange(len(dataset)).split(500), f"decoding {name}"):
                dataset.read(indices)
    return dataset


def _open_cache(dataset: ImageDataset, split: str, folder: Path) -> PixelCache | None:
    """Open the cache of a dataset, and delete stale ones of the same split; add a note if it cannot be written."""
    channels, height, width = dataset.shape
    prefix = f"{split}-{width}x{height}x{channels}-{'cut' if dataset.canvas else 'whole'}"
    path = folder / f"{prefix}-{dataset.signature}-{DECODER}.pixels"
    try:
        for old in folder.glob(f"{prefix}-*.pixels"):
            if old != path:
                old.unlink(missing_ok=True)
                old.with_suffix(".crc32").unlink(missing_ok=True)
        return PixelCache(path, len(dataset), dataset.shape)
    except OSError as error:
        dataset.notes += (
            f"{dataset.nbytes / 1e9:.1f} GB of decoded images cannot be cached in {folder} ({error.strerror}), so they "
            "are decoded in every epoch",
        )
        return None


def _common_shape(files: EncodedImages, channels: int, name: str) -> tuple[int, int, int]:
    """Return the most common shape (C, H, W) of a sample of images.

    Raises `InputError` if more than a tenth of them have other sizes, or none is readable.
    """
    shapes: Counter[tuple[int, ...]] = Counter()
    reasons = []
    for index in evenly_spaced(len(files), SHAPE_IMAGES).tolist():
        try:
            shapes[decode(files.read(index), channels).shape] += 1
        except Unreadable as reason:
            reasons.append(f"{files.name(index)}: {reason}")
    if not shapes:
        raise InputError(f"none of the sampled images of {name} can be read: {'; '.join(reasons[:3])}")
    (shape, count), *others = shapes.most_common()
    if (shapes.total() - count) * 10 > shapes.total():
        sizes = " and ".join(f"{width}x{height}" for _, height, width in sorted((shape, others[0][0])))
        raise InputError(
            f"the images of {name} differ in size, for example {sizes}; crop them to the same size with --data.canvas "
            "PIXELS (a square) or --data.canvas HEIGHT WIDTH"
        )
    channels, height, width = shape
    return channels, height, width
