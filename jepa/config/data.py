"""Config of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from jepa.config.errors import require
from jepa.config.hints import shown

__all__ = ["DataConfig"]

MAX_SIDE = 8192  # of an image, in pixels
MAX_WORKERS = 1024


@dataclass(frozen=True)
class DataConfig:
    """Data source, image size and normalization."""

    source: str = "sample"
    """Data source, --data for short: 'sample', a folder of images, a table of paths, parquet files, hf:OWNER/NAME,
    cifar10, …"""
    image_size: int | tuple[int, int] = 32
    """Size of the encoder's input in pixels: the side of a square, or height and width."""
    canvas: int | tuple[int, int] | None = None
    """Crop the center of each image to this size when decoding: the side of a square, or height and width. Required if
    the images differ in size."""
    channels: Literal[1, 3] = 3
    """Grayscale (1) or RGB (3)."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, for pixels in [0, 1]; measured on the training images by default."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel; measured on the training images by default."""
    holdout: float = 0.2
    """Fraction of labeled training images held out for the online evaluation, at most 2,000 images. Without labels, all
    images are trained on."""
    cache_gb: float = 8.0
    """Cache decoded images in a file beside the run if they take at most this many gigabytes; otherwise decode them in
    every epoch."""
    workers: int | None = None
    """Number of worker processes that decode images in advance. By default one per core for training on a GPU, and none
    on the CPU, where decoding and training alternate."""
    max_broken: float = 0.01
    """Stop if more than this fraction of the images is unreadable, and more than ten (or a quarter of fewer than 40
    images); otherwise, unreadable images are skipped and listed in the run folder. 0 allows one."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the encoder's input, in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def canvas_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that views are cropped from."""
        canvas = self.size if self.canvas is None else self.canvas
        return (canvas, canvas) if isinstance(canvas, int) else canvas

    def __post_init__(self) -> None:
        require(bool(self.source.strip()), "data.source must not be empty; give --data SOURCE")
        require("\0" not in self.source, f"data.source must not contain NUL characters, got {shown(self.source)}")
        require(min(self.size) >= 1, f"data.image_size must be at least 1 pixel, got {self.image_size}")
        require(0 <= self.holdout < 0.5, f"data.holdout must be at least 0 and below 0.5, got {self.holdout}")
        require(min(self.canvas_size) >= 1, f"data.canvas must be at least 1 pixel, got {self.canvas}")
        for name, size in (("image_size", self.size), ("canvas", self.canvas_size)):
            require(max(size) <= MAX_SIDE, f"data.{name} must be at most {MAX_SIDE:,} pixels, got {shown(max(size))}")
        require(self.cache_gb >= 0, f"data.cache_gb must be at least 0 (0 disables the cache), got {self.cache_gb}")
        workers = self.workers is None or 0 <= self.workers <= MAX_WORKERS
        require(workers, f"data.workers must be between 0 and {MAX_WORKERS}, got {shown(self.workers)}")
        require(0 <= self.max_broken <= 1, f"data.max_broken must be between 0 and 1, got {self.max_broken}")
        require(self.std is None or min(self.std, default=1) > 0, f"data.std must be positive, got {self.std}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            finite = all(math.isfinite(value) for value in values or ())
            require(finite, f"data.{name} must be finite, got {shown(values)}")
            require(
                values is None or len(values) == self.channels,
                f"data.{name} must have {self.channels} values, one per channel, got {len(values or ())}",
            )
