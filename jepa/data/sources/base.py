"""The interface of data sources, and how the value of `--data` becomes one.

A new kind of source is a config class whose `parse` accepts some values of `--data`, a subclass of `Source`, and a line
in the table `jepa.config.SOURCES`. A source of few files can build its indexes in memory with `SplitIndex.from_files`;
other sources write them to their cache folder once, with `cached_splits` and `write_index`.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jepa.config import SOURCES, InputError, parse_source, require
from jepa.data.index import SplitIndex, read_index
from jepa.files import atomic_write

__all__ = [
    "CACHE",
    "LABEL_COLUMNS",
    "SPLIT_NAMES",
    "Source",
    "cached_splits",
    "check_class_numbers",
    "complete_class_names",
    "file_signature",
    "open_index",
    "open_source",
    "require_training_split",
    "source_cache",
]

CACHE = Path("runs") / ".jepa-cache"
"""Default folder for indexes and decoded images. A run that is trained elsewhere keeps them beside its own folder."""
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
}
"""Splits by the names that files, folders and tables give them."""
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")
"""Names of the column of labels in a table, the first of which is used."""
MAX_CLASSES = 1_000_000  # more classes than in any dataset of images; larger numbers are identifiers


class Source(ABC):
    """A source of images in one or several splits.

    `config` is the config of the source, `name` is how the user wrote it after `--data`, and `cache` is a folder that
    belongs to this source, in which it may keep an index. The folder may not exist yet.
    """

    def __init__(self, config: Any, name: str, cache: Path) -> None:
        self.config, self.name, self.cache = config, name, cache

    @abstractmethod
    def splits(self) -> list[str]:
        """Return the names of the splits: train, test, validation, or others.

        Raises `InputError` if the source is missing or holds no images.
        """

    @abstractmethod
    def open(self, split: str) -> SplitIndex:
        """Return the index of a split, without decoding an image. Raises `InputError` if it cannot be read."""


def open_source(name: str, cache: Path | None = None) -> Source:
    """Open the source that `name`, the value of `--data`, describes; `cache` is the folder that holds all indexes.

    Raises `InputError` if there is no such source.
    """
    config = parse_source(name)
    source: Source = SOURCES.implementation(config)(config, name, source_cache(name, cache or CACHE))
    return source


def require_training_split(name: str, splits: Iterable[str]) -> None:
    """Raise `InputError` unless a source of this name has a split to train on."""
    others = ", ".join(sorted(splits))
    require("train" in splits, f"{name} has no training split, only {others}; give a source with a split named 'train'")


def source_cache(name: str, cache: Path) -> Path:
    """Return the folder of a source within the folder of all caches."""
    path = str(Path(name).expanduser().resolve())
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).name)[-40:] or "root"
    return cache / f"{readable}-{hashlib.blake2b(path.encode('utf-8', 'replace'), digest_size=4).hexdigest()}"


def file_signature(files: list[Path]) -> str:
    """Return a hash of the paths, sizes and modification times of some files."""
    status = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.blake2b(json.dumps(status).encode(), digest_size=8).hexdigest()


def cached_splits(cache: Path, signature: str, write_indexes: Callable[[], list[str]]) -> list[str]:
    """Return the splits whose indexes are in a cache folder.

    If the folder has none of this signature, `write_indexes` is called, which writes them and returns the splits.
    """
    file = cache / "splits.json"
    record: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        record = json.loads(file.read_text())
    if record.get("stamp") != signature:
        record = {"stamp": signature, "splits": write_indexes()}
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(record))
    return list(record["splits"])


def open_index(cache: Path, split: str, root: Path) -> SplitIndex:
    """Open the index of a split in a cache folder; `root` is the folder that its paths start from.

    Raises `InputError` if the index is damaged.
    """
    path = cache / f"{split}.arrow"
    index = read_index(path, root)
    if index is None:
        raise InputError(f"the index {path} is damaged; remove the folder {cache} and run the command again")
    return index


def check_class_numbers(highest: int, column: str, name: str | Path) -> None:
    """Raise `InputError` if the highest number in a column of labels is too large for a class."""
    require(
        highest < MAX_CLASSES,
        f"the column '{column}' of {name} holds {highest}; it takes classes numbered from 0, below {MAX_CLASSES:,}",
    )


def complete_class_names(names: Sequence[str], highest: int) -> tuple[str, ...]:
    """Return the names of the classes 0 … highest, with numbers for those that have no name.

    Some datasets name fewer classes than they have.
    """
    return (*names, *(str(number) for number in range(len(names), highest + 1)))
