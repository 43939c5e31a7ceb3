"""Source: a dataset on the Hugging Face Hub, loaded with the `datasets` package."""

from __future__ import annotations

import importlib.util
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from jepa.config import InputError, require
from jepa.config.sources import HuggingFaceSource
from jepa.data.index import EncodedImages, SplitIndex
from jepa.data.labels import Labels, class_texts, encode_labels, label_metadata
from jepa.data.sources.base import Source, examine_files
from jepa.data.sources.columns import find_image_column, find_label_column, split_columns, split_rows
from jepa.data.sources.splits import split_of

__all__ = ["HuggingFace"]


class HuggingFace(Source):
    """A dataset on the Hugging Face Hub, `owner/name` or `owner/name:configuration`."""

    config: HuggingFaceSource

    @cached_property
    def datasets(self) -> dict[str, Any]:
        """The `datasets.Dataset` of each split. Raises `InputError` if two of them are the same split."""
        found: dict[str, Any] = {}
        for name, data in load(self.config.name).items():
            split = split_of(str(name)) or str(name)
            require(split not in found, f"{self.name} has two splits that mean {split}, one of them {name}; give files")
            found[split] = data
        return found

    def splits(self) -> list[str]:
        """Return the splits of the dataset, downloading it if it is missing."""
        return list(self.datasets)

    def open(self, split: str) -> SplitIndex:
        """Return the index of a split. Raises `InputError` if it has no image column."""
        return index_dataset(self.datasets[split], self.name)


def load(name: str) -> Any:
    """Load a dataset, without running code in it.

    Raises `InputError` if the dataset or the `datasets` package is unavailable.
    """
    if importlib.util.find_spec("datasets") is None:
        raise InputError(f"hf:{name} requires the datasets package; install it with pip install 'image-jepa[hub]'")
    import datasets  # imported here because it takes seconds

    path, _, configuration = name.partition(":")
    try:
        return datasets.load_dataset(  # type: ignore[attr-defined]
            path, configuration or None, trust_remote_code=False
        )
    except Exception as error:  # network, Hub and dataset builders raise exceptions of any type
        reason = " ".join(str(error).split())
        raise InputError(f"hf:{name} cannot be loaded: {reason[:300]}") from error


def index_dataset(dataset: Any, name: str) -> SplitIndex:
    """Return the index of a `datasets.Dataset`; images are read from its memory-mapped table.

    Raises `InputError` if the image column is missing or ambiguous, or if a column contains further splits.
    """
    features, table = dataset.features, dataset.data.table
    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    others = ("Audio", "Video")  # which have the type of images in the table
    image = find_image_column(pa.schema([field for field in table.schema if kinds[field.name] not in others]), name)
    if image is None or kinds[image] != "Image":
        raise InputError(f"{name} has no image column; its columns are {', '.join(features)}")
    label, reason = find_label_column(features, name, [column for column in kinds if kinds[column] == "ClassLabel"])
    rows = split_rows(table.select(split_columns(table.schema)), name, (image, label))
    if rows is not None and len(set(rows)) > 1:
        raise InputError(
            f"a column of {name} divides one of its splits into {' and '.join(sorted(set(rows)))}; give the parquet "
            "files of the dataset to --data"
        )
    labels = Labels(np.full(len(table), -1, np.int32), (), reason)
    if label is not None:
        names = features[label].names if kinds[label] == "ClassLabel" else ()
        labels = encode_labels(class_texts(table[label], names) if names else table[label], label, names)
    index = SplitIndex(
        files=EncodedImages(table[image], Path(), table[image].nbytes),
        labels=torch.from_numpy(labels.numbers.astype("int64")) if labels.classes else None,
        classes=labels.classes,
        metadata={**label_metadata(labels), "signature": dataset._fingerprint},
    )
    examine_files(index)  # the images may be files
    return index
