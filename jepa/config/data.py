"""Which images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jepa.config.errors import require

__all__ = ["DataConfig"]


@dataclass(frozen=True)
class DataConfig:
    """Which images, and the form in which the encoder gets them."""

    source: str = "sample"
    """--data for short: 'sample', a folder of images, a table of paths, parquet files, hf:OWNER/NAME, cifar10, …"""
    image_size: int | tuple[int, int] = 32
    """Side of the images that the encoder sees in pixels, or height and width."""
    canvas: int | tuple[int, int] | None = None
    """Cut every image to its centre of this side, or height and width, on decoding; needed where sizes differ."""
    channels: Literal[1, 3] = 3
    """Grey (1) or RGB (3)."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, of values in 0 to 1; measured on the training images where not given."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel; measured where not given."""
    holdout: float = 0.02
    """Share of the training images kept out of training, for the online evaluation."""
    cache_gb: float = 8.0
    """Keep decoded images in a file beside the run if they take no more than this; else decode them in every epoch."""
    workers: int | None = None
    """Processes that decode ahead; by default one a core for a GPU, and none for the CPU, which works in turn."""
    max_broken: float = 0.01
    """Stop where more than this share of the images cannot be read; fewer are skipped and listed in the run."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def canvas_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that views are cut from, where they are brought to one size."""
        canvas = self.size if self.canvas is None else self.canvas
        return (canvas, canvas) if isinstance(canvas, int) else canvas

    def __post_init__(self) -> None:
        require(min(self.size) >= 1, f"data.image_size is {self.image_size}; it takes a number of pixels from 1")
        require(0 <= self.holdout < 0.5, f"data.holdout is {self.holdout}; it takes a share from 0 to below 0.5")
        require(min(self.canvas_size) >= 1, f"data.canvas is {self.canvas}; it takes a number of pixels from 1")
        require(self.cache_gb >= 0, f"data.cache_gb is {self.cache_gb}; it takes a number of GB, or 0 for none")
        workers = self.workers is None or self.workers >= 0
        require(workers, f"data.workers is {self.workers}; it takes a number of processes, or 0 for none")
        require(0 <= self.max_broken <= 1, f"data.max_broken is {self.max_broken}; it takes a share from 0 to 1")
        require(self.std is None or min(self.std, default=1) > 0, f"data.std is {self.std}; it takes numbers above 0")
        for name, values in (("mean", self.mean), ("std", self.std)):
            given = values is None or len(values) == self.channels
            require(
                given, f"data.{name} has {len(values or ())} values; it takes {self.channels}, one for each channel"
            )
