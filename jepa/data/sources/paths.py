"""Source: a table of image paths in text, CSV, TSV or parquet format, with optional labels and splits."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from jepa.config import InputError
from jepa.config.sources import PathsSource
from jepa.data.index import PATHS, SplitIndex, write_index
from jepa.data.sources.base import (
    LABEL_COLUMNS,
    SPLIT_NAMES,
    Source,
    cached_splits,
    check_class_numbers,
    file_signature,
    open_index,
)

__all__ = ["Paths"]

PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "image_path", "filepath")
"""Accepted names of the path column; the first one present is used."""


class Paths(Source):
    """A table of image paths.

    A `.txt` file has one path per line. A CSV, TSV or parquet table has a path column and optional columns of labels
    (numbers or names) and splits. Relative paths are resolved against the folder of the table.
    """

    config: PathsSource

    def splits(self) -> list[str]:
        """Return the splits of the table, rebuilding their indexes if the table has changed."""
        file = self.config.file
        return cached_splits(self.cache, file_signature([file]), lambda: write_indexes(file, self.cache))

    def open(self, split: str) -> SplitIndex:
        """Open the index of a split."""
        self.splits()  # writes the indexes if necessary
        return open_index(self.cache, split, self.config.file.parent)


def write_indexes(file: Path, cache: Path) -> list[str]:
    """Write the index of each split of a table to the folder `cache`, and return the splits.

    Raises `InputError` if the table cannot be read or its columns are invalid.
    """
    try:
        return _write_indexes(_read_table(file), file, cache)
    except (pa.ArrowException, UnicodeDecodeError) as error:  # Arrow converts columns lazily
        reason = str(error).splitlines()[0]
        raise InputError(f"{file} cannot be read as a table of paths and labels: {reason}") from error


def _read_table(file: Path) -> pa.Table:
    suffix = file.suffix.lower()
    try:
        if suffix == ".parquet":
            return pq.read_table(file)
        if suffix == ".txt":
            lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
            return pa.table({"path": pa.array([line.strip() for line in lines if line.strip()], pa.large_binary())})
        options = pa.csv.ParseOptions(delimiter="\t" if suffix == ".tsv" else ",")
        return pa.csv.read_csv(file, parse_options=options)
    except (pa.ArrowException, OSError, UnicodeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file} cannot be read as a table: {reason}") from error


def _write_indexes(table: pa.Table, file: Path, cache: Path) -> list[str]:
    columns = table.schema.names
    column = next((name for name in PATH_COLUMNS if name in columns), None)
    if column is None:
        raise InputError(
            f"{file} has no image or path column ({', '.join(PATH_COLUMNS[:4])} …); its columns are "
            f"{', '.join(columns)}"
        )
    if table[column].null_count or not len(table):
        raise InputError(f"the column '{column}' of {file} must have at least one row and a path in every row")
    label = next((name for name in LABEL_COLUMNS if name in columns), None)
    classes, labels = _classes(table[label], label, file) if label is not None else ([], np.full(len(table), -1))
    splits = _splits(table, file)
    names = table[column].to_pylist()
    paths = np.array([name if isinstance(name, bytes) else os.fsencode(str(name)) for name in names], dtype=object)
    for split in dict.fromkeys(splits.tolist()):
        rows = splits == split
        _write_index(file, cache / f"{split}.arrow", paths[rows], labels[rows], classes)
    return sorted(set(splits.tolist()))


def _classes(column: pa.ChunkedArray, name: str, file: Path) -> tuple[list[str], np.ndarray]:
    """Return class names and labels. Integer labels are kept; names are numbered alphabetically."""
    if column.null_count:
        raise InputError(f"the column '{name}' of {file} has missing values; fill them or remove the column")
    if pa.types.is_integer(column.type):
        numbers = column.to_numpy()
        check_class_numbers(int(numbers.max()), name, file)
        return [str(i) for i in range(int(numbers.max()) + 1)], numbers
    names = pc.cast(column, pa.string())
    classes = sorted(pc.unique(names).to_pylist())
    return classes, pc.index_in(names, pa.array(classes)).to_numpy()


def _splits(table: pa.Table, file: Path) -> np.ndarray:
    """Return the split of each row."""
    names = table["split"].to_pylist() if "split" in table.schema.names else ["train"] * len(table)
    unknown = next((name for name in names if str(name).lower() not in SPLIT_NAMES), None)
    if unknown is not None:
        raise InputError(f"the column 'split' of {file} must contain train, validation or test, got '{unknown}'")
    return np.array([SPLIT_NAMES[str(name).lower()] for name in names])


def _write_index(file: Path, path: Path, images: np.ndarray, labels: np.ndarray, classes: list[str]) -> None:
    """Write the index of one split: image paths, labels, and class names unless the labels are hidden."""

    def size(image: bytes) -> int:
        try:
            return (file.parent / os.fsdecode(image)).stat().st_size
        except OSError:
            return 0  # missing files are reported when they are read

    sizes = np.array([size(image) for image in images], dtype=np.int64)
    paths = pa.array(images.tolist(), pa.large_binary())
    batch = pa.record_batch([paths, sizes, labels.astype(np.int32)], schema=PATHS)
    has_labels = labels.min() >= 0  # hidden labels are -1
    metadata = {"classes": classes if has_labels else [], "signature": file_signature([file])}
    write_index(path, PATHS, [batch], metadata)
