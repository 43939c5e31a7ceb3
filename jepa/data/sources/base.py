"""Interface of data sources, and creation of a source from the value of `--data`.

To add a source, write a config class whose `parse` accepts some values of `--data` and a subclass of `Source`, and add
a line to the table `jepa.config.SOURCES`. Sources with few files can build their indexes in memory with
`SplitIndex.from_files`; others write them to their cache folder once, with `cached_splits` and `write_index`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jepa.config import SOURCES, InputError, parse_source, require
from jepa.data.index import SplitIndex, read_index
from jepa.files import read_record, write_record

__all__ = [
    "CACHE",
    "INDEX_VERSION",
    "Source",
    "cache_beside",
    "cached_splits",
    "examine_files",
    "file_signature",
    "open_index",
    "open_source",
    "require_files",
    "require_training_split",
    "source_cache",
]

CACHE = Path("runs") / ".jepa-cache"
"""Default folder for indexes and decoded images. Runs stored elsewhere keep them next to the run folder."""
USER_CACHE = Path("~/.cache/image-jepa").expanduser()  # if the folder of the runs cannot be written to
INDEX_VERSION = 5  # bump when indexes are written differently, to rebuild those of earlier versions
MAX_EXAMINED = 200_000  # the files of larger folders are not examined again whenever the index is opened


class Source(ABC):
    """A source of images with one or more splits.

    `config` is the config of the source, `name` is the value of `--data`, and `cache` is the folder for its indexes,
    which is created when needed.
    """

    def __init__(self, config: Any, name: str, cache: Path) -> None:
        self.config, self.name, self.cache = config, name, cache

    @abstractmethod
    def splits(self) -> list[str]:
        """Return the names of the splits, such as train, test or validation.

        Raises `InputError` if the source is missing or contains no images.
        """

    @abstractmethod
    def open(self, split: str) -> SplitIndex:
        """Return the index of a split without decoding any images. Raises `InputError` if the split cannot be read."""

    def count_files(self) -> dict[str, int]:
        """Return the number of all files of the source by kind, or nothing if the source is not a folder."""
        return {}


def open_source(name: str, cache: Path | None = None) -> Source:
    """Open the source given by the value of `--data`; `cache` is the root of all caches.

    Raises `InputError` if there is no such source.
    """
    config = parse_source(name)
    source: Source = SOURCES.implementation(config)(config, name, source_cache(name, cache or CACHE))
    return source


def cache_beside(run: Path) -> Path:
    """Return the cache folder beside a run, or that of the user if it cannot be written to."""
    cache = run.parent / CACHE.name
    return cache if os.access(cache if cache.exists() else cache.parent, os.W_OK) else USER_CACHE


def require_training_split(name: str, splits: Iterable[str]) -> None:
    """Raise `InputError` if `splits` has no training split; `name` is the source in the error message."""
    available = ", ".join(sorted(splits))
    require("train" in splits, f"{name} has no training split, only {available}; use a source with a 'train' split")


def source_cache(name: str, cache: Path) -> Path:
    """Return the cache folder of a source; `cache` is the root of all caches."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).name)[-40:] or "root"
    return cache / f"{readable}-{source_hash(name)}"


def source_hash(name: str) -> str:
    """Return a hash of the place of a source, which is the same for all ways to write its path."""
    path = str(Path(os.path.expanduser(name)).resolve())  # noqa: PTH111  (an unknown user is no error)
    return hashlib.blake2b(path.encode("utf-8", "replace"), digest_size=4).hexdigest()


def file_signature(files: list[Path]) -> str:
    """Return a hash of the paths, sizes and modification times of the files, and of the version of the indexes."""
    status = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.blake2b(json.dumps([INDEX_VERSION, *status]).encode(), digest_size=8).hexdigest()


def cached_splits(cache: Path, signature: str, write_indexes: Callable[[], list[str]]) -> list[str]:
    """Return the splits whose indexes are in a cache folder.

    If they are missing or outdated, `write_indexes` is called to write them and return the splits.
    """
    file = cache / "splits.json"
    record = read_record(file) or {}
    if record.get("stamp") != signature:
        record = {"stamp": signature, "splits": write_indexes()}
        write_record(file, record)
    return list(record["splits"])


def open_index(
    cache: Path, split: str, root: Path, rebuild: Callable[[], object], *, examine: bool = True
) -> SplitIndex:
    """Open the index of a split in a cache folder; its paths are relative to `root`.

    A damaged index is written again by `rebuild`. The signature also covers the sizes and modification times of the
    files on disk, unless `examine` is False. `metadata["missing"]` is the number of files that do not exist, and the
    first of them. Raises `InputError` if the index cannot be read after it was written again.
    """
    path = cache / f"{split}.arrow"
    index = read_index(path, root)
    if index is None:
        rebuild()
        index = read_index(path, root)
    if index is None:
        raise InputError(f"the index {path} cannot be read; delete the folder {cache} and run the command again")
    if examine:
        examine_files(index)
    return index


def examine_files(index: SplitIndex) -> None:
    """Complete the signature, the total size and the number of missing files of an index whose images are on disk."""
    folder = os.fsencode(index.files.root)
    numbers = array("q")
    missing: list[bytes] = []
    paths = paths_on_disk(index)
    for path in paths:
        try:
            status = os.stat(os.path.join(folder, path))  # noqa: PTH116, PTH118  (pathlib takes ten times as long)
            numbers.extend((status.st_size, status.st_mtime_ns))
        except OSError:
            missing.append(path)
            numbers.extend((-1, -1))
    index.metadata["missing"] = {"count": len(missing), "first": os.fsdecode(missing[0]) if missing else ""}
    index.metadata["on_disk"] = len(paths)
    if paths:
        digest = hashlib.blake2b(index.metadata["signature"].encode(), digest_size=8)
        digest.update(b"\n".join(paths))
        digest.update(numbers)
        index.metadata["signature"] = digest.hexdigest()
        stored = sum(chunk.field(0).nbytes for chunk in index.files.column.chunks) if has_content(index) else 0
        index.files.nbytes = stored + sum(size for size in numbers[::2] if size > 0)


def require_files(index: SplitIndex, name: str, folder: object) -> None:
    """Raise `InputError` if all images of a split should be files but none exists.

    `folder` is what relative paths start from.
    """
    missing = index.metadata["missing"]
    require(
        missing["count"] < max(len(index.files), 1),
        f"none of the {missing['count']:,} images in {name} exists, for example {missing['first']}; paths must be "
        f"absolute or relative to {folder}",
    )
    if missing["count"]:
        note = f"{missing['count']:,} of {len(index.files):,} images do not exist, for example {missing['first']}"
        index.metadata["notes"] = [*index.metadata.get("notes", ()), note]


def has_content(index: SplitIndex) -> bool:
    """Return whether an index may contain encoded images, rather than paths only."""
    return bool(pa.types.is_struct(index.files.column.type))


def paths_on_disk(index: SplitIndex) -> list[bytes]:
    """Return the paths of the images that are files on disk, in order."""
    column = index.files.column
    if not has_content(index):
        return list(column.to_pylist())
    paths: list[bytes] = []
    for chunk in column.chunks:
        content, path = chunk.field(0), chunk.field(1)
        if content.null_count:
            named = pc.and_(pc.is_null(content), pc.is_valid(path))
            paths += [os.fsencode(text) for text in path.filter(named).to_pylist()]
    return paths
