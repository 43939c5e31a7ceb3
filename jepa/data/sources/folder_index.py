"""Index a folder of images: find its splits and classes, and write the sorted paths of all images."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from jepa.config import InputError
from jepa.data.index import PATHS, write_index
from jepa.data.labels import Labels, label_metadata, number_rows
from jepa.data.sources.base import INDEX_VERSION
from jepa.data.sources.folder_walk import LOST, FolderListing, walk
from jepa.data.sources.splits import (
    are_numbered,
    find_splits,
    is_container,
    is_unlabeled,
    looks_like_split,
    mentioned_splits,
    split_of,
    without_masks,
)

__all__ = ["FolderIndex", "index_folder", "is_current", "walk_folder"]

BATCH_ROWS = 8192  # number of rows per Arrow batch
CLOCK_TOLERANCE_NS = 2_000_000_000  # coarsest timestamp resolution of common file systems
UNLABELED_FOLDER = -2  # images in a folder of unlabeled images; -1 are outside of the class folders
MAX_NAMED = 5  # maximum number of folders in a message


@dataclass
class FolderIndex:
    """Metadata of an indexed folder, stored as JSON."""

    version: int = 0
    split_sizes: dict[str, int] = field(default_factory=dict)
    """Number of images per split."""
    parquet_files: list[str] = field(default_factory=list)
    """Paths of the parquet files in the folder."""
    outside: dict[str, int] = field(default_factory=dict)
    """Number of images that belong to no split, by folder; "" is the folder itself."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Number of other entries by extension or reason, most frequent first."""
    unread: dict[str, str] = field(default_factory=dict)
    """Reason by path of each folder that was left out on purpose: hidden folders and run folders."""
    notes: list[str] = field(default_factory=list)
    """What may be wrong, in one sentence each."""
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
        unchanged = all(os.stat(path).st_mtime_ns == modified for path, modified in index.folder_times)  # noqa: PTH116
    except OSError:
        return False
    last_change = max((modified for _, modified in index.folder_times), default=0)
    is_old = last_change < index.created - CLOCK_TOLERANCE_NS
    return unchanged and is_old and not index.notes


def walk_folder(root: Path) -> tuple[FolderIndex, Folders]:
    """List all folders below `root`; the splits of the returned index are not known yet."""
    index = FolderIndex(INDEX_VERSION, created=time.time_ns())
    listings: dict[str, FolderListing] = {}
    with tqdm(desc=f"listing {root}", unit=" images", delay=1, leave=False, disable=None) as bar:
        for listing in walk(root):
            listings[listing.path] = listing
            bar.update(len(listing.images))
    skipped: Counter[str] = Counter()
    closed: list[str] = []
    for path, listing in listings.items():
        index.folder_times.append((str(root / path), listing.modified))
        index.parquet_files += [str(root / path / name) for name in listing.parquet]
        index.unread |= listing.unread
        skipped.update(listing.skipped)
        closed += listing.closed
    index.skipped = dict(skipped.most_common())
    if closed:
        index.notes.append(f"{_count(len(closed), 'folder')} cannot be read: {_list(closed)}")
    lost = {reason: count for reason, count in index.skipped.items() if reason in LOST}
    if lost:
        found = ", ".join(f"{count:,} {reason}" for reason, count in lost.items())
        index.notes.append(f"what may be images cannot be read: {found}")
    return index, Folders(root, listings)


def index_folder(index: FolderIndex, folders: Folders, cache: Path) -> None:
    """Find the splits of the listed folders, write `SPLIT.arrow` to `cache` for each, and complete `index`.

    Splits follow `find_splits`. If most images of a split are in subfolders, and there are at least two in all splits,
    those are the classes, and the other images are unlabeled. Raises `InputError` if a folder looks like a split but is
    not clearly one.
    """
    splits = folders.splits()
    prefixes = [prefix for names in splits.values() for prefix in names]
    names = folders.class_names(prefixes)
    class_names = sorted(name for name in names if not is_unlabeled(name))
    class_numbers = {name: number for number, name in enumerate(class_names)} | dict.fromkeys(
        names - set(class_names), UNLABELED_FOLDER
    )
    for split, paths_of_split in splits.items():
        rows = [row for prefix in paths_of_split for row in folders.images(prefix, class_numbers)]
        paths = [os.fsencode(path) for path, *_ in rows]  # may be arbitrary bytes
        columns = np.array([numbers for _, *numbers in rows], np.int64).reshape(-1, 3)
        labels = _labels(columns[:, 0], class_names)
        signature = hashlib.blake2b(b"\n".join([*paths, columns.tobytes()]), digest_size=8).hexdigest()
        batches = _batches(paths, columns[:, 1], labels.numbers)
        write_index(cache / f"{split}.arrow", PATHS, batches, {**label_metadata(labels), "signature": signature})
        index.split_sizes[split] = len(rows)
    index.outside = folders.outside(prefixes)
    index.notes += _notes(folders, splits, index.outside)


class Folders:
    """The listed folders below a root, by path; paths are empty or end with a slash."""

    def __init__(self, root: Path, listings: dict[str, FolderListing]) -> None:
        self.root, self.listings = root, listings
        self.counts: Counter[str] = Counter()  # number of images in and below each folder
        for path, listing in reversed(listings.items()):  # subfolders first
            self.counts[path] += len(listing.images)
            if path:
                self.counts[_parent(path)] += self.counts[path]

    def children(self, path: str) -> list[str]:
        """Return the names of the subfolders that contain images, at any depth, without masks beside images."""
        return without_masks([name for name in self.listings[path].folders if self.counts[f"{path}{name}/"]])

    def class_names(self, prefixes: list[str]) -> set[str]:
        """Return the names of the subfolders of the splits that are classes, or contain unlabeled images."""
        children = [found for prefix in prefixes if not are_numbered(found := self.children(prefix))]
        containers = [found for found in children if len(found) == 1 and is_container(found[0])]
        return {name for found in children if found not in containers for name in found}

    def splits(self) -> dict[str, list[str]]:
        """Return the folders of each split; without splits, all images are in the split train."""
        path = ""
        while True:
            names = self.children(path)
            nested = [name for name in names if self.children(f"{path}{name}/")]
            where = str(self.root / path)
            if splits := find_splits(names, nested, where):
                found = {split: [f"{path}{name}/" for name in folders] for split, folders in splits.items()}
                break
            if len(names) != 1 or self.listings[path].images:
                self._check_file_names(path)
                found = {"train": [path]}
                break
            path += f"{names[0]}/"
        found = self._descend(found)
        self._check_nested(found)
        return found

    def _check_file_names(self, prefix: str) -> None:
        """Raise `InputError` if the names of all images name splits, as in train_1.png and test_1.png."""
        found: set[str] = set()
        examples: list[str] = []
        for path, listing in self.listings.items():
            for name, *_ in listing.images if path.startswith(prefix) else ():
                mentioned = mentioned_splits(os.path.splitext(name)[0])  # noqa: PTH122  (pathlib takes ten times as long)
                if not mentioned:
                    return
                examples += [path + name] if mentioned - found else []
                found |= mentioned
        if len(found) > 1:
            raise InputError(
                f"the names of all images in {self.root} contain splits, for example {_list(examples)}; move the "
                "images to folders train, validation and test, or pass a table with a column 'split' to --data"
            )

    def _descend(self, splits: dict[str, list[str]]) -> dict[str, list[str]]:
        """Go down while every folder of a split has the same single subfolder, or one of its own name, and no image."""
        while True:
            prefixes = [prefix for names in splits.values() for prefix in names]
            children = {prefix: self.children(prefix) for prefix in prefixes}
            has_one = all(len(names) == 1 and not self.listings[path].images for path, names in children.items())
            if not has_one:
                return splits
            own = all(split_of(names[0]) == split_of(path.split("/")[-2]) for path, names in children.items() if path)
            same = len({name for names in children.values() for name in names}) == 1
            if not (same or (own and all(prefixes))):
                return splits
            splits = {split: [f"{path}{children[path][0]}/" for path in paths] for split, paths in splits.items()}

    def _check_nested(self, splits: dict[str, list[str]]) -> None:
        """Raise `InputError` if further splits are inside of a split; one folder alone may be named like that."""
        for split, prefixes in splits.items():
            nested = [path for prefix in prefixes for path in self.named_as_splits(prefix)]
            kinds = [mentioned_splits(path.split("/")[-2]) for path in nested]
            others = [kind for kind in kinds if kind != {split}]
            if len(others) > 1 or (others and len(others) < len(kinds)):
                raise InputError(
                    f"{self.root} contains splits in several folders or beside other images: {_list(nested)}; pass the "
                    "folder that contains the splits to --data"
                )

    def named_as_splits(self, prefix: str) -> list[str]:
        """Return the folders with images below a split that are named as splits."""
        below = (path for path in self.listings if path != prefix and path.startswith(prefix) and self.counts[path])
        return [path for path in below if _is_split_name(path.split("/")[-2])]

    def images(self, prefix: str, class_numbers: dict[str, int]) -> Iterator[tuple[str, int, int, int]]:
        """Yield the path, class (or -1), size and modification time of each image of a split, parent folders first."""
        for path, listing in self.listings.items():
            if path.startswith(prefix):
                name = path[len(prefix) :].partition("/")[0]
                label = class_numbers.get(name, -1)
                yield from ((path + image, label, size, modified) for image, size, modified in listing.images)

    def outside(self, prefixes: list[str]) -> dict[str, int]:
        """Return the number of images that are not below the prefixes, by folder."""
        outside: Counter[str] = Counter()
        for path, listing in self.listings.items():
            if listing.images and not any(path.startswith(prefix) for prefix in prefixes):
                outside[path] += len(listing.images)
        return dict(outside)


def _is_split_name(name: str) -> bool:
    return split_of(name) is not None or (looks_like_split(name) and bool(mentioned_splits(name)))


def _parent(path: str) -> str:
    return path[: path.rstrip("/").rfind("/") + 1]


def _labels(numbers: np.ndarray, class_names: list[str]) -> Labels:
    """Return the labels of a split; there are none if half of the images are outside of the class folders."""
    outside, total = int((numbers == -1).sum()), len(numbers)
    reason = ""
    if len(class_names) < 2 or outside == total:
        reason = "the images are not in class folders"
    elif 2 * outside >= total:
        reason = f"{outside:,} of {total:,} images are outside the {len(class_names)} class folders"
    return Labels(np.full(total, -1, np.int32), (), reason) if reason else number_rows(numbers, class_names)


def _batches(paths: list[bytes], sizes: np.ndarray, labels: np.ndarray) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(paths), BATCH_ROWS):
        rows = slice(start, start + BATCH_ROWS)
        columns = [pa.array(paths[rows], pa.large_binary()), pa.array(sizes[rows]), pa.array(labels[rows], pa.int32())]
        yield pa.record_batch(columns, schema=PATHS)


def _notes(folders: Folders, splits: dict[str, list[str]], outside: dict[str, int]) -> list[str]:
    """Return what may be wrong with the splits, in one sentence each."""
    notes = []
    if count := sum(outside.values()):
        places = [f"{path or 'the folder itself'} {number:,}" for path, number in outside.items()]
        used = "the split folders" if len(splits) > 1 else _list(splits["train"]) if "train" in splits else "the split"
        notes.append(f"{_count(count, 'image')} {_are(count)} outside {used} and not used: {_list(places)}")
    empty = [name for name in folders.listings[""].folders if split_of(name) and not folders.counts[f"{name}/"]]
    if empty:
        notes.append(f"{_count(len(empty), 'folder')} named as a split without images: {_list(empty)}")
    for split, prefixes in splits.items():
        nested = [path for prefix in prefixes for path in folders.named_as_splits(prefix)]
        others = [path for path in nested if mentioned_splits(path.split("/")[-2]) != {split}]
        if others:
            notes.append(f"{_count(len(others), 'folder')} in {split} named as another split: {_list(others)}")
    return notes


def _count(number: int, noun: str) -> str:
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _list(items: list[str]) -> str:
    return ", ".join(items[:MAX_NAMED]) + (", …" if len(items) > MAX_NAMED else "")
