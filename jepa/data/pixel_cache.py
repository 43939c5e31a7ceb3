"""Cache of decoded images in a memory-mapped file."""

from __future__ import annotations

import math
import os
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from jepa.files import atomic_write

__all__ = ["PixelCache"]


class PixelCache:
    """Decoded images in a memory-mapped file, shared by all processes and later runs.

    An image counts as cached only if its checksum matches, so images partially written by a killed process are decoded
    again. A cache that cannot be written to is opened as well; what is written to it is then lost at the end. Raises
    `OSError` if the disk is full, or if the folder cannot be written to and has no such cache.
    """

    def __init__(self, path: Path, count: int, shape: tuple[int, int, int]) -> None:
        self.pixels = self._map(path, np.uint8, (count, *shape))
        self.checksums = self._map(path.with_suffix(".crc32"), np.uint32, (count,))
        self.tensor = torch.from_numpy(self.pixels)
        self.verified = np.zeros(count, bool)  # images whose checksum this process has verified

    @staticmethod
    def _map(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if not path.is_file() or path.stat().st_size != size:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                if hasattr(os, "posix_fallocate"):  # writing through a memory map kills the process if the disk is full
                    os.posix_fallocate(file.fileno(), 0, size)
                file.truncate(size)
        mode: Literal["r+", "c"] = "r+" if os.access(path, os.W_OK) else "c"
        return np.memmap(path, dtype, mode, shape=shape)

    @property
    def complete(self) -> bool:
        """Whether all images have been written, by any process."""
        return bool(self.checksums.all())

    def has(self, index: int) -> bool:
        """Return whether an image is cached."""
        if not self.verified[index]:
            stored = self.checksums[index]
            self.verified[index] = stored != 0 and stored == checksum(self.pixels[index])
        return bool(self.verified[index])

    def write(self, index: int, pixels: np.ndarray) -> None:
        """Write a decoded image (C, H, W) to the cache."""
        self.pixels[index] = pixels
        self.checksums[index] = checksum(pixels)


def checksum(pixels: np.ndarray) -> int:
    """Return the CRC-32 of an image; 0 is replaced by 1, because 0 marks images that are not cached."""
    return zlib.crc32(pixels.data) or 1
