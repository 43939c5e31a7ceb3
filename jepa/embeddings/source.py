"""A source of images as a trained model sees them: all splits, or one of them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from jepa.config import InputError
from jepa.data import (
    DECODER,
    ImageDataset,
    SplitIndex,
    auto_workers,
    cache_beside,
    max_unreadable,
    open_splits,
    read_ahead,
)
from jepa.data.labels import unnamed
from jepa.distributed import pick_precision
from jepa.evaluation.features import BATCH_SIZE, encode_readable, weights_digest
from jepa.interop import Model, load_model
from jepa.version import __version__

__all__ = ["Image", "SourceImages"]


@dataclass(frozen=True)
class Image:
    """An image of a source, by its place in a split."""

    split: str
    index: int


@dataclass(frozen=True)
class SourceImages:
    """The images of a source with a model that encodes them, in the same way as `Model.embed`."""

    model: Model
    model_name: str  # name of the run folder or file
    name: str  # the source, as given
    splits: dict[str, ImageDataset]
    cache: Path  # root of all caches
    max_broken: float

    @classmethod
    def open(cls, model: Path, source: str, split: str | None = None, max_broken: float | None = None) -> SourceImages:
        """Open a model and the images of a source, of all splits or of one.

        `max_broken` is the fraction of images that may be unreadable, by default that of the model's training. Raises
        `InputError` if the model or the images cannot be opened.
        """
        loaded = load_model(model)
        folder = run_folder(model)
        cache = cache_beside(folder)
        data = dataclasses.replace(
            loaded.data,
            source=source,
            canvas=loaded.canvas,  # always, so that features are those of `Model.embed`
            cache_gb=0.0,  # decoded images are used only once
            max_broken=loaded.data.max_broken if max_broken is None else max_broken,
        )
        splits = open_splits(data, split, cache)
        return cls(
            model=loaded,
            model_name=folder.resolve().name,
            name=source,
            splits=splits,
            cache=cache,
            max_broken=data.max_broken,
        )

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        """Precision of the forward pass, the same as that of `jepa evaluate`."""
        return pick_precision("auto", self.model.device)

    @cached_property
    def model_digest(self) -> str:
        """Hash of the weights and layers of the model."""
        encoder = self.model.encoder
        return hashlib.blake2b(f"{weights_digest(encoder)} {encoder}".encode(), digest_size=16).hexdigest()

    @property
    def key(self) -> dict[str, Any]:
        """What the features depend on: JSON values by name."""
        return {
            "model": self.model_digest,
            "image size": [*self.model.canvas, *self.model.encoder.size, self.model.data.channels],
            "version of image-jepa": [__version__, DECODER],
            "precision": self.precision,
            "images": {name: [dataset.signature, len(dataset)] for name, dataset in self.splits.items()},
        }

    @property
    def has_classes(self) -> bool:
        """Whether any image has a label."""
        return any(dataset.labels is not None for dataset in self.splits.values())

    def path(self, image: Image) -> str:
        """Return the path of an image in its source, or its row number if the source contains the images."""
        return self.splits[image.split].files.name(image.index)

    def label(self, image: Image) -> str | None:
        """Return the class name of an image, or None if it has no label."""
        dataset = self.splits[image.split]
        number = -1 if dataset.labels is None else int(dataset.labels[image.index])
        if number < 0:
            return None
        return dataset.classes[number] if number < len(dataset.classes) else unnamed(number, dataset.classes)

    def describe(self, images: Sequence[Image]) -> str:
        """Return the number of images in each split, as in `train 3 and test 1`."""
        return counts_text(Counter(image.split for image in images))

    def pixels(self, image: Image) -> Tensor:
        """Return an image (C, H, W) uint8 as the model sees it; see `read`."""
        return self.read([image])[0]

    def read(self, images: Sequence[Image]) -> Tensor:
        """Return images (B, C, H, W) uint8 as the model sees them.

        Raises `InputError` if one cannot be read any more.
        """
        pixels = torch.empty(len(images), self.model.data.channels, *self.model.canvas, dtype=torch.uint8)
        for split, dataset in self.splits.items():
            chosen = [place for place, image in enumerate(images) if image.split == split]
            read = dataset.read(torch.tensor([images[place].index for place in chosen], dtype=torch.long))
            pixels[chosen] = read.pixels
            self._check_read(split, read.unreadable)
        return pixels

    def read_ahead(self, split: str, indices: Tensor) -> Iterator[Tensor]:
        """Yield batches of images (B, C, H, W) uint8 of a split as the model sees them, decoded in parallel.

        Raises `InputError` if one cannot be read any more.
        """
        for batch in read_ahead(self.splits[split], indices.split(BATCH_SIZE), self.workers):
            self._check_read(split, batch.unreadable)
            yield batch.pixels

    def _check_read(self, split: str, unreadable: dict[int, str]) -> None:
        for index, reason in unreadable.items():
            path = self.path(Image(split, index))
            raise InputError(f"{path} cannot be read any more: {reason}; run the command again")

    @property
    def workers(self) -> int:
        """Number of processes that decode images."""
        given = self.model.data.workers
        return auto_workers(self.model.device) if given is None else given

    def too_many_broken(self, count: int) -> bool:
        """Return whether so many unreadable images are an error."""
        return count > max_unreadable(len(self), self.max_broken)

    def encode_options(self, label: str) -> dict[str, Any]:
        """Return arguments of `encode_readable`; `label` is the title of the progress bar."""
        options = {"last4": False, "quadrants": None, "label": label, "precision": self.precision}
        return options | {"workers": self.workers}

    def encode_files(self, files: Sequence[Path]) -> tuple[Tensor, ImageDataset]:
        """Return the features (B, D) of image files, and the files as a dataset.

        Raises `InputError` if a file cannot be read.
        """
        other = next((file for file in files if not file.is_file()), None)
        if other is not None:
            problem = "is a folder" if other.is_dir() else "does not exist"
            raise InputError(f"the query {other} {problem}; give image files, or .txt files with a path in each line")
        content = SplitIndex.from_files([file.absolute() for file in files]).files
        shape = (self.model.data.channels, *self.model.canvas)
        dataset = ImageDataset("queries", content, None, (), shape=shape, canvas=self.model.canvas)
        options = self.encode_options("features of queries") | {"workers": 0}
        batches = list(encode_readable(self.model.encoder, dataset, torch.arange(len(files)), **options))
        for number, reason in sorted(dataset.unreadable.items()):
            raise InputError(f"the query {files[number]} cannot be read: {reason}")
        return torch.cat([batch.parts[0] for batch in batches]), dataset


def run_folder(model: Path) -> Path:
    """Return the folder of a run that is given as a folder or as one of its checkpoints; other files as they are."""
    given = model.expanduser().absolute()
    return given.parent.parent if given.parent.name == "checkpoints" and not given.is_dir() else given


def counts_text(counts: dict[str, int]) -> str:
    """Return numbers of images by split in words."""
    *parts, last = [f"{split} {count:,}" for split, count in counts.items()]
    return f"{', '.join(parts)} and {last}" if parts else last
