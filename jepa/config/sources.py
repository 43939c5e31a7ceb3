"""Configs of data sources: the values that `--data` accepts."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from jepa.config.base import SourceConfig
from jepa.config.errors import require

__all__ = [
    "TORCHVISION",
    "FolderSource",
    "HuggingFaceSource",
    "ParquetSource",
    "PathsSource",
    "SampleSource",
    "TorchvisionSource",
    "expand_user",
]

TORCHVISION: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "cifar10": ("CIFAR10", {"train": {"train": True}, "test": {"train": False}}),
    "cifar100": ("CIFAR100", {"train": {"train": True}, "test": {"train": False}}),
    "country211": ("Country211", {"train": {"split": "train"}, "test": {"split": "test"}}),
    "dtd": ("DTD", {"train": {"split": "train"}, "test": {"split": "test"}}),
    "eurosat": ("EuroSAT", {"train": {}}),
    "fashion-mnist": ("FashionMNIST", {"train": {"train": True}, "test": {"train": False}}),
    "fgvc-aircraft": ("FGVCAircraft", {"train": {"split": "trainval"}, "test": {"split": "test"}}),
    "flowers102": ("Flowers102", {"train": {"split": "train"}, "test": {"split": "test"}}),
    "food101": ("Food101", {"train": {"split": "train"}, "test": {"split": "test"}}),
    "imagenette": ("Imagenette", {"train": {"split": "train"}, "test": {"split": "val"}}),
    "kmnist": ("KMNIST", {"train": {"train": True}, "test": {"train": False}}),
    "mnist": ("MNIST", {"train": {"train": True}, "test": {"train": False}}),
    "stl10": ("STL10", {"train": {"split": "train"}, "test": {"split": "test"}}),
    "stl10-unlabeled": ("STL10", {"train": {"split": "train+unlabeled"}, "test": {"split": "test"}}),
    "svhn": ("SVHN", {"train": {"split": "train"}, "test": {"split": "test"}}),
    "svhn-extra": ("SVHN", {"train": {"split": "extra"}, "test": {"split": "test"}}),
}
"""torchvision datasets by name: the class, and its arguments for each split."""


def expand_user(text: str) -> Path:
    """Return the path with `~` replaced by the home folder; the name of an unknown user is left as it is."""
    return Path(os.path.expanduser(text))  # noqa: PTH111  (pathlib raises an error)


@dataclass(frozen=True)
class SampleSource(SourceConfig):
    """10,000 training and 2,000 test images of Fashion-MNIST, which come with the package."""

    kind: ClassVar[str] = "sample"
    usage: ClassVar[str] = "'sample'"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Accept 'sample'."""
        return cls() if text == "sample" else None


@dataclass(frozen=True)
class HuggingFaceSource(SourceConfig):
    """A dataset on the Hugging Face Hub, loaded with the `datasets` package."""

    kind: ClassVar[str] = "hf"
    usage: ClassVar[str] = "hf:OWNER/NAME"

    name: str
    """OWNER/NAME, or OWNER/NAME:CONFIGURATION."""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Accept hf:OWNER/NAME."""
        return cls(os.path.expanduser(text.removeprefix("hf:"))) if text.startswith("hf:") else None  # noqa: PTH111


@dataclass(frozen=True)
class FolderSource(SourceConfig):
    """A folder of images at any depth, with or without split and class folders, or a folder of parquet files."""

    kind: ClassVar[str] = "folder"
    usage: ClassVar[str] = "a folder of images"

    root: Path

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Accept the path of a folder."""
        root = expand_user(text)
        return cls(root) if root.is_dir() else None


@dataclass(frozen=True)
class PathsSource(SourceConfig):
    """A table of image paths, with optional labels and splits."""

    kind: ClassVar[str] = "paths"
    usage: ClassVar[str] = "a .txt, .csv or .tsv table of paths"

    file: Path

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Accept the path of a .txt, .csv or .tsv file."""
        file = expand_user(text)
        return cls(file) if file.suffix.lower() in (".txt", ".csv", ".tsv") and file.is_file() else None


@dataclass(frozen=True)
class ParquetSource(SourceConfig):
    """Parquet files of images in the layout of the Hugging Face hub, or one parquet table of image paths."""

    kind: ClassVar[str] = "parquet"
    usage: ClassVar[str] = "parquet files of images or of paths"

    files: tuple[Path, ...]
    root: Path | None = None
    """The folder in which the files were found, or None if they were chosen by the user."""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Accept the path of a .parquet file, or a pattern such as 'images/train-*.parquet'."""
        path = expand_user(text)
        if path.is_file():
            return cls((path,)) if path.suffix.lower() == ".parquet" else None
        found = (Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207  (absolute patterns)
        files = sorted(file for file in found if not file.is_dir())
        other = next((file for file in files if file.suffix.lower() != ".parquet"), None)
        require(other is None, f"the pattern {text} must match only parquet files, but it matches {other}")
        return cls(tuple(files)) if files else None


@dataclass(frozen=True)
class TorchvisionSource(SourceConfig):
    """A torchvision dataset, read from the folder `data` or downloaded to it."""

    kind: ClassVar[str] = "torchvision"
    usage: ClassVar[str] = "the name of a torchvision dataset (cifar10, imagenette, flowers102, …)"

    name: str

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Accept one of the names in `TORCHVISION`."""
        return cls(text) if text in TORCHVISION else None
