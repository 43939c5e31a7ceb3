"""A split of a source as uint8 images of one size: decoded when they are asked for, and then kept in a file."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from jepa.data.decode import Unreadable, decode
from jepa.data.files import Files

__all__ = ["Images", "PixelCache", "Read", "cores", "progress"]


def progress(parts: Sequence[Tensor], what: str) -> Iterator[Tensor]:
    """Show a bar over parts of some rows, where it takes more than two seconds."""
    total = sum(len(part) for part in parts)
    with tqdm(desc=what, total=total, unit=" images", delay=2, leave=False) as bar:
        for part in parts:
            yield part
            bar.update(len(part))


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Read:
    """The images at some rows, in order."""

    pixels: Tensor  # (B, C, H, W) uint8; black where a file could not be read
    rows: Tensor  # (B,)
    unreadable: dict[int, str]  # row: reason

    @property
    def readable(self) -> Tensor:
        """Which of them are images (B,)."""
        return torch.tensor([row not in self.unreadable for row in self.rows.tolist()], dtype=torch.bool)


class PixelCache:
    """Decoded images in a memory-mapped file that all processes and later runs share.

    A row counts as there when its checksum fits, so that a process killed in the middle of one does no harm. Raises
    `OSError` where the disk has no room.
    """

    def __init__(self, path: Path, count: int, shape: tuple[int, int, int]) -> None:
        self.pixels = self._map(path, np.uint8, (count, *shape))
        self.checks = self._map(path.with_suffix(".crc32"), np.uint32, (count,))
        self.tensor = torch.from_numpy(self.pixels)
        self.known = np.zeros(count, bool)  # checked in this process

    @staticmethod
    def _map(path: Path, kind: type, shape: tuple[int, ...]) -> np.ndarray:
        size = math.prod(shape) * np.dtype(kind).itemsize
        if not path.is_file() or path.stat().st_size != size:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                with temporary.open("wb") as file:
                    if hasattr(os, "posix_fallocate"):  # writing to a full disk through a memory map kills a process
                        os.posix_fallocate(file.fileno(), 0, size)
                    file.truncate(size)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        return np.memmap(path, kind, "r+", shape=shape)

    @property
    def complete(self) -> bool:
        """Whether every row has been written, by whichever process."""
        return bool(self.checks.all())

    def holds(self, row: int) -> bool:
        """Say whether a row is there."""
        if not self.known[row]:
            self.known[row] = self.checks[row] != 0 and self.checks[row] == checksum(self.pixels[row])
        return bool(self.known[row])

    def put(self, row: int, pixels: np.ndarray) -> None:
        """Keep a decoded row."""
        self.pixels[row] = pixels
        self.checks[row] = checksum(pixels)


def checksum(pixels: np.ndarray) -> int:
    """CRC-32, never 0, which marks a row that is not there."""
    return zlib.crc32(pixels.data) or 1


@dataclass
class Images:
    """Images of one size with their labels, where there are any."""

    name: str
    files: Files
    labels: Tensor | None  # (N,) long
    classes: tuple[str, ...]
    shape: tuple[int, int, int]  # C, H, W of every image
    canvas: tuple[int, int] | None  # height and width to cut them to; None: they have one size
    cache: PixelCache | None
    signature: str = ""  # another one where files came, went or changed
    unreadable: dict[int, str] = field(default_factory=dict)  # row: reason, of all that were asked for so far

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        """The threads that decode; Pillow lets go of the interpreter lock while it works."""
        return ThreadPoolExecutor(min(16, cores()), thread_name_prefix="decode")

    def read(self, rows: Tensor, threads: bool = True) -> Read:
        """Read the images at `rows` (B,), on all cores unless `threads` is off."""
        wanted = rows.tolist()
        cache = self.cache
        if cache is not None and cache.known[wanted].all():
            return Read(cache.tensor[rows], rows, {})
        pixels = np.zeros((len(wanted), *self.shape), np.uint8)
        unreadable: dict[int, str] = {}

        def one(place: int) -> None:
            try:
                pixels[place] = self._image(wanted[place])
            except Unreadable as reason:
                unreadable[wanted[place]] = str(reason)

        list(self._pool.map(one, range(len(wanted)), chunksize=4) if threads else map(one, range(len(wanted))))
        self.unreadable |= unreadable
        return Read(torch.from_numpy(pixels), rows, unreadable)

    def _image(self, row: int) -> np.ndarray:
        """Return one image (C, H, W), from the cache where it is there. Raises `Unreadable`."""
        if self.cache is not None and self.cache.holds(row):
            return np.asarray(self.cache.pixels[row])
        pixels = decode(self.files.read(row), self.shape[0], self.canvas)
        if pixels.shape != self.shape:
            raise Unreadable(
                f"it has {pixels.shape[2]}x{pixels.shape[1]} pixels and others {self.shape[2]}x{self.shape[1]}: bring "
                "all to one size with --data.canvas PIXELS"
            )
        if self.cache is not None:
            self.cache.put(row, pixels)
        return pixels
