"""Source: a folder of images at any depth, or of parquet files that contain images."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from jepa.config import InputError
from jepa.config.sources import FolderSource, ParquetSource
from jepa.data.index import SplitIndex
from jepa.data.sources.base import MAX_EXAMINED, Source, open_index
from jepa.data.sources.folder_index import FolderIndex, index_folder, is_current, walk_folder
from jepa.data.sources.folder_walk import count_entries
from jepa.data.sources.parquet import Parquet, contains_images
from jepa.files import atomic_write

__all__ = ["Folder"]


class Folder(Source):
    """A folder of images at any depth, or of parquet files that contain images."""

    config: FolderSource

    @cached_property
    def index(self) -> FolderIndex:
        """The index of the folder, rebuilt if the folder has changed."""
        file = self.cache / "folder.json"
        index = None
        with suppress(OSError, ValueError, TypeError):
            index = FolderIndex(**json.loads(file.read_text(encoding="utf-8")))
        if index is None or not is_current(index):
            self.cache.mkdir(parents=True, exist_ok=True)  # before the walk, because it may be inside the folder
            index, folders = walk_folder(self.config.root)
            self._choose_parquet(index, has_images=bool(folders.counts[""]))
            if index.parquet_files:
                index.outside = folders.outside([])
            else:
                index_folder(index, folders, self.cache)
            with atomic_write(file) as temporary:
                temporary.write_text(json.dumps(dataclasses.asdict(index)), encoding="utf-8")
        return index

    def _choose_parquet(self, index: FolderIndex, has_images: bool) -> None:
        """Keep the parquet files with images. Damaged ones are kept, to be refused, unless the images are files."""
        found = {file: contains_images(Path(file)) for file in index.parquet_files}
        keep_damaged = any(found.values()) or not has_images
        index.parquet_files = [file for file, images in found.items() if images or (images is None and keep_damaged)]
        if others := len(found) - len(index.parquet_files):
            index.skipped["parquet without images"] = others

    @cached_property
    def parquet(self) -> Parquet | None:
        """The parquet files of images in the folder, or None if there are none."""
        files = tuple(sorted(Path(file) for file in self.index.parquet_files))
        if not files:
            return None
        return Parquet(ParquetSource(files, self.config.root), self.name, self.cache / "parquet")

    def splits(self) -> list[str]:
        """Return the splits that contain images. Raises `InputError` if there are none."""
        if self.parquet is not None:
            return self.parquet.splits()
        splits = [split for split, count in self.index.split_sizes.items() if count]
        if not splits:
            skipped = ", ".join(f"{count} {reason}" for reason, count in list(self.index.skipped.items())[:3])
            raise InputError(
                f"the folder {self.name} contains no images{f', only {skipped}' if skipped else ''}; use a folder of "
                "images, or of parquet files that contain images"
            )
        return splits

    def open(self, split: str) -> SplitIndex:
        """Open the index of a split."""
        if self.parquet is not None:
            index = self.parquet.open(split)
            if (count := sum(self.index.outside.values())) and not index.metadata["on_disk"]:
                note = f"{count:,} image files beside the parquet files are not used"
                index.metadata["notes"] = [*index.metadata.get("notes", ()), note]
        else:
            examine = self.index.split_sizes[split] <= MAX_EXAMINED
            index = open_index(self.cache, split, self.config.root, examine=examine)
        index.metadata["notes"] = [*index.metadata.get("notes", ()), *self.index.notes]
        return index

    def count_files(self) -> dict[str, int]:
        """Return the number of all files below the folder, by kind. Links are followed, except for loops."""
        index = self.index
        hidden: Counter[str] = Counter()
        for path, reason in index.unread.items():
            hidden[reason] += count_entries(self.config.root, path)
        used = {"parquet files of images": len(index.parquet_files), "images": sum(index.split_sizes.values())}
        place = "image files beside them" if index.parquet_files else "images outside the splits"
        outside = {place: sum(index.outside.values())}
        return used | outside | dict((Counter(index.skipped) + hidden).most_common())
