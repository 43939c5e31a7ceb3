"""The index of a split: encoded images and labels in a memory-mapped Arrow file.

The file contains the encoded images or their paths. Opening it loads no images: they are read on demand, and processes
share the memory map.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from jepa.config import InputError
from jepa.data.decode import Unreadable
from jepa.files import atomic_write, printable

__all__ = ["ENCODED", "PATHS", "EncodedImages", "SplitIndex", "evenly_spaced", "read_index", "write_index"]

MAX_FILE_BYTES = 2**30  # image files are read as a whole
NON_BLOCKING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # for POSIX, and for Windows
METADATA_KEY, HASH_KEY = b"facts", b"sha256"  # keys of the Arrow message with classes and signature, and the hash
PATHS = pa.schema([("image", pa.large_binary()), ("size", pa.int64()), ("label", pa.int32())])
"""Columns of an index of paths: path relative to a root, size in bytes, and class or -1."""
ENCODED = pa.schema(
    [("image", pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])), ("label", pa.int32())]
)
"""Columns of an index of encoded images: file content with the original path, and class or -1."""
CHECKSUMS = pa.field("crc32", pa.uint32())
"""Column that `write_index` adds to encoded images: the CRC-32 of the file content."""
MAX_VERIFIED_BYTES = 300e6  # the images of larger indexes are verified when they are read, not when they are opened
IMAGES_OR_PATHS = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_binary())])  # of an index in memory


@dataclass
class EncodedImages:
    """The encoded images of a split. `column` contains paths relative to `root`, or structs (bytes, path)."""

    column: pa.ChunkedArray
    root: Path
    nbytes: int  # total size of the encoded images
    checksums: np.ndarray | None = None  # (N,) CRC-32 of the encoded images

    def __len__(self) -> int:
        return len(self.column)

    def read(self, index: int) -> bytes:
        """Read an encoded image.

        Raises `Unreadable` if the file is missing, access is denied, it is not a regular file or too large, or the row
        contains no image or has changed since it was indexed.
        """
        value = self.column[index]
        if pa.types.is_struct(value.type) and value["bytes"].is_valid:
            content = bytes(value["bytes"].as_py())
            if self.checksums is not None and zlib.crc32(content) != self.checksums[index]:
                raise Unreadable("its copy in the index is damaged; delete the folder .jepa-cache to index it again")
            return content
        path = _path(value)
        if path is None:
            raise Unreadable("the row contains no image")
        return read_file(self.root / os.fsdecode(path))

    def name(self, index: int) -> str:
        """Return a printable name for messages: the path, or the row number if the index contains the image itself."""
        value = self.column[index]
        path = printable((_path(value) or b"").decode("utf-8", "backslashreplace"))
        if not pa.types.is_struct(value.type):
            return path
        return f"row {index}" + (f" ({path})" if path else "")


def _path(value: pa.Scalar) -> bytes | None:
    """Return the path in a row of an index, which need not be valid UTF-8, or None."""
    path = value["path"] if pa.types.is_struct(value.type) else value
    content: bytes | None = path.cast(pa.large_binary()).as_py()
    return content


@dataclass
class SplitIndex:
    """The encoded images of a split, with labels and class names if the source has them."""

    files: EncodedImages
    labels: Tensor | None  # (N,) long; -1 for unlabeled images, None if all are
    classes: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict)  # its "signature" changes whenever the images do

    def __post_init__(self) -> None:
        self.classes = tuple(printable(name) for name in self.classes)

    @classmethod
    def from_files(
        cls, files: Sequence[bytes | Path], labels: Sequence[int] | None = None, classes: Sequence[str] = ()
    ) -> Self:
        """Build an in-memory index from encoded images or their paths; labels start at 0."""
        if labels is not None and len(labels) != len(files):
            raise InputError(f"there must be one label per image, got {len(labels)} labels for {len(files)} images")
        content = [{"path": os.fsencode(file)} if isinstance(file, Path) else {"bytes": file} for file in files]
        column = pa.chunked_array([pa.array(content, IMAGES_OR_PATHS)])
        digest = hashlib.blake2b(repr(labels).encode(), digest_size=8)
        nbytes = 0
        for file in files:
            if isinstance(file, Path):
                status = file.stat()
                nbytes += status.st_size
                digest.update(os.fsencode(file) + f":{status.st_size}:{status.st_mtime_ns}".encode())
            else:
                nbytes += len(file)
                digest.update(file)
        return cls(
            files=EncodedImages(column, Path(), nbytes),
            labels=None if labels is None else torch.tensor(labels, dtype=torch.long),
            classes=tuple(classes),
            metadata={"signature": digest.hexdigest()},
        )


def read_file(path: Path) -> bytes:
    """Read a file. Raises `Unreadable` if it is not a regular file, too large, missing, or access is denied."""
    try:
        # reading from a pipe or a device may wait forever, or never end
        with os.fdopen(os.open(path, os.O_RDONLY | NON_BLOCKING), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable("it is not a regular file, but a pipe, socket or device; remove it")
            content = file.read(MAX_FILE_BYTES + 1) if status.st_size <= MAX_FILE_BYTES else None
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error
    except ValueError as error:  # a zero byte, or characters that no file name can have
        raise Unreadable(f"the path is invalid ({error})") from error
    if content is None or len(content) > MAX_FILE_BYTES:
        raise Unreadable(f"the file is larger than the limit of {MAX_FILE_BYTES / 1e9:.1f} GB; reduce its size")
    return content


def write_index(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], metadata: dict[str, Any]) -> None:
    """Write the index of a split atomically. `metadata` contains JSON values, including "classes" and "signature".

    The metadata is written last, so a generator of `batches` may add to it, together with a hash of the schema, labels,
    paths, sizes and checksums.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    has_content = pa.types.is_struct(schema.field("image").type)
    written = schema.append(CHECKSUMS) if has_content else schema
    digest = _digest_of(written)
    with (
        atomic_write(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, written) as writer,
    ):
        for batch in batches:
            if has_content:
                checksums = pa.array(_checksums(batch.column("image")), pa.uint32())
                batch = pa.RecordBatch.from_arrays([*batch.columns, checksums], schema=written)
            _update(digest, batch)
            writer.write_batch(batch)
        text = json.dumps(metadata)
        digest.update(text.encode())
        message = {METADATA_KEY: text, HASH_KEY: digest.hexdigest()}
        writer.write_batch(pa.RecordBatch.from_pylist([], written), message)


def read_index(path: Path, root: Path) -> SplitIndex | None:
    """Open an index written by `write_index`. Returns None if it is missing, incomplete or damaged.

    Images of large indexes are not verified here, but when they are read.
    """
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        _, message = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
        table = reader.read_all()
        table.validate(full=True)  # otherwise, damaged offsets may end the process
        digest = _digest_of(table.schema)
        for batch in table.to_batches():
            _update(digest, batch)
        text = message[METADATA_KEY]
        digest.update(text)
        if digest.hexdigest().encode() != message[HASH_KEY]:
            return None
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException):
        return None
    metadata = json.loads(text)
    column = np.concatenate([np.empty(0, np.int32), *(chunk.to_numpy() for chunk in table["label"].chunks)])
    labels = torch.from_numpy(column.astype(np.int64)) if metadata["classes"] else None
    nbytes = sum(chunk.to_numpy().sum() for chunk in table["size"].chunks) if "size" in table.schema.names else 0
    checksums = table[CHECKSUMS.name].to_numpy() if CHECKSUMS.name in table.schema.names else None
    files = EncodedImages(table["image"], root, int(nbytes) or table["image"].nbytes, checksums)
    if checksums is not None and files.nbytes <= MAX_VERIFIED_BYTES:
        stored = [checksum for chunk in files.column.chunks for checksum in _checksums(chunk)]
        if not np.array_equal(stored, checksums):
            return None
    return SplitIndex(files, labels, tuple(metadata["classes"]), metadata)


def _checksums(images: pa.StructArray) -> Iterator[int]:
    """Yield the CRC-32 of the content of each image; 0 for images that are files on disk."""
    for content in images.flatten()[0]:
        yield zlib.crc32(content.as_buffer()) if content.is_valid else 0


def _digest_of(schema: pa.Schema) -> Any:
    """Return a hash of the names and types of columns, including nested ones."""
    return hashlib.sha256(schema.to_string(show_schema_metadata=False).encode())


def _update(digest: Any, batch: pa.RecordBatch) -> None:
    """Add everything but the content of images to a hash."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_struct(column.type):
            column = column.flatten()[1].cast(pa.large_binary())
        if pa.types.is_large_binary(column.type):
            for value in column.to_pylist():
                digest.update(b"\0" if value is None else b"\1%d " % len(value) + value)
        else:
            digest.update(name.encode() + column.to_numpy(zero_copy_only=False).tobytes())


def evenly_spaced(count: int, limit: int) -> Tensor:
    """Return at most `limit` evenly spaced indices (M,) out of 0 … count - 1, starting at 0."""
    num_indices = min(count, limit)
    return torch.arange(num_indices) * count // max(num_indices, 1)
