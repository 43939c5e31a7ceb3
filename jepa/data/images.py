"""A split of a source as a sequence of uint8 images: held decoded where they fit in memory, else decoded on demand."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jepa.config import InputError

__all__ = ["EncodedImages", "HeldImages", "Images", "decode"]


@dataclass
class Images:
    """Images of one size with their labels, where there are any."""

    name: str
    labels: Tensor | None  # (N,) long
    classes: tuple[str, ...]
    held: bool  # decoded in memory

    def __len__(self) -> int:
        raise NotImplementedError

    def batch(self, index: Tensor) -> Tensor:
        """Return the images at `index` (B,) as uint8 (B, C, H, W) on the CPU."""
        raise NotImplementedError


@dataclass
class HeldImages(Images):
    """Images decoded in memory."""

    pixels: Tensor  # (N, C, H, W) uint8

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, index: Tensor) -> Tensor:
        """See `Images.batch`."""
        return self.pixels[index]


@dataclass
class EncodedImages(Images):
    """Images kept as files in memory and decoded by a pool of threads when they are asked for."""

    files: Sequence[bytes]
    channels: int
    canvas: int | None
    pool: ThreadPoolExecutor

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, index: Tensor) -> Tensor:
        """See `Images.batch`. Raises `InputError` naming the image that cannot be read or has another size."""

        def one(row: int) -> np.ndarray:
            return decode(self.files[row], self.channels, self.canvas, f"image {row} of {self.name}")

        arrays = list(self.pool.map(one, index.tolist(), chunksize=16))
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            sizes = " and ".join(sorted(f"{shape[1]}x{shape[0]}" for shape in shapes)[:2])
            raise InputError(
                f"the images of {self.name} have several sizes, {sizes} among them; bring them to one with "
                "--data.canvas PIXELS (the shorter side, then the centre square)"
            )
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()

    def hold(self) -> HeldImages:
        """Decode everything into memory."""
        step = 2048
        parts = [self.batch(torch.arange(i, min(i + step, len(self)))) for i in range(0, len(self), step)]
        if len({part.shape[1:] for part in parts}) > 1:
            raise InputError(
                f"the images of {self.name} have several sizes; bring them to one with --data.canvas PIXELS"
            )
        return HeldImages(self.name, self.labels, self.classes, True, torch.cat(parts))


def decode(file: bytes, channels: int, canvas: int | None, where: str) -> np.ndarray:
    """Decode one image file to uint8 (H, W, C); with `canvas`, its centre square of that side."""
    try:
        with Image.open(io.BytesIO(file)) as opened:
            if canvas is not None:
                opened.draft("RGB", (canvas, canvas))  # JPEG: decode at a fraction of the size where that is enough
            image = opened.convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises all of them
        raise InputError(f"{where} cannot be read as an image: {error}") from error
    if canvas is not None:
        factor = canvas / min(image.size)
        width, height = (max(canvas, round(length * factor)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - canvas) // 2, (height - canvas) // 2
        image = image.crop((left, top, left + canvas, top + canvas))
    return np.asarray(image).reshape(image.height, image.width, channels)


def decoding_pool() -> ThreadPoolExecutor:
    """Make the threads that decode; Pillow lets go of the interpreter lock while it works."""
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="decode")
