"""Splits and subsets of a dataset in the names of its parquet files and of their folders."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from jepa.config import InputError
from jepa.data.sources.splits import looks_like_split, mentioned_splits, resemble_splits, split_of

__all__ = ["splits_of_files"]

SHARD = re.compile(
    r"\d+|of|(?=\D*\d)[0-9a-f]{4,}|snappy|gz|zstd|"
    r"(part|shard|chunk|batch|file|row|data|dataset|set|split|image|img|photo)s?\d*"
)
"""Parts of a name that number or identify the files of one dataset."""


def splits_of_files(files: Sequence[Path], root: Path | None) -> dict[Path, str | None]:
    """Return the split in the name of each file, or of its nearest folder that names one; None if no file has one.

    As in `train-00000-of-00003.parquet`, `mnist-test.parquet` and `default/partial-train/0000.parquet`. `root` is the
    folder in which the files were found, or None if they were chosen by a pattern, which may mix subsets. Raises
    `InputError` if only some files name a split, a name mentions two splits or only looks like one, or the files of
    one split belong to several subsets.
    """
    base = Path(os.path.commonpath([file.absolute().parent for file in files])).parent
    splits = {file: _split(file, base) for file in files}
    without = [file for file, split in splits.items() if split is None]
    if len(without) == len(files):
        if resemble_splits(found := sorted({_subset(file, base) for file in files})):
            raise InputError(
                f"the names of the files in {base} look like splits: {', '.join(found)}; include train, validation or "
                "test in the name of every file"
            )
        return splits
    if without:
        raise InputError(
            f"{without[0]} does not name a split, but {next(file for file in files if splits[file])} does; include "
            "train, validation or test in the name of every file, or pass a pattern such as 'DIR/train-*.parquet'"
        )
    for split in dict.fromkeys(splits.values()):
        subsets = sorted({_subset(file, base) for file in files if splits[file] == split})
        if root is not None and len(subsets) > 1:
            names = ", ".join(subset or "unnamed" for subset in subsets[:5])
            raise InputError(
                f"{root} contains several subsets of a dataset ({names}); pass the folder or a pattern of one of them, "
                f"or '{root}/**/*.parquet' for all of them together"
            )
    return splits


def _split(file: Path, base: Path) -> str | None:
    """Return the split in the name of a file or of its folders below `base`, nearest first."""
    folders = list(reversed(file.absolute().parent.relative_to(base).parts))
    above = {split_of(name) for name in folders[:-1]} - {None}  # the last one contains all files
    for name in (file.stem, *(name for name in folders if split_of(name) or looks_like_split(name))):
        found = mentioned_splits(name)
        if len(found) == 1 and above <= found:
            return found.pop()
        if found or looks_like_split(re.sub(r"[\d_.-]+", " ", name)):
            raise InputError(
                f"the name '{name}' in {file} does not name one split clearly; include one of the words train, "
                "validation and test in it, and no other in its folders"
            )
    return None


def _subset(file: Path, base: Path) -> str:
    """Return what is in the names of a file and its folders apart from splits and numbers of shards."""
    names = (*file.absolute().parent.relative_to(base).parts[1:], file.stem)
    words = [word for name in names for word in re.split(r"[\W_]+", name.casefold())]
    return " ".join(word for word in words if word and not SHARD.fullmatch(word) and not mentioned_splits(word))
