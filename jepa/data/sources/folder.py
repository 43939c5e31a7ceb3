"""Source: a folder of images at any depth, or of parquet files that contain images."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from jepa.config import InputError
from jepa.config.sources import FolderSource, ParquetSource
from jepa.data.index import SplitIndex
from jepa.data.sources.base import Source, open_index
from jepa.data.sources.folder_index import FolderIndex, index_folder, is_current
from jepa.data.sources.parquet import Parquet, image_column, open_parquet
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
            index = FolderIndex(**json.loads(file.read_text()))
        if index is None or not is_current(index):
            index = index_folder(self.config.root, self.cache)
            with atomic_write(file) as temporary:
                temporary.write_text(json.dumps(dataclasses.asdict(index)))
        return index

    @cached_property
    def parquet(self) -> Parquet | None:
        """The parquet files in the folder, or None if they contain no images."""
        files = sorted(Path(file) for file in self.index.parquet_files)
        if not files or image_column(open_parquet(files[0]).schema_arrow) is None:
            return None
        return Parquet(ParquetSource(tuple(files)), self.name, self.cache / "parquet")

    def splits(self) -> list[str]:
        """Return the splits that contain images. Raises `InputError` if there are none."""
        if self.parquet is not None:
            return self.parquet.splits()
        splits = [split for split, count in self.index.split_sizes.items() if count]
        if not splits:
            ignored = ", ".join(f"{count} {extension}" for extension, count in list(self.index.ignored.items())[:3])
            raise InputError(
                f"the folder {self.name} contains no images{f', only {ignored}' if ignored else ''}; use a folder of "
                "images, or of parquet files that contain images"
            )
        return splits

    def open(self, split: str) -> SplitIndex:
        """Open the index of a split."""
        if self.parquet is not None:
            return self.parquet.open(split)
        index = open_index(self.cache, split, self.config.root)
        index.metadata["ignored"] = self.index.ignored
        return index
