"""Tables: parquet files that hold images, and lists of paths as text, CSV or parquet."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from jepa.config import InputError, require
from jepa.data.files import ENCODED, PATHS, write_listing
from jepa.data.folder import SPLITS

__all__ = ["image_column", "signature", "write_images", "write_paths"]

LABELS = ("label", "labels", "fine_label", "class", "target")
PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "image_path", "filepath")
MAX_CLASSES = 1_000_000
ROWS = 1000  # images of one batch: its bytes stay well below 2 GB


def signature(files: list[Path]) -> str:
    """Sum up which files these are: another name, size or time of change gives another one."""
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()


def open_parquet(file: Path) -> pq.ParquetFile:
    """Open a parquet file. Raises `InputError` where it is none."""
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file} cannot be read as parquet: {reason}") from error


def image_column(schema: pa.Schema) -> str | None:
    """Find the column that holds images: the hub's struct(bytes, path), or plain bytes."""
    for field in schema:
        is_struct = pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        is_bytes = pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
        if is_struct or (field.name in ("image", "img") and is_bytes):
            return str(field.name)
    return None


def write_images(files: list[Path], name: str, into: Path) -> None:
    """Copy the images and labels of parquet files into one Arrow file, which any row can be read from at once."""
    schema = open_parquet(files[0]).schema_arrow
    column = image_column(schema)
    if column is None:
        raise InputError(
            f"{files[0]} has no column of images (struct(bytes, path)) nor of paths; its columns are "
            f"{', '.join(schema.names)}"
        )
    label = next((candidate for candidate in LABELS if candidate in schema.names), None)
    if label is not None and not pa.types.is_integer(schema.field(label).type):
        raise InputError(f"the column '{label}' of {name} must hold a whole number in every row, the class")
    facts: dict[str, Any] = {"classes": [], "signature": signature(files)}

    def batches() -> Iterator[pa.RecordBatch]:
        low, high, rows = 0, -1, 0
        for file in files:
            opened = open_parquet(file)
            if not opened.schema_arrow.equals(schema):
                raise InputError(f"{file} has other columns than {files[0]}; give the files of one data set")
            wanted = [column] if label is None else [column, label]
            for batch in opened.iter_batches(ROWS, columns=wanted):
                labels = _whole(batch[label], label, name) if label is not None else np.full(len(batch), -1)
                require_few(int(labels.max()), label or "", name)
                low, high, rows = min(low, int(labels.min())), max(high, int(labels.max())), rows + len(batch)
                yield pa.record_batch([_as_struct(batch[column]), labels.astype(np.int32)], schema=ENCODED)
        if rows == 0:
            raise InputError(f"{name} holds no images")
        known = label is not None and low >= 0  # the hub marks the labels of a hidden test set with -1
        facts["classes"] = list(_class_names(schema, label, high)) if known else []

    write_listing(into, ENCODED, batches(), facts)


def _whole(labels: pa.Array, column: str, name: str) -> np.ndarray:
    if labels.null_count:
        raise InputError(f"the column '{column}' of {name} must hold a whole number in every row, the class")
    return labels.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _as_struct(images: pa.Array) -> pa.Array:
    """Bring a column of images to struct(bytes, path)."""
    if pa.types.is_struct(images.type):
        names = [field.name for field in images.type]
        path = images.field("path") if "path" in names else pa.nulls(len(images), pa.large_string())
        parts = [images.field("bytes"), path]
    else:
        parts = [images, pa.nulls(len(images), pa.large_string())]
    types = [field.type for field in ENCODED.field("image").type]
    return pa.StructArray.from_arrays(
        [part.cast(kind) for part, kind in zip(parts, types, strict=True)], ["bytes", "path"]
    )


def _class_names(schema: pa.Schema, label: str | None, highest: int) -> tuple[str, ...]:
    """Take the class names from the hub's metadata, or number the classes."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = metadata.get("info", {}).get("features", {}).get(label, {}).get("names")
    names = names or []  # some sets name fewer classes than they have
    return (*names, *(str(number) for number in range(len(names), highest + 1)))


def write_paths(file: Path, into: Path) -> list[str]:
    """Write the listings of a table of paths, `SPLIT.arrow` in the folder `into`; return the splits.

    A `.txt` file has a path in every line; a CSV, TSV or parquet table has a column of paths, and may have one of
    labels (numbers or names) and one named `split`. Paths are taken from the table's own folder. Raises `InputError`.
    """
    try:
        return _write_paths(_read_paths(file), file, into)
    except (pa.ArrowException, UnicodeDecodeError) as error:  # columns are read, and decoded, when they are used
        reason = str(error).splitlines()[0]
        raise InputError(f"{file} cannot be read as a table of paths and labels: {reason}") from error


def _write_paths(table: pa.Table, file: Path, into: Path) -> list[str]:
    column = next((name for name in PATH_COLUMNS if name in table.schema.names), None)
    if column is None:
        raise InputError(
            f"{file} has no column of images, nor one of paths ({', '.join(PATH_COLUMNS[:4])} …); its columns are "
            f"{', '.join(table.schema.names)}"
        )
    if table[column].null_count or not len(table):
        raise InputError(f"the column '{column}' of {file} must hold a path in every row, and there must be a row")
    label = next((name for name in LABELS if name in table.schema.names), None)
    classes, numbers = _classes_of(table[label], label, file) if label is not None else ([], np.full(len(table), -1))
    given = table["split"].to_pylist() if "split" in table.schema.names else ["train"] * len(table)
    unknown = next((split for split in given if str(split).lower() not in SPLITS), None)
    if unknown is not None:
        raise InputError(f"the column 'split' of {file} has '{unknown}'; it takes train, test and validation")
    splits = np.array([SPLITS[str(split).lower()] for split in given])
    names = table[column].to_pylist()
    paths = np.array([name if isinstance(name, bytes) else os.fsencode(str(name)) for name in names], dtype=object)
    for split in dict.fromkeys(splits.tolist()):
        chosen = splits == split
        _write_split(file, into / f"{split}.arrow", paths[chosen], numbers[chosen], classes)
    return sorted(set(splits.tolist()))


def _write_split(file: Path, into: Path, paths: np.ndarray, labels: np.ndarray, classes: list[str]) -> None:
    def size(path: bytes) -> int:
        try:
            return (file.parent / os.fsdecode(path)).stat().st_size
        except OSError:
            return 0  # it is named when it is to be read

    sizes = np.array([size(path) for path in paths], dtype=np.int64)
    batch = pa.record_batch([pa.array(paths.tolist(), pa.large_binary()), sizes, labels.astype(np.int32)], schema=PATHS)
    known = classes if labels.min() >= 0 else []  # a hidden label is -1
    write_listing(into, PATHS, [batch], {"classes": known, "signature": signature([file])})


def _read_paths(file: Path) -> pa.Table:
    try:
        if file.suffix.lower() == ".parquet":
            return pq.read_table(file)
        if file.suffix.lower() == ".txt":
            lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
            return pa.table({"path": pa.array([line.strip() for line in lines if line.strip()], pa.large_binary())})
        options = pa.csv.ParseOptions(delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
        return pa.csv.read_csv(file, parse_options=options)
    except (pa.ArrowException, OSError, UnicodeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file} cannot be read as a table: {reason}") from error


def require_few(highest: int, column: str, where: str | Path) -> None:
    """Refuse numbers that are no classes, such as identifiers."""
    require(
        highest < MAX_CLASSES,
        f"the column '{column}' of {where} holds {highest}; it takes classes numbered from 0, below {MAX_CLASSES:,}",
    )


def _classes_of(column: pa.ChunkedArray, name: str, file: Path) -> tuple[list[str], np.ndarray]:
    """Number the classes: whole numbers stay, names are numbered in sorted order."""
    if column.null_count:
        raise InputError(f"the column '{name}' of {file} has empty rows; give every image a label, or leave it out")
    if pa.types.is_integer(column.type):
        numbers = column.to_numpy()
        require_few(int(numbers.max()), name, file)
        return [str(number) for number in range(int(numbers.max()) + 1)], numbers
    words = pc.cast(column, pa.string())
    classes = sorted(pc.unique(words).to_pylist())
    return classes, pc.index_in(words, pa.array(classes)).to_numpy()
