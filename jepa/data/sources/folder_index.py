"""Index a folder of images: find its splits and classes, and write the sorted paths of all images.

Folders may contain millions of files, so this module uses `os`, which is faster than `pathlib`.
"""
# ruff: noqa: PTH116, PTH118, PTH119, PTH122

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
from jepa.data.index import PATHS, write_index
from jepa.data.sources.base import SPLIT_NAMES

__all__ = ["FolderIndex", "index_folder", "is_current"]

RUNS, RUN_MARKER = "runs", ".jepa-cache"  # a folder `runs` that contains `.jepa-cache` holds runs, not images
BATCH_ROWS = 8192  # number of rows per Arrow batch
CLOCK_TOLERANCE_NS = 2_000_000_000  # coarsest timestamp resolution of common file systems


@dataclass
class FolderIndex:
    """Metadata of an indexed folder, stored as JSON."""

    split_sizes: dict[str, int] = field(default_factory=dict)
    """Number of images per split."""
    parquet_files: list[str] = field(default_factory=list)
    """Paths of the parquet files in the folder."""
    ignored: dict[str, int] = field(default_factory=dict)
    """Number of other files by extension, most frequent first."""
    folder_times: list[tuple[str, int]] = field(default_factory=list)
    """Path and modification time (ns) of each folder; the time changes when a file is added, removed or replaced."""
    created: int = 0
    """Start time of the indexing (ns)."""


def is_current(index: FolderIndex) -> bool:
    """Return whether no folder has changed since it was indexed.

    A folder modified less than two seconds before it was indexed counts as changed, because a later change may not have
    changed its timestamp.
    """
    try:
        unchanged = all(os.stat(path).st_mtime_ns == modified for path, modified in index.folder_times)
    except OSError:
        return False
    last_change = max((modified for _, modified in index.folder_times), default=0)
    return unchanged and last_change < index.created - CLOCK_TOLERANCE_NS


def index_folder(root: Path, cache: Path) -> FolderIndex:
    """Index a folder, and write `SPLIT.arrow` to the folder `cache` for each split.

    Top-level folders named train, test, val or similar are splits. If all images of a split are in two or more
    subfolders, those are the classes. Hidden files and folders are ignored; symlinks are followed.
    """
    cache.mkdir(parents=True, exist_ok=True)  # before the walk, because it may be inside the folder
    index = FolderIndex(created=time.time_ns())
    folders = {name: SPLIT_NAMES.get(name.lower()) for name in subfolders(root) if contains_images(root / name)}
    split_folders = {split: f"{name}/" for name, split in folders.items() if split is not None}
    has_train_and_others = "train" in split_folders and len(split_folders) > 1
    has_splits = bool(split_folders) and (has_train_and_others or None not in folders.values())
    prefixes = split_folders if has_splits else {"train": ""}
    class_names = {
        name
        for prefix in prefixes.values()
        for name in subfolders(root / prefix)
        if contains_images(root / prefix / name)
    }
    class_numbers = {name: i for i, name in enumerate(sorted(class_names))}
    ignored: Counter[str] = Counter()
    with tqdm(desc=f"indexing {root}", unit=" images", delay=1, leave=False) as bar:
        for split, prefix in prefixes.items():
            walk = _SplitWalk(root, prefix, class_numbers, index=index, ignored=ignored, bar=bar)
            write_index(cache / f"{split}.arrow", PATHS, walk.batches(), walk.metadata)
            index.split_sizes[split] = walk.count
    if has_splits:
        index.folder_times.append((str(root), os.stat(root).st_mtime_ns))
    index.ignored = dict(ignored.most_common())
    return index


def subfolders(path: Path) -> list[str]:
    """Return the sorted names of the visible subfolders."""
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))


def contains_images(path: Path) -> bool:
    """Return whether a folder contains a file with an image extension, at any depth."""
    for folder, folders, files in os.walk(path):
        if RUN_MARKER in folders and os.path.basename(folder) == RUNS:
            return False
        if any(_extension(name) in EXTENSIONS for name in files if not name.startswith(".")):
            return True
        folders[:] = [name for name in folders if not name.startswith(".")]
    return False


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()


class _SplitWalk:
    """Walk the folders of one split, `prefix` below `root`.

    `batches` yields the rows of the split's index. Once exhausted, `metadata` and `count` are complete, and `index` and
    `ignored` have been updated with the folders, parquet files and ignored files of the split.
    """

    def __init__(
        self,
        root: Path,
        prefix: str,
        class_numbers: dict[str, int],
        *,
        index: FolderIndex,
        ignored: Counter[str],
        bar: Any,
    ) -> None:
        self.root, self.prefix, self.class_numbers = root, prefix, class_numbers
        self.index, self.ignored, self.bar = index, ignored, bar
        self.count = 0
        self.metadata: dict[str, object] = {"classes": [], "signature": ""}
        self.hash = hashlib.blake2b(digest_size=8)
        self.class_sizes: Counter[int] = Counter()  # number of images per class; -1 is outside the class folders

    def batches(self) -> Iterator[pa.RecordBatch]:
        paths: list[bytes] = []  # file names may be arbitrary bytes
        numbers: list[tuple[int, int, int]] = []  # size in bytes, class, modification time
        for path, label in self._images():
            try:
                status = os.stat(os.path.join(self.root, path))
            except OSError:
                self.ignored["(broken link)"] += 1
                continue
            paths.append(os.fsencode(path))
            numbers.append((status.st_size, label, status.st_mtime_ns))
            if len(paths) == BATCH_ROWS:
                yield self._batch(paths, numbers)
                paths, numbers = [], []
        if paths:
            yield self._batch(paths, numbers)
        num_classes, outside = len(self.class_sizes.keys() - {-1}), self.class_sizes[-1]
        has_labels = num_classes > 1 and not outside
        self.metadata |= {"classes": list(self.class_numbers) if has_labels else [], "signature": self.hash.hexdigest()}
        if num_classes > 1 and outside:
            images = "1 image is" if outside == 1 else f"{outside:,} images are"
            self.metadata["why_no_labels"] = f"{images} outside the {num_classes} class folders"

    def _batch(self, paths: list[bytes], numbers: list[tuple[int, int, int]]) -> pa.RecordBatch:
        columns = np.array(numbers, dtype=np.int64)
        self.hash.update(b"\n".join(paths))
        self.hash.update(columns.tobytes())
        self.class_sizes.update(columns[:, 1].tolist())
        self.count += len(paths)
        self.bar.update(len(paths))
        sizes, labels = pa.array(columns[:, 0]), pa.array(columns[:, 1].astype(np.int32))
        return pa.record_batch([pa.array(paths, pa.large_binary()), sizes, labels], schema=PATHS)

    def _images(self) -> Iterator[tuple[str, int]]:
        """Yield the relative path and the class of each image, in sorted order, with parent folders first."""
        remaining = [(self.prefix, -1)]
        visited: set[tuple[int, int]] = set()
        while remaining:
            folder, label = remaining.pop()
            try:
                status = (self.root / folder).stat()
                if (status.st_dev, status.st_ino) in visited:  # symlink loop
                    continue
                images, folders = self._list_folder(self.root / folder)
            except OSError:
                self.ignored["(unreadable folder)"] += 1
                continue
            visited.add((status.st_dev, status.st_ino))
            self.index.folder_times.append((str(self.root / folder), status.st_mtime_ns))
            yield from ((folder + name, label) for name in images)
            is_top = folder == self.prefix
            labels = [self.class_numbers.get(name, -1) if is_top else label for name in folders]
            remaining += reversed([(f"{folder}{name}/", label) for name, label in zip(folders, labels, strict=True)])

    def _list_folder(self, path: Path) -> tuple[list[str], list[str]]:
        """Return the sorted names of the images and of the visible subfolders."""
        images, folders, has_marker = [], [], False
        with os.scandir(path) as entries:
            for entry in entries:
                has_marker |= entry.name == RUN_MARKER
                if entry.name.startswith("."):
                    continue
                extension = _extension(entry.name)
                if entry.is_dir():
                    folders.append(entry.name)
                elif extension in EXTENSIONS:
                    images.append(entry.name)
                elif extension == ".parquet":
                    self.index.parquet_files.append(str(path / entry.name))
                else:
                    self.ignored[extension or "(no extension)"] += 1
        if has_marker and path.name == RUNS and path != self.root:  # figures of runs are not training images
            return [], []
        return sorted(images), sorted(folders)
