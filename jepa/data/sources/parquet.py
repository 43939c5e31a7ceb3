"""Source: parquet files of images in the Hugging Face Hub layout, including the built-in sample."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jepa.config import InputError, require
from jepa.config.sources import ParquetSource, PathsSource, SampleSource
from jepa.data.index import ENCODED, SplitIndex, read_index, write_index
from jepa.data.sources.base import (
    LABEL_COLUMNS,
    SPLIT_NAMES,
    Source,
    check_class_numbers,
    complete_class_names,
    file_signature,
    open_index,
)
from jepa.data.sources.paths import Paths

__all__ = ["SAMPLE", "Parquet", "Sample", "image_column", "open_parquet"]

BATCH_ROWS = 1000  # number of rows per Arrow batch, which must stay below 2 GB
SAMPLE = Path(__file__).parent.parent / "sample"


class Parquet(Source):
    """Parquet files of images, or a single parquet table of image paths.

    Parquet is read in row groups, so images are copied to an Arrow file for random access.
    """

    config: ParquetSource

    @cached_property
    def paths(self) -> Paths | None:
        """The table of paths, if the source is a single such table."""
        files = self.config.files
        if len(files) > 1 or image_column(open_parquet(files[0]).schema_arrow) is not None:
            return None
        return Paths(PathsSource(files[0]), self.name, self.cache)

    @cached_property
    def files(self) -> dict[str, list[Path]]:
        """The files of each split."""
        files: dict[str, list[Path]] = {}
        for file in self.config.files:
            files.setdefault(split_of(file), []).append(file)
        return files

    def splits(self) -> list[str]:
        """Return the splits, taken from the file names or the `split` column."""
        return list(self.files) if self.paths is None else self.paths.splits()

    def open(self, split: str) -> SplitIndex:
        """Open the index of a split, rebuilding it if the files have changed."""
        if self.paths is not None:
            return self.paths.open(split)
        files = self.files[split]
        path = self.cache / f"{split}.arrow"
        index = read_index(path, Path())
        if index is None or index.metadata["signature"] != file_signature(files):
            write_images(files, f"{self.name} ({split})", path)
            index = open_index(self.cache, split, Path())
        return index


class Sample(Parquet):
    """The Fashion-MNIST images included in the package."""

    def __init__(self, config: SampleSource, name: str, cache: Path) -> None:
        super().__init__(ParquetSource(tuple(sorted(SAMPLE.glob("*.parquet")))), name, cache)


def split_of(file: Path) -> str:
    """Return the split in the name of a file or its folder, as in train-00000-of-00003.parquet or test/0.parquet."""
    match = re.search(r"(?<![a-z])(train|test|validation|valid|val)(?![a-z])", file.stem.lower())
    return SPLIT_NAMES.get(match.group(1) if match else file.parent.name.lower(), "train")


def open_parquet(file: Path) -> pq.ParquetFile:
    """Open a parquet file. Raises `InputError` if it is damaged or not a parquet file."""
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file} cannot be read as parquet: {reason}") from error


def image_column(schema: pa.Schema) -> str | None:
    """Return the name of the image column: a struct (bytes, path) as on the Hub, or bytes named `image` or `img`.

    Returns None if there is no such column.
    """
    for field in schema:
        is_struct = pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        is_bytes = pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
        if is_struct or (field.name in ("image", "img") and is_bytes):
            return str(field.name)
    return None


def write_images(files: list[Path], name: str, path: Path) -> None:
    """Copy the images and labels of a split from parquet files to an index; `name` is used in error messages."""
    schema = open_parquet(files[0]).schema_arrow
    image = image_column(schema)
    if image is None:
        raise InputError(
            f"{files[0]} has neither an image column (a struct of bytes and path) nor a path column; its columns are "
            f"{', '.join(schema.names)}"
        )
    label = next((column for column in LABEL_COLUMNS if column in schema.names), None)
    if label is not None:
        _require_integers(pa.types.is_integer(schema.field(label).type), label, name)
    metadata: dict[str, Any] = {"classes": [], "signature": file_signature(files)}

    def batches() -> Iterator[pa.RecordBatch]:
        count, lowest, highest = 0, 0, -1
        for batch in _read_columns(files, schema, [image] if label is None else [image, label]):
            labels = _labels(batch[label], label, name) if label is not None else np.full(len(batch), -1)
            lowest, highest = min(lowest, int(labels.min())), max(highest, int(labels.max()))
            count += len(batch)
            yield pa.record_batch([_as_struct(batch[image]), labels.astype(np.int32)], schema=ENCODED)
        require(count > 0, f"{name} contains no images; use files that contain at least one")
        if label is not None and lowest >= 0:  # hidden test labels are -1 on the Hub
            metadata["classes"] = list(complete_class_names(_class_names(schema, label), highest))

    write_index(path, ENCODED, batches(), metadata)


def _read_columns(files: list[Path], schema: pa.Schema, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of all files. Raises `InputError` if their schemas differ."""
    for file in files:
        opened = open_parquet(file)
        if not opened.schema_arrow.equals(schema):
            raise InputError(f"the columns of {file} differ from those of {files[0]}; give files of one dataset")
        yield from opened.iter_batches(BATCH_ROWS, columns=columns)


def _labels(column: pa.Array, name: str, source: str) -> np.ndarray:
    _require_integers(not column.null_count, name, source)
    labels: np.ndarray = column.to_numpy(zero_copy_only=False)
    check_class_numbers(int(labels.max()), name, source)
    return labels


def _require_integers(condition: bool, column: str, source: str) -> None:
    require(condition, f"the column '{column}' of {source} must contain an integer class in every row")


def _as_struct(images: pa.Array) -> pa.Array:
    """Convert an image column to structs (bytes, path)."""
    path = pa.nulls(len(images), pa.large_string())
    if pa.types.is_struct(images.type):
        has_path = images.type.get_field_index("path") >= 0
        content, path = images.field("bytes"), images.field("path") if has_path else path
    else:
        content = images
    columns = [content.cast(pa.large_binary()), path.cast(pa.large_string())]
    return pa.StructArray.from_arrays(columns, ["bytes", "path"])


def _class_names(schema: pa.Schema, label: str) -> list[str]:
    """Return the class names in the Hub metadata, which may be incomplete or missing."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return metadata.get("info", {}).get("features", {}).get(label, {}).get("names") or []
