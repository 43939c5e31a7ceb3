"""Walk a folder and account for each of its entries: images, parquet files, and everything else under a reason.

Folders may contain millions of files, so this module uses `os`, which is faster than `pathlib`.
"""
# ruff: noqa: PTH116, PTH118, PTH119, PTH122

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jepa.data.decode import EXTENSIONS

__all__ = ["LOST", "FolderListing", "count_entries", "walk"]

SYSTEM_FOLDERS = frozenset(
    {"@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)
"""Folders of thumbnails, metadata and deleted files that systems create; they count as hidden."""
RUNS, RUN_MARKER = "runs", ".jepa-cache"  # a folder `runs` that contains `.jepa-cache` holds runs, not images
RUN_FIGURES = ("contact-sheet-", "compare")  # beginnings of the names of the images in such a folder
RUN_FILES = frozenset({"config.json", "metrics.jsonl"})  # a folder that contains both is a run
BROKEN, DENIED, SPECIAL = "broken links", "entries without permission", "special files"
LOST = (BROKEN, DENIED, SPECIAL)
"""Reasons for entries that seem to be images, or folders of them, but cannot be read."""
Key = tuple[int, int]  # device and number of a folder
MAX_VISITS = 16  # times that one folder is read through different links, which bounds folders that link to each other


@dataclass
class FolderListing:
    """The entries of one folder. Its path is relative to the root, and is empty or ends with a slash."""

    path: str
    modified: int = 0  # time (ns); changes when an entry is added, removed or replaced
    images: list[tuple[str, int, int]] = field(default_factory=list)  # name, size in bytes, modification time (ns)
    folders: list[str] = field(default_factory=list)
    parquet: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)  # number of other entries by extension or reason
    unread: dict[str, str] = field(default_factory=dict)  # reason by path of each folder that is left out on purpose
    closed: list[str] = field(default_factory=list)  # folders that cannot be read, with the reason
    run_files: set[str] = field(default_factory=set)  # those of RUN_FILES


def walk(root: Path, hidden: bool = False, above: frozenset[Key] = frozenset()) -> Iterator[FolderListing]:
    """Yield every folder below `root` in sorted order, parents first. Links are followed, except for loops.

    Hidden files, hidden folders and `SYSTEM_FOLDERS` are left out unless `hidden` is True. No file is opened: FIFOs and
    devices are skipped.
    `above` are further folders to which links are loops.
    """
    visits: Counter[Key] = Counter()
    start = FolderListing("")
    remaining: list[tuple[str, frozenset[Key], FolderListing]] = [("", above, start)]
    while remaining:
        path, above, parent = remaining.pop()
        listing = FolderListing(path)
        try:
            status = os.stat(os.path.join(root, path))
            key = _key(status)
            if key in above or visits[key] == MAX_VISITS:
                parent.skipped["loops of links"] += 1
                continue
            listing.modified = status.st_mtime_ns
            _read_folder(listing, root, hidden)
        except OSError as error:
            if parent is start:
                raise
            parent.closed.append(f"{path} ({error.strerror})")
            parent.skipped["folders that cannot be read"] += 1
            continue
        if path and _holds_runs(listing) and not hidden:  # figures of runs are not training images
            parent.unread[path] = "in run folders"
            continue
        visits[key] += 1
        yield listing
        inside = above | {key}
        remaining += [(f"{path}{name}/", inside, listing) for name in reversed(listing.folders)]


def count_entries(root: Path, path: str) -> int:
    """Return the number of entries of a folder below `root` that are not folders, including hidden ones."""
    try:
        folders = [root, *(root / parent for parent in Path(path).parents)]
        above = frozenset(_key(os.stat(folder)) for folder in folders)
        listings = list(walk(root / path, hidden=True, above=above))
    except OSError:  # the folder itself cannot be read
        return 1
    return sum(len(listing.images) + len(listing.parquet) + listing.skipped.total() for listing in listings)


def _key(status: os.stat_result) -> Key:
    return status.st_dev, status.st_ino


def _holds_runs(listing: FolderListing) -> bool:
    """Return whether a folder is a run, or a folder of runs, whose images are figures."""
    if listing.run_files == RUN_FILES:
        return True
    is_marked = any(os.path.basename(path) == RUN_MARKER for path in listing.unread)
    has_photos = any(not name.startswith(RUN_FIGURES) for name, _, _ in listing.images)
    return is_marked and os.path.basename(listing.path.rstrip("/")) == RUNS and not has_photos


def _read_folder(listing: FolderListing, root: Path, hidden: bool) -> None:
    """Fill a listing with the sorted entries of its folder."""
    with os.scandir(os.path.join(root, listing.path)) as entries:
        for entry in entries:
            try:
                _add(listing, entry, hidden)
            except OSError as error:  # of this entry only: the others stay
                denied = isinstance(error, PermissionError)
                listing.skipped[DENIED if denied else BROKEN] += 1
    listing.images.sort()
    listing.folders.sort()
    listing.parquet.sort()


def _add(listing: FolderListing, entry: os.DirEntry[str], hidden: bool) -> None:
    """Add an entry to a listing. Raises `OSError` if it is a link that leads nowhere."""
    extension = os.path.splitext(entry.name)[1].lower()
    is_hidden = (entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS) and not hidden
    if entry.is_dir():
        if is_hidden:
            listing.unread[listing.path + entry.name] = "hidden"
        else:
            listing.folders.append(entry.name)
        return
    if is_hidden:
        listing.skipped["hidden"] += 1
        return
    if entry.name in RUN_FILES:
        listing.run_files.add(entry.name)
    if extension not in EXTENSIONS and extension != ".parquet":
        if entry.is_symlink() and not entry.is_file():
            entry.stat()  # raises OSError if the target is missing, which may be a folder of images
        listing.skipped[extension or "without extension"] += 1
        return
    status = entry.stat()
    if not stat.S_ISREG(status.st_mode):
        listing.skipped[SPECIAL] += 1
    elif extension in EXTENSIONS:
        listing.images.append((entry.name, status.st_size, status.st_mtime_ns))
    else:
        listing.parquet.append(entry.name)
