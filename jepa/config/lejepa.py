"""Config of LeJEPA."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from jepa.config.base import Config, ObjectiveConfig
from jepa.config.checks import MAX_WIDTH, check_batch_size
from jepa.config.errors import InputError, check_limits, require
from jepa.config.transforms import CropConfig

__all__ = ["LeJepaConfig"]

MAX_VIEWS = 100  # of each kind


@dataclass(frozen=True)
class LeJepaConfig(ObjectiveConfig):
    """LeJEPA (Balestriero & LeCun 2025): every view predicts the mean of the global views; no teacher."""

    kind: ClassVar[str] = "lejepa"

    sigreg: float = 0.05
    """Weight λ of SIGReg, which makes the projections of each view standard normal. The prediction loss is weighted by
    1 - λ. For collapsed projections, SIGReg is proportional to the batch size, so small batches need a larger λ."""
    slices: int = 1024
    """Number of random directions along which SIGReg compares the projections with a normal distribution."""
    hidden: int = 2048
    """Width of the two hidden layers of the projector."""
    projection: int = 128
    """Width of the projections, on which the losses are computed."""
    num_global: int = 2
    """Number of global views of each image."""
    num_local: int = 6
    """Number of local views of each image."""
    local_size: int | tuple[int, int] | None = None
    """Size of the local views in pixels: the side of a square, or height and width; by default that of the global
    views, data.image_size."""
    global_crop: CropConfig = field(default_factory=lambda: CropConfig(scale=(0.3, 1.0), flip=True))
    local_crop: CropConfig = field(default_factory=lambda: CropConfig(scale=(0.05, 0.3), flip=True))

    def __post_init__(self) -> None:
        require(0 <= self.sigreg < 1, f"objective.sigreg must be at least 0 and below 1, got {self.sigreg}")
        for name in ("slices", "hidden", "projection", "num_global"):
            value = getattr(self, name)
            require(value >= 1, f"objective.{name} must be an integer of at least 1, got {value}")
        require(self.num_local >= 0, f"objective.num_local must be an integer of at least 0, got {self.num_local}")
        check_limits(self, "objective.", slices=MAX_WIDTH, hidden=MAX_WIDTH, projection=MAX_WIDTH)
        check_limits(self, "objective.", num_global=MAX_VIEWS, num_local=MAX_VIEWS)
        require(
            self.num_global + self.num_local >= 2,
            f"a view predicts other views, but objective.num_global is {self.num_global} and objective.num_local is 0; "
            "set one of them to a larger number",
        )

    def check_experiment(self, config: Config) -> None:
        """Require local views that the backbone can encode, and a batch large enough for its statistics."""
        height, width = size = self.local_view_size(config.data.size)
        require(
            min(size) >= 1 and height <= config.data.size[0] and width <= config.data.size[1],
            f"objective.local_size must be between 1 pixel and the image size of {config.data.size[0]}x"
            f"{config.data.size[1]}, got {height}x{width}",
        )
        try:
            config.backbone.check_data(replace(config.data, image_size=size))
        except InputError as error:
            raise InputError(
                f"objective.local_size is {height}x{width}, but the backbone {config.backbone.kind} cannot encode "
                "images of this size; choose a multiple of its patch size, or none for the size of the global views"
            ) from error
        check_batch_size(config)

    def local_view_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width of local views for global views of `size`."""
        local = size if self.local_size is None else self.local_size
        return (local, local) if isinstance(local, int) else local

    def supervised_crop(self) -> CropConfig:
        """Return the crops of the global views."""
        return self.global_crop
