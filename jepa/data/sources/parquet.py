"""Source: parquet files of images in the Hugging Face Hub layout, including the built-in sample."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jepa.config import InputError, require
from jepa.config.sources import ParquetSource, PathsSource, SampleSource
from jepa.data.index import ENCODED, SplitIndex, write_index
from jepa.data.labels import Labels, class_texts, encode_labels, label_metadata
from jepa.data.sources.base import Source, cached_splits, file_signature, open_index, require_files
from jepa.data.sources.columns import find_image_column, find_label_column, split_columns, split_rows
from jepa.data.sources.parquet_names import splits_of_files
from jepa.data.sources.paths import Paths
from jepa.data.sources.table_file import file_path

__all__ = ["SAMPLE", "Parquet", "Sample", "contains_images"]

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
        if len(files) > 1 or find_image_column(read_schema(files[0]), files[0]) is not None:
            return None
        return Paths(PathsSource(files[0]), self.name, self.cache)

    def splits(self) -> list[str]:
        """Return the splits, taken from the file names or the `split` column; the indexes are rebuilt if necessary."""
        if self.paths is not None:
            return self.paths.splits()
        files = list(self.config.files)
        return cached_splits(self.cache, file_signature(files), self._write_indexes)

    def open(self, split: str) -> SplitIndex:
        """Open the index of a split."""
        if self.paths is not None:
            return self.paths.open(split)
        self.splits()  # writes the indexes if necessary
        index = open_index(self.cache, split, Path(), self._write_indexes)
        require_files(index, self.name, "their parquet file")
        return index

    def _write_indexes(self) -> list[str]:
        return write_indexes(self.config.files, self.config.root, self.name, self.cache)


class Sample(Parquet):
    """The Fashion-MNIST images included in the package."""

    def __init__(self, config: SampleSource, name: str, cache: Path) -> None:
        super().__init__(ParquetSource(tuple(sorted(SAMPLE.glob("*.parquet")))), name, cache)


def open_parquet(file: Path) -> pq.ParquetFile:
    """Open a parquet file. Raises `InputError` if it is damaged or not a parquet file."""
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file} cannot be read as parquet: {reason}") from error


def read_schema(file: Path) -> pa.Schema:
    """Return the columns of a parquet file. Raises `InputError` if it is damaged or not a parquet file."""
    with open_parquet(file) as opened:
        return opened.schema_arrow


def contains_images(file: Path) -> bool | None:
    """Return whether a parquet file contains images, or None if it is damaged."""
    try:
        schema = read_schema(file)
    except InputError:
        return None
    try:
        return find_image_column(schema, file) is not None
    except InputError:  # several columns; the error is raised when the file is opened
        return True


def write_indexes(files: Sequence[Path], root: Path | None, name: str, cache: Path) -> list[str]:
    """Copy the images and labels of parquet files to one index for each split, and return the splits.

    `root` is the folder in which the files were found, if they were not chosen one by one. Raises `InputError` if a
    file cannot be read, or if its columns are invalid.
    """
    splits_by_file = splits_of_files(files, root)
    schemas = {file: read_schema(file) for file in files}
    for file in files:
        first = next(other for other in files if splits_by_file[other] == splits_by_file[file])
        if set(schemas[file].names) != set(schemas[first].names):
            raise InputError(f"the columns of {file} differ from those of {first}; give files of one dataset")
    counts = {file: _count_rows(file) for file in files}
    require(sum(counts.values()) > 0, f"{name} contains no images; use files that contain at least one")
    splits = np.concatenate([_row_splits(file, counts[file], splits_by_file[file], schemas[file]) for file in files])
    labels = _labels(schemas, counts, name)
    signature = file_signature(list(files))
    found = sorted(set(splits.tolist()))
    for split in found:
        rows = splits == split
        chosen = labels.select(np.flatnonzero(rows))
        batches = _batches(schemas, rows, chosen.numbers)
        metadata = {**label_metadata(chosen), "signature": signature}
        write_index(cache / f"{split}.arrow", ENCODED, batches, metadata)
    return found


def _count_rows(file: Path) -> int:
    with open_parquet(file) as opened:
        return int(opened.metadata.num_rows)


def _row_splits(file: Path, count: int, named: str | None, schema: pa.Schema) -> np.ndarray:
    """Return the split of each row, from the file name or a column. Raises `InputError` if they disagree."""
    columns = split_columns(schema)
    label, _ = find_label_column(schema.names, file)
    rows = split_rows(_read(file, columns), file, (label,)) if columns else None
    if rows is None:
        return np.full(count, named or "train", dtype=object)
    require(
        named is None or set(rows) <= {named},
        f"the name of {file} says {named}, but its column of splits has {', '.join(sorted(set(rows)))}; rename the "
        "file or remove the column",
    )
    return rows


def _read(file: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(file, columns=columns, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} cannot be read as parquet: {str(error).splitlines()[0]}") from error


def _labels(schemas: dict[Path, pa.Schema], counts: dict[Path, int], name: str) -> Labels:
    """Return the labels of all rows; the classes of each file have the names in its metadata."""
    declared = {file: _class_names(schema) for file, schema in schemas.items()}
    columns: dict[Path, tuple[str | None, str]] = {}
    for file, schema in schemas.items():
        columns[file] = find_label_column(schema.names, name, tuple(declared[file]))
    used = [column for column, _ in columns.values() if column is not None]
    if not used:
        count = sum(counts.values())
        return Labels(np.full(count, -1, np.int32), (), next(reason for _, reason in columns.values()))
    name_lists = list(dict.fromkeys(names[used[0]] for names in declared.values() if used[0] in names))
    parts = []
    for file, (column, _) in columns.items():
        if column is None:
            parts.append(pa.chunked_array([pa.nulls(counts[file], pa.large_string())]))
            continue
        values = _read(file, [column])[column]
        names = declared[file].get(column, name_lists[0] if len(name_lists) == 1 else ())
        parts.append(class_texts(values, names) if names and _is_number(values.type) else values)
    if len({part.type for part in parts}) > 1:
        parts = [part.cast(pa.large_string()) if not pa.types.is_nested(part.type) else part for part in parts]
    if len({part.type for part in parts}) > 1:
        raise InputError(f"the columns '{used[0]}' of {name} differ in type; give files of one dataset")
    chunks = [chunk for part in parts for chunk in part.chunks]
    order = list(dict.fromkeys(text for names in name_lists for text in names))
    return encode_labels(pa.chunked_array(chunks, parts[0].type), used[0], order)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _class_names(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Return the class names of each column of type `ClassLabel` in the Hub metadata, which may be missing."""
    try:
        metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = metadata.get("info", {}).get("features", {})
        found = {column: feature.get("names") for column, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, AttributeError):  # damaged metadata
        return {}
    return {column: tuple(map(str, names)) for column, names in found.items() if names and column in schema.names}


def _batches(schemas: dict[Path, pa.Schema], rows: np.ndarray, labels: np.ndarray) -> Iterator[pa.RecordBatch]:
    """Yield the images of the rows (N,) bool of all files, with their labels."""
    row = written = 0
    for file, schema in schemas.items():
        image = find_image_column(schema, file)
        if image is None:
            raise InputError(
                f"{file} has no image column (a struct of bytes and path), and a table of paths must be one file; its "
                f"columns are {', '.join(schema.names)}"
            )
        if not rows[row : row + _count_rows(file)].any():
            row += _count_rows(file)
            continue
        for batch in _iterate(file, image):
            chosen = rows[row : row + len(batch)]
            row += len(batch)
            images = _as_struct(batch.column(0), file)
            images = images if chosen.all() else images.filter(pa.array(chosen))
            numbers = pa.array(labels[written : written + len(images)], pa.int32())
            written += len(images)
            yield pa.record_batch([images, numbers], schema=ENCODED)


def _iterate(file: Path, column: str) -> Iterator[pa.RecordBatch]:
    """Yield the batches of one column. Raises `InputError` if the file is damaged."""
    try:
        with open_parquet(file) as opened:
            yield from opened.iter_batches(BATCH_ROWS, columns=[column])
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} cannot be read as parquet: {str(error).splitlines()[0]}") from error


def _as_struct(images: pa.Array, file: Path) -> pa.Array:
    """Convert an image column to structs (bytes, path). Paths of images on disk are relative to the parquet file."""
    path = pa.nulls(len(images), pa.large_string())
    if pa.types.is_struct(images.type):
        fields = {field.name: array for field, array in zip(images.type, images.flatten(), strict=True)}
        content, path = fields["bytes"], fields.get("path", path)  # null where the row is null
    else:
        content = images
    if content.null_count:
        path = pa.array(_absolute(content, path, file), pa.large_string())
    columns = [content.cast(pa.large_binary()), path.cast(pa.large_string())]
    return pa.StructArray.from_arrays(columns, ["bytes", "path"])


def _absolute(content: pa.Array, path: pa.Array, file: Path) -> list[Any]:
    """Return the paths, absolute where there is no content."""
    folder = os.fsencode(file.parent.absolute())
    texts: list[Any] = path.to_pylist()
    for row, missing in enumerate(content.is_null().to_pylist()):
        if missing and texts[row] is not None:
            texts[row] = os.fsdecode(os.path.join(folder, file_path(os.fsencode(texts[row]), folder)))  # noqa: PTH118
    return texts
