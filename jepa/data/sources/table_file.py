"""Read a table of paths as text: nothing in it is converted, so 007, 1e5 and NA stay what they are."""
# ruff: noqa: PTH110, PTH111, PTH118  (pathlib takes ten times as long for each row)

from __future__ import annotations

import codecs
import csv
import io
import os
from collections import Counter
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pyarrow as pa
import pyarrow.parquet as pq

from jepa.config import InputError
from jepa.data.sources.columns import PATH_COLUMNS, key_of

__all__ = ["file_path", "read_table"]

DELIMITERS = (",", ";", "\t", "|")


def read_table(file: Path) -> pa.Table:
    """Read a .txt, .csv, .tsv or parquet file; all columns but those of parquet files are text.

    Raises `InputError` if the file cannot be read as a table.
    """
    try:
        table = _read(file)
    except (pa.ArrowException, csv.Error, UnicodeError, OSError) as error:
        reason = "it is not UTF-8; save it as UTF-8" if isinstance(error, UnicodeError) else str(error).splitlines()[0]
        raise InputError(f"{file} cannot be read as a table of paths and labels: {reason}") from error
    twice = [name for name, count in Counter(table.schema.names).items() if count > 1]
    if twice:
        raise InputError(f"{file} has several columns '{twice[0]}'; rename all but one of them")
    return table


def _read(file: Path) -> pa.Table:
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        table = pq.read_table(file, partitioning=None)
        plain = [
            column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
            for column in table.columns
        ]
        return pa.table(plain, names=table.schema.names)
    return _read_list(file) if suffix == ".txt" else _read_csv(file)


def _read_list(file: Path) -> pa.Table:
    """Read one path per line; names of files may be arbitrary bytes."""
    content = file.read_bytes()
    if _is_utf16(content):
        content = content.decode("utf-16").encode()
    lines = [line.strip() for line in content.removeprefix(codecs.BOM_UTF8).splitlines()]
    return pa.table({"path": pa.array([line for line in lines if line], pa.large_binary())})


def _read_csv(file: Path) -> pa.Table:
    content = file.read_bytes()
    text = content.decode("utf-16" if _is_utf16(content) else "utf-8").removeprefix("\ufeff")
    delimiter = _delimiter(text, "\t" if file.suffix.lower() == ".tsv" else ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    if not rows:
        raise InputError(
            f"{file} is empty; a table has a line with the names of its columns, and a line for each image"
        )
    names = [name.strip() or f"column {i + 1}" for i, name in enumerate(rows[0][1])]
    for line, row in rows[1:]:
        if len(row) < len(names) or any(cell.strip() for cell in row[len(names) :]):
            raise InputError(
                f"line {line} of {file} must have {len(names)} values, as many as there are columns, got {len(row)}; "
                "put quotes around values that contain the delimiter"
            )
    columns = [[row[i].strip() for _, row in rows[1:]] for i in range(len(names))]
    return pa.table([pa.array(column, pa.large_string()) for column in columns], names=names)


def _is_utf16(content: bytes) -> bool:
    return content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def _delimiter(text: str, default: str) -> str:
    """Return the delimiter that yields a path column in the first line that is not empty."""
    header = next((line for line in text.splitlines() if line.strip()), "")

    def has_path(delimiter: str) -> bool:
        names = next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])
        return len(names) > 1 and any(key_of(name) in PATH_COLUMNS for name in names)

    return next((delimiter for delimiter in (default, *DELIMITERS) if has_path(delimiter)), default)


def file_path(text: bytes, folder: bytes) -> bytes:
    """Return the path that a table in `folder` means: below ~, a file:// address, or with the separators of Windows.

    Backslashes are separators unless a file has them in its name.
    """
    if text.startswith(b"file://"):
        text = unquote_to_bytes(text.removeprefix(b"file://").removeprefix(b"localhost"))
    path = os.fsencode(os.path.expanduser(os.fsdecode(text)))
    if b"\\" in path and not os.path.exists(os.path.join(folder, path)):
        return path.replace(b"\\", b"/")
    return path
