"""Interface of data sources, and creation of a source from the value of `--data`.

To add a source, write a config class whose `parse` accepts some values of `--data` and a subclass of `Source`, and add
a line to the table `jepa.config.SOURCES`. Sources with few files can build their indexes in memory with
`SplitIndex.from_files`; others write them to their cache folder once, with `cached_splits` and `write_index`.
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
"""Default folder for indexes and decoded images. Runs stored elsewhere keep them next to the run folder."""
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
}
"""Aliases of split names in files, folders and tables."""
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")
"""Accepted names of the label column; the first one present is used."""
MAX_CLASSES = 1_000_000  # more than any image dataset has; larger numbers are identifiers


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


def open_source(name: str, cache: Path | None = None) -> Source:
    """Open the source given by the value of `--data`; `cache` is the root of all caches.

    Raises `InputError` if there is no such source.
    """
    config = parse_source(name)
    source: Source = SOURCES.implementation(config)(config, name, source_cache(name, cache or CACHE))
    return source


def require_training_split(name: str, splits: Iterable[str]) -> None:
    """Raise `InputError` if `splits` has no training split; `name` is the source in the error message."""
    available = ", ".join(sorted(splits))
    require("train" in splits, f"{name} has no training split, only {available}; use a source with a 'train' split")


def source_cache(name: str, cache: Path) -> Path:
    """Return the cache folder of a source; `cache` is the root of all caches."""
    path = str(Path(name).expanduser().resolve())
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).name)[-40:] or "root"
    return cache / f"{readable}-{hashlib.blake2b(path.encode('utf-8', 'replace'), digest_size=4).hexdigest()}"


def file_signature(files: list[Path]) -> str:
    """Return a hash of the paths, sizes and modification times of the files."""
    status = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.blake2b(json.dumps(status).encode(), digest_size=8).hexdigest()


def cached_splits(cache: Path, signature: str, write_indexes: Callable[[], list[str]]) -> list[str]:
    """Return the splits whose indexes are in a cache folder.

    If they are missing or outdated, `write_indexes` is called to write them and return the splits.
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
    """Open the index of a split in a cache folder; its paths are relative to `root`.

    Raises `InputError` if the index is damaged.
    """
    path = cache / f"{split}.arrow"
    index = read_index(path, root)
    if index is None:
        raise InputError(f"the index {path} is damaged; delete the folder {cache} and run the command again")
    return index


def check_class_numbers(highest: int, column: str, name: str | Path) -> None:
    """Raise `InputError` if the highest number in a label column is too large for a class."""
    require(
        highest < MAX_CLASSES,
        f"the column '{column}' of {name} must contain class numbers below {MAX_CLASSES:,}, got {highest}",
    )


def complete_class_names(names: Sequence[str], highest: int) -> tuple[str, ...]:
    """Return one name per class 0 … highest; unnamed classes get their number."""
    return (*names, *(str(i) for i in range(len(names), highest + 1)))
