"""Source: a table of image paths in text, CSV, TSV or parquet format, with optional labels and splits."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from jepa.config import InputError
from jepa.config.sources import PathsSource
from jepa.data.index import PATHS, SplitIndex, write_index
from jepa.data.labels import Labels, encode_labels, label_metadata
from jepa.data.sources.base import Source, cached_splits, file_signature, open_index, require_files
from jepa.data.sources.columns import PATH_COLUMNS, find_column, find_label_column, split_rows
from jepa.data.sources.table_file import file_path, read_table

__all__ = ["Paths"]


class Paths(Source):
    """A table of image paths.

    A `.txt` file has one path per line. A CSV, TSV or parquet table has a path column and optional columns of labels
    and splits. Relative paths are resolved against the folder of the table.
    """

    config: PathsSource

    def splits(self) -> list[str]:
        """Return the splits of the table, rebuilding their indexes if the table has changed."""
        file = self.config.file
        stamp = f"{file_signature([file])} labels"  # indexes without labels in the signature are written again
        return cached_splits(self.cache, stamp, lambda: write_indexes(file, self.cache))

    def open(self, split: str) -> SplitIndex:
        """Open the index of a split. Raises `InputError` if none of its files exists."""
        self.splits()  # writes the indexes if necessary
        file = self.config.file
        index = open_index(self.cache, split, file.parent, lambda: write_indexes(file, self.cache))
        require_files(index, self.name, file.parent.absolute())
        return index


def write_indexes(file: Path, cache: Path) -> list[str]:
    """Write the index of each split of a table to the folder `cache`, and return the splits.

    Raises `InputError` if the table cannot be read or its columns are invalid.
    """
    table = read_table(file)
    columns = table.schema.names
    column = find_column(columns, PATH_COLUMNS, "paths", file)
    if column is None:
        raise InputError(
            f"{file} has no image or path column ({', '.join(PATH_COLUMNS[:4])} …); its columns are "
            f"{', '.join(columns)}"
        )
    paths = _paths(table[column], column, file)
    label, why_none = find_label_column([name for name in columns if name != column], file)
    if label is None:
        labels = Labels(np.full(len(table), -1, np.int32), (), why_none)
    else:
        labels = encode_labels(table[label], label)
    splits = split_rows(table, file, (column, label))
    splits = np.full(len(table), "train", dtype=object) if splits is None else splits
    for split in sorted(set(splits)):
        rows = np.flatnonzero(splits == split)
        chosen = labels.select(rows)
        numbers = pa.array(chosen.numbers, pa.int32())
        sizes = pa.array(np.zeros(len(rows), np.int64))  # the files are examined whenever the index is opened
        batch = pa.record_batch([paths.take(pa.array(rows)), sizes, numbers], schema=PATHS)
        classes = label_metadata(chosen)
        signature = hashlib.blake2b(json.dumps(classes).encode() + chosen.numbers.tobytes(), digest_size=8).hexdigest()
        write_index(cache / f"{split}.arrow", PATHS, [batch], {**classes, "signature": signature})
    return sorted(set(splits))


def _paths(column: pa.ChunkedArray, name: str, file: Path) -> pa.Array:
    """Return the paths in a column. Raises `InputError` if a row has none."""
    kind = column.type
    if not (pa.types.is_large_binary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(f"the column '{name}' of {file} must contain paths as text, got values of type {kind}")
    texts = [text if isinstance(text, bytes) else os.fsencode((text or "").strip()) for text in column.to_pylist()]
    if not texts or not all(texts):
        empty = f"; row {texts.index(b'') + 1} is empty" if texts else ""
        raise InputError(f"the column '{name}' of {file} must have at least one row and a path in every row{empty}")
    if any(b"\0" in text for text in texts):
        raise InputError(f"the column '{name}' of {file} must contain paths, got one with a NUL character")
    folder = os.fsencode(file.parent.absolute())
    return pa.array([file_path(text, folder) for text in texts], pa.large_binary())
