"""A data source in one file: images in a zip archive, whose folders are the classes."""

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import ClassVar, Self

from jepa.config import RECIPES, SOURCES, Config, SourceConfig, recipe
from jepa.data import Source, SplitIndex


@dataclass(frozen=True)
class ArchiveSource(SourceConfig):
    """A zip archive."""

    kind: ClassVar[str] = "archive"
    usage: ClassVar[str] = "a .zip archive of images"

    file: Path

    @classmethod
    def parse(cls, text: str) -> Self | None:
        return cls(Path(text)) if text.endswith(".zip") else None


class Archive(Source):
    config: ArchiveSource

    def splits(self) -> list[str]:
        return ["train"]

    def open(self, split: str) -> SplitIndex:
        with zipfile.ZipFile(self.config.file) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".png"))
            folders = [PurePosixPath(name).parts[0] for name in names]
            classes = sorted(set(folders))
            labels = [classes.index(folder) for folder in folders]
            return SplitIndex.from_files([archive.read(name) for name in names], labels, classes)


def archive_demo() -> Config:
    """The demo on an archive."""
    config = recipe("demo")
    return replace(config, name="archive-demo", data=replace(config.data, source="images.zip", channels=3))


SOURCES[ArchiveSource] = Archive
RECIPES["archive-demo"] = archive_demo
