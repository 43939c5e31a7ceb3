"""A folder of images at any depth: splits, classes, and an index that a second start opens at once."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from jepa.data.decode import EXTENSIONS
from jepa.data.files import PATHS, write_listing

__all__ = ["SPLITS", "Found", "index_folder", "is_fresh"]

SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
}
RUNS, OURS = "runs", ".jepa-cache"  # a folder of that name with that in it is of runs, not of images
ROWS = 8192  # of one Arrow batch
CLOCK_NS = 2_000_000_000  # a change so soon after the index was made may not show in a folder's time stamp


@dataclass
class Found:
    """What an index says beside its rows; goes to JSON."""

    splits: dict[str, int] = field(default_factory=dict)
    """Images of each split."""
    parquet: list[str] = field(default_factory=list)
    """Parquet files that lie among the images."""
    ignored: dict[str, int] = field(default_factory=dict)
    """Other files, by extension."""
    stamps: list[tuple[str, int]] = field(default_factory=list)
    """Every folder with its time of change in ns; files that come, go or are replaced change it."""
    built: int = 0


def is_fresh(found: Found) -> bool:
    """Say whether no folder has changed since the index was made."""
    try:
        same = all(os.stat(path).st_mtime_ns == stamp for path, stamp in found.stamps)  # noqa: PTH116  (a million of them)
    except OSError:
        return False
    return same and max((stamp for _, stamp in found.stamps), default=0) < found.built - CLOCK_NS


def index_folder(root: Path, into: Path) -> Found:
    """Walk a folder in sorted order and write `SPLIT.arrow` for every split into the folder `into`.

    `train` and `test` or `val` folders at the top are the splits; where all images of a split lie in folders of it, of
    which there are two at least, those are its classes. Hidden files and folders are passed over; links are followed.
    """
    into.mkdir(parents=True, exist_ok=True)  # which may lie in the folder
    found = Found(built=time.time_ns())
    top = [name for name in folders_of(root) if holds_images(root / name)]
    named = {name: SPLITS[name.lower()] for name in top if name.lower() in SPLITS}
    several = "train" in named.values() and len(set(named.values())) > 1
    is_split = bool(named) and (several or len(named) == len(top))
    parts = {SPLITS[name.lower()]: f"{name}/" for name in named} if is_split else {"train": ""}
    names = {name for part in parts.values() for name in folders_of(root / part) if holds_images(root / part / name)}
    known = {name: number for number, name in enumerate(sorted(names))}
    ignored: Counter[str] = Counter()
    with tqdm(desc=f"indexing {root}", unit=" images", delay=1, leave=False) as bar:
        for split, part in parts.items():
            listing = _Listing(root, part, known, found, ignored, bar)
            write_listing(into / f"{split}.arrow", PATHS, listing.batches(), listing.facts)
            found.splits[split] = listing.rows
    if is_split:
        found.stamps.append((str(root), os.stat(root).st_mtime_ns))  # noqa: PTH116
    found.ignored = dict(ignored.most_common())
    return found


def folders_of(path: Path) -> list[str]:
    """Return the sorted names of the folders in a folder, without hidden ones."""
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))


def is_image(name: str) -> bool:
    """Say whether a file name is one of an image."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS  # noqa: PTH122


def holds_images(path: Path) -> bool:
    """Say whether there is an image somewhere below a folder."""
    for place, folders, files in os.walk(path):
        if OURS in folders and os.path.basename(place) == RUNS:  # noqa: PTH119
            return False
        if any(is_image(name) for name in files):
            return True
        folders[:] = [name for name in folders if not name.startswith(".")]
    return False


class _Listing:
    """Collects the rows of one split; `facts` are complete when the batches are through."""

    def __init__(
        self, root: Path, part: str, known: dict[str, int], found: Found, ignored: Counter[str], bar: Any
    ) -> None:
        self.root, self.part, self.known = root, part, known
        self.found, self.ignored, self.bar = found, ignored, bar
        self.rows = 0
        self.facts: dict[str, object] = {"classes": [], "signature": ""}
        self.hash = hashlib.blake2b(digest_size=8)
        self.labels: Counter[int] = Counter()

    def batches(self) -> Iterator[pa.RecordBatch]:
        paths: list[bytes] = []  # a file name is any bytes
        numbers: list[tuple[int, int, int]] = []  # size, class, time of change
        for path, label in self._walk():
            try:
                status = os.stat(os.path.join(self.root, path))  # noqa: PTH116, PTH118  (a million of them)
            except OSError:  # a link to nothing
                self.ignored["(broken link)"] += 1
                continue
            paths.append(os.fsencode(path))
            numbers.append((status.st_size, label, status.st_mtime_ns))
            if len(paths) == ROWS:
                yield self._batch(paths, numbers)
                paths, numbers = [], []
        if paths:
            yield self._batch(paths, numbers)
        folders = len(self.labels.keys() - {-1})
        labelled = folders > 1 and not self.labels[-1]
        self.facts |= {"classes": list(self.known) if labelled else [], "signature": self.hash.hexdigest()}
        if folders > 1 and self.labels[-1]:
            self.facts["outside"] = f"{self.labels[-1]:,} images lie outside of its {folders} folders"

    def _batch(self, paths: list[bytes], numbers: list[tuple[int, int, int]]) -> pa.RecordBatch:
        columns = np.array(numbers, dtype=np.int64)
        self.hash.update(b"\n".join(paths))
        self.hash.update(columns.tobytes())
        self.labels.update(columns[:, 1].tolist())
        self.rows += len(paths)
        self.bar.update(len(paths))
        return pa.record_batch(
            [pa.array(paths, pa.large_binary()), pa.array(columns[:, 0]), pa.array(columns[:, 1].astype(np.int32))],
            schema=PATHS,
        )

    def _walk(self) -> Iterator[tuple[str, int]]:
        """Yield the images of a split, folder by folder, parents first and sorted: path below the root, and class."""
        waiting = [(self.part, -1)]
        seen: set[tuple[int, int]] = set()
        while waiting:
            place, label = waiting.pop()
            try:
                status = (self.root / place).stat()
                if (status.st_dev, status.st_ino) in seen:  # a link that leads back
                    continue
                images, folders = self._look(self.root / place)
            except OSError:
                self.ignored["(closed folder)"] += 1
                continue
            seen.add((status.st_dev, status.st_ino))
            self.found.stamps.append((str(self.root / place), status.st_mtime_ns))
            yield from ((place + name, label) for name in images)
            inside = [
                (f"{place}{name}/", self.known.get(name, -1) if place == self.part else label) for name in folders
            ]
            waiting += reversed(inside)

    def _look(self, path: Path) -> tuple[list[str], list[str]]:
        """Return the sorted names of a folder's images and folders."""
        images, folders, ours = [], [], False
        with os.scandir(path) as entries:
            for entry in entries:
                ours |= entry.name == OURS
                if entry.name.startswith("."):
                    continue
                extension = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122  (a million of them)
                if entry.is_dir():
                    folders.append(entry.name)
                elif extension in EXTENSIONS:
                    images.append(entry.name)
                elif extension == ".parquet":
                    self.found.parquet.append(str(path / entry.name))
                else:
                    self.ignored[extension or "(no extension)"] += 1
        if ours and path.name == RUNS and path != self.root:  # which may hold figures
            return [], []
        return sorted(images), sorted(folders)
