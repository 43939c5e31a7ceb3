"""Encoded images row by row, from a memory-mapped Arrow file: it holds them, or says where they lie.

Nothing of it is in memory until it is read, processes share it, and a second start opens it at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from jepa.data.decode import Unreadable

__all__ = ["ENCODED", "PATHS", "Files", "Listing", "read_listing", "write_listing"]

FACTS = b"facts"
PATHS = pa.schema([("image", pa.large_binary()), ("size", pa.int64()), ("label", pa.int32())])
"""Rows that say where an image lies: its path below a root, its size in bytes, its class or -1."""
ENCODED = pa.schema(
    [("image", pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])), ("label", pa.int32())]
)
"""Rows that hold an image: the file itself, the name it had, its class or -1."""


@dataclass
class Files:
    """The encoded images of one split; `column` holds paths below `root`, or structs (bytes, path)."""

    column: pa.ChunkedArray
    root: Path
    nbytes: int  # of all files together

    def __len__(self) -> int:
        return len(self.column)

    def read(self, row: int) -> bytes:
        """Read a file. Raises `Unreadable` where it is gone or may not be read."""
        value = self.column[row].as_py()
        if isinstance(value, dict):
            if value["bytes"] is not None:
                return bytes(value["bytes"])
            if value["path"] is None:
                raise Unreadable("the row holds no image")
        path = os.fsdecode(value) if isinstance(value, bytes) else value["path"]
        try:
            return (self.root / path).read_bytes()
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from error

    def name(self, row: int) -> str:
        """Name a file for a person: its path, or its row where it has none."""
        value = self.column[row]
        if not pa.types.is_struct(value.type):
            return os.fsencode(value.as_py()).decode("utf-8", "backslashreplace")
        return f"row {row}" + (f" ({path})" if (path := value["path"].as_py()) else "")


@dataclass
class Listing:
    """One split as it was found: its files, their classes, and what was passed over."""

    files: Files
    labels: Tensor | None  # (N,) long
    classes: tuple[str, ...]
    facts: dict[str, Any]  # what was kept beside the rows


def write_listing(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], facts: dict[str, Any]) -> None:
    """Write the rows of a split under a temporary name and rename them into place; `facts` are JSON values.

    `facts` go with an empty last batch, so the batches before may still add to them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")  # several processes may find that it is missing
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
            writer.write_batch(pa.RecordBatch.from_pylist([], schema), {FACTS: json.dumps(facts)})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_listing(path: Path, root: Path) -> Listing | None:
    """Open the rows that `write_listing` wrote; None where they are not there or cut short."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        _, note = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
    except (OSError, pa.ArrowException):
        return None
    table, facts = reader.read_all(), json.loads(note[FACTS])
    known = np.concatenate([np.empty(0, np.int32), *(chunk.to_numpy() for chunk in table["label"].chunks)])
    labels = torch.from_numpy(known.astype(np.int64)) if facts["classes"] else None
    size = sum(chunk.to_numpy().sum() for chunk in table["size"].chunks) if "size" in table.schema.names else 0
    files = Files(table["image"], root, int(size) or table["image"].nbytes)
    return Listing(files, labels, tuple(facts["classes"]), facts)
