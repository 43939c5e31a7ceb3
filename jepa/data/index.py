"""The index of a split: encoded images and labels in a memory-mapped Arrow file.

The file holds the encoded images or their paths. It is opened without reading it: images are read on demand, and
processes share the memory map.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from jepa.data.decode import Unreadable
from jepa.files import atomic_write

__all__ = ["ENCODED", "PATHS", "EncodedImages", "SplitIndex", "evenly_spaced", "read_index", "write_index"]

METADATA_KEY = b"facts"  # of the Arrow message that holds classes and signature; fixed by existing indexes
PATHS = pa.schema([("image", pa.large_binary()), ("size", pa.int64()), ("label", pa.int32())])
"""Columns of an index of paths: the path relative to a root, the size in bytes, and the class or -1."""
ENCODED = pa.schema(
    [("image", pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])), ("label", pa.int32())]
)
"""Columns of an index of encoded images: the content of the file with its original path, and the class or -1."""


@dataclass
class EncodedImages:
    """The encoded images of one split. `column` holds paths relative to `root`, or structs (bytes, path)."""

    column: pa.ChunkedArray
    root: Path
    nbytes: int  # total size of the encoded images

    def __len__(self) -> int:
        return len(self.column)

    def read(self, index: int) -> bytes:
        """Read an encoded image. Raises `Unreadable` if the file is missing or access is denied."""
        value = self.column[index].as_py()
        if isinstance(value, dict):
            if value["bytes"] is not None:
                return bytes(value["bytes"])
            if value["path"] is None:
                raise Unreadable("it holds no image")
        path = os.fsdecode(value) if isinstance(value, bytes) else value["path"]
        try:
            return (self.root / path).read_bytes()
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from error

    def name(self, index: int) -> str:
        """Return a name for messages: the path, or the number of the row if the index holds the image itself."""
        value = self.column[index]
        if not pa.types.is_struct(value.type):
            return os.fsencode(value.as_py()).decode("utf-8", "backslashreplace")
        return f"row {index}" + (f" ({path})" if (path := value["path"].as_py()) else "")


@dataclass
class SplitIndex:
    """The encoded images of one split, with labels and class names if the source has them."""

    files: EncodedImages
    labels: Tensor | None  # (N,) long
    classes: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict)  # "signature" changes whenever the images do

    @classmethod
    def from_files(
        cls, files: Sequence[bytes | Path], labels: Sequence[int] | None = None, classes: Sequence[str] = ()
    ) -> Self:
        """Build an index in memory from encoded images or their paths; labels are numbered from 0."""
        content = [{"bytes": None, "path": str(file)} if isinstance(file, Path) else {"bytes": file} for file in files]
        column = pa.chunked_array([pa.array(content, ENCODED.field("image").type)])
        digest = hashlib.blake2b(repr(labels).encode(), digest_size=8)
        nbytes = 0
        for file in files:
            if isinstance(file, Path):
                status = file.stat()
                nbytes += status.st_size
                digest.update(f"{file}:{status.st_size}:{status.st_mtime_ns}".encode())
            else:
                nbytes += len(file)
                digest.update(file)
        return cls(
            files=EncodedImages(column, Path(), nbytes),
            labels=None if labels is None else torch.tensor(labels, dtype=torch.long),
            classes=tuple(classes),
            metadata={"signature": digest.hexdigest()},
        )


def write_index(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], metadata: dict[str, Any]) -> None:
    """Write the index of a split atomically. `metadata` holds JSON values, "classes" and "signature" among them.

    It is written last, so a generator of `batches` may add to it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_write(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)
        writer.write_batch(pa.RecordBatch.from_pylist([], schema), {METADATA_KEY: json.dumps(metadata)})


def read_index(path: Path, root: Path) -> SplitIndex | None:
    """Open an index that `write_index` wrote; return None if it is missing or incomplete."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        _, message = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
    except (OSError, pa.ArrowException):
        return None
    table, metadata = reader.read_all(), json.loads(message[METADATA_KEY])
    column = np.concatenate([np.empty(0, np.int32), *(chunk.to_numpy() for chunk in table["label"].chunks)])
    labels = torch.from_numpy(column.astype(np.int64)) if metadata["classes"] else None
    nbytes = sum(chunk.to_numpy().sum() for chunk in table["size"].chunks) if "size" in table.schema.names else 0
    files = EncodedImages(table["image"], root, int(nbytes) or table["image"].nbytes)
    return SplitIndex(files, labels, tuple(metadata["classes"]), metadata)


def evenly_spaced(count: int, limit: int) -> Tensor:
    """Return at most `limit` indices (M,) out of 0 … count - 1, evenly spaced and starting at 0."""
    number = min(count, limit)
    return torch.arange(number) * count // max(number, 1)
