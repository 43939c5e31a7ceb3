"""Find images with identical content, within a split and across splits."""
# ruff: noqa: PTH116, PTH118  (pathlib takes ten times as long for each file)

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from jepa.data.dataset import cores, progress
from jepa.data.decode import Unreadable
from jepa.data.index import EncodedImages, SplitIndex, evenly_spaced

__all__ = ["Duplicates", "find_duplicates"]

HEAD_BYTES = 4096  # the start of a file, which tells most files of the same size apart
Image = tuple[str, int]  # split, index


@dataclass(frozen=True)
class Duplicates:
    """Groups of images with identical content, largest first. `compared` are the images compared with all others."""

    groups: list[list[Image]]
    compared: dict[str, frozenset[int]]

    def within(self, split: str) -> list[list[int]]:
        """Return the groups of indices of identical images in a split."""
        groups = [[index for name, index in group if name == split] for group in self.groups]
        return sorted((group for group in groups if len(group) > 1), key=len, reverse=True)

    def across(self, split: str, other: str) -> list[tuple[int, int]]:
        """Return each compared image of a split that is also in another split, with its first copy there."""
        pairs = []
        for group in self.groups:
            copies = [index for name, index in group if name == other]
            images = [index for name, index in group if name == split and index in self.compared[split]]
            pairs += [(index, copies[0]) for index in images if copies]
        return sorted(pairs)


def find_duplicates(indexes: dict[str, SplitIndex], limit: int | None) -> Duplicates:
    """Compare up to `limit` evenly spaced images of each split, or all if it is None, with all images of all splits.

    Only files of the same size are read: first their start, and then those with the same start completely.
    """
    sizes = {split: file_sizes(index.files) for split, index in indexes.items()}
    compared: dict[str, frozenset[int]] = {}
    for split, values in sizes.items():
        compared[split] = frozenset(evenly_spaced(len(values), len(values) if limit is None else limit).tolist())
    wanted = {size for split, values in sizes.items() for size in values[sorted(compared[split])].tolist()} - {0}
    images = [
        (split, int(index))
        for split, values in sizes.items()
        for index in np.flatnonzero(np.isin(values, np.array(sorted(wanted), np.int64)))
    ]

    def digest(image: Image, head: bool) -> bytes | None:
        return _digest(indexes[image[0]].files, image[1], head)

    groups = _regroup([images], lambda image: int(sizes[image[0]][image[1]]), "")
    groups = _regroup(groups, lambda image: digest(image, True), "comparing")
    groups = _regroup(groups, lambda image: digest(image, False), "comparing")
    groups = [group for group in groups if any(index in compared[split] for split, index in group)]
    return Duplicates(sorted(groups, key=len, reverse=True), compared)


def file_sizes(files: EncodedImages) -> np.ndarray:
    """Return the size of each encoded image in bytes, (N,); 0 if it is missing or not a regular file."""
    column = files.column
    if not pa.types.is_struct(column.type):
        return np.array([_size(os.path.join(files.root, os.fsdecode(path))) for path in column.to_pylist()], np.int64)
    sizes = []
    for chunk in column.chunks:
        content, paths = chunk.field("bytes"), chunk.field("path")
        size = pc.fill_null(pc.binary_length(content), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        for row in np.flatnonzero(content.is_null().to_numpy(zero_copy_only=False)):
            path = paths[int(row)].as_py()
            size[row] = 0 if path is None else _size(os.path.join(files.root, path))
        sizes.append(size)
    return np.concatenate([np.empty(0, np.int64), *sizes])


def _size(path: str) -> int:
    try:
        status = os.stat(path)
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _digest(files: EncodedImages, index: int, head: bool) -> bytes | None:
    """Return a hash of an encoded image or of its start, or None if it cannot be read."""
    value = files.column[index].as_py() if head else None
    try:
        if isinstance(value, bytes):
            with (files.root / os.fsdecode(value)).open("rb") as file:  # a regular file, as it has a size
                content = file.read(HEAD_BYTES)
        else:
            content = files.read(index)
    except (OSError, Unreadable):
        return None
    return hashlib.blake2b(content[:HEAD_BYTES] if head else content, digest_size=16).digest()


def _regroup(groups: list[list[Image]], key: Callable[[Image], Hashable], description: str) -> list[list[Image]]:
    """Divide each group by a key, which is computed on all cores; drop images without a key and single images."""
    images = [image for group in groups for image in group]
    numbers = [number for number, group in enumerate(groups) for _ in group]
    keys: list[Any] = []
    if description:
        with ThreadPoolExecutor(cores()) as pool:
            for chunk in progress(torch.arange(len(images)).split(256), description):
                keys += pool.map(key, [images[i] for i in chunk.tolist()])
    else:
        keys = [key(image) for image in images]
    divided: dict[Hashable, list[Image]] = {}
    for number, value, image in zip(numbers, keys, images, strict=True):
        if value is not None:
            divided.setdefault((number, value), []).append(image)
    return [group for group in divided.values() if len(group) > 1]
