"""Source: a torchvision dataset by name."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from jepa.config import InputError
from jepa.config.sources import TORCHVISION, TorchvisionSource
from jepa.data.index import ENCODED, PATHS, SplitIndex, write_index
from jepa.data.labels import label_metadata, number_rows, unnamed
from jepa.data.sources.base import INDEX_VERSION, Source, cached_splits, open_index
from jepa.torchvision_guard import guard

__all__ = ["Torchvision"]

DATA_FOLDER = Path("data")
"""Folder in which torchvision datasets are looked up, and to which they are downloaded."""
ARRAY_DATASETS = frozenset({"CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "STL10", "SVHN"})
"""torchvision classes that hold decoded images in memory; all others open image files."""
ENCODED_BATCH, PATHS_BATCH = 1000, 10_000  # number of rows per Arrow batch


class Torchvision(Source):
    """A torchvision dataset. Datasets held in memory are stored as PNG."""

    config: TorchvisionSource

    def splits(self) -> list[str]:
        """Return the splits of the dataset, downloading it if it is missing."""
        name = self.config.name
        return cached_splits(self.cache, f"{name} {INDEX_VERSION}", lambda: write_indexes(name, self.cache))

    def open(self, split: str) -> SplitIndex:
        """Open the index of a split."""
        self.splits()  # writes the indexes if necessary
        index = open_index(self.cache, split, Path(), lambda: write_indexes(self.config.name, self.cache))
        if index.labels is None:
            return index
        labels = number_rows(index.labels.numpy(), index.classes)
        return dataclasses.replace(
            index,
            labels=torch.from_numpy(labels.numbers.astype(np.int64)) if labels.classes else None,
            classes=labels.classes,
            metadata=index.metadata | label_metadata(labels),
        )


def write_indexes(name: str, cache: Path) -> list[str]:
    """Write the index of each split of a dataset to the folder `cache`, and return the splits.

    Raises `InputError` if the dataset is missing and cannot be downloaded.
    """
    guard()
    from torchvision import datasets  # imported here because it takes a second

    class_name, splits = TORCHVISION[name]
    in_memory = class_name in ARRAY_DATASETS
    loader = {} if in_memory else {"loader": str}  # returns the path of each image instead of opening it
    for split, arguments in splits.items():

        def build(download: bool, arguments: dict[str, Any] = arguments) -> Any:
            return getattr(datasets, class_name)(DATA_FOLDER, download=download, **arguments, **loader)

        dataset = _load(name, build)
        schema, batches = (ENCODED, _encoded(dataset)) if in_memory else (PATHS, _paths(dataset))
        metadata = {"classes": _class_names(dataset, class_name), "signature": name}
        write_index(cache / f"{split}.arrow", schema, _with_class_names(batches, metadata), metadata)
    return list(splits)


def _load(name: str, build: Callable[..., Any]) -> Any:
    """Build a dataset, downloading it if it is missing."""
    try:
        return build(download=False)
    except (RuntimeError, OSError):
        DATA_FOLDER.mkdir(exist_ok=True)
    try:
        return build(download=True)
    except Exception as error:  # network, archive and checksum errors have many types
        raise InputError(
            f"{name} is not in {DATA_FOLDER}/ and cannot be downloaded ({' '.join(str(error).split())}); place "
            "the dataset there, or pass a path to --data"
        ) from error


def _class_names(dataset: Any, class_name: str) -> list[str]:
    """Return the names of the classes by number, or an empty list if they have none."""
    if class_name == "SVHN":
        return [str(digit) for digit in range(10)]
    return [name if isinstance(name, str) else name[0] for name in getattr(dataset, "classes", [])]


def _with_class_names(batches: Iterator[pa.RecordBatch], metadata: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    """Yield the batches, and complete the class names by the numbers of those without a name."""
    for batch in batches:
        highest = batch["label"].to_numpy().max(initial=-1)
        metadata["classes"] += [unnamed(i, metadata["classes"]) for i in range(len(metadata["classes"]), highest + 1)]
        yield batch


def _encoded(dataset: Any) -> Iterator[pa.RecordBatch]:
    """Yield the images of an in-memory dataset as PNG."""
    for samples in _batches(dataset, ENCODED_BATCH):
        files = []
        for image, _ in samples:
            buffer = io.BytesIO()
            image.save(buffer, "PNG", compress_level=1)
            files.append({"bytes": buffer.getvalue(), "path": None})
        labels = pa.array([int(label) for _, label in samples], pa.int32())
        yield pa.record_batch([pa.array(files, ENCODED.field("image").type), labels], schema=ENCODED)


def _paths(dataset: Any) -> Iterator[pa.RecordBatch]:
    """Yield the image paths of a dataset whose loader returns paths."""
    for samples in _batches(dataset, PATHS_BATCH):
        files = [Path(path).resolve() for path, _ in samples]
        sizes = np.array([file.stat().st_size for file in files], dtype=np.int64)
        labels = np.array([label for _, label in samples], dtype=np.int32)
        paths = pa.array([bytes(file) for file in files], pa.large_binary())
        yield pa.record_batch([paths, sizes, labels], schema=PATHS)


def _batches(dataset: Any, batch_size: int) -> Iterator[list[Any]]:
    for start in range(0, len(dataset), batch_size):
        yield [dataset[index] for index in range(start, min(start + batch_size, len(dataset)))]
