"""Config of the masked autoencoder (MAE)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from jepa.config.backbones import parse_width
from jepa.config.base import Config, ObjectiveConfig
from jepa.config.errors import require
from jepa.config.transforms import CropConfig

__all__ = ["MAEConfig"]


@dataclass(frozen=True)
class MAEConfig(ObjectiveConfig):
    """Masked autoencoder (He et al. 2022): predict the pixels of masked patches from the visible patches."""

    kind: ClassVar[str] = "mae"

    decoder: str = "512x8x16"
    """Width, depth and heads of the decoder: DIMxDEPTH[xHEADS]."""
    mask_ratio: float = 0.75
    """Fraction of the patches of each image that is masked, chosen at random."""
    normalize_pixels: bool = True
    """Predict the pixels of each patch relative to their mean and in units of their standard deviation."""
    crop: CropConfig = field(default_factory=lambda: CropConfig(scale=(0.2, 1.0), flip=True))

    def __post_init__(self) -> None:
        parse_width(self.decoder, "objective.decoder")
        require(0 < self.mask_ratio < 1, f"objective.mask_ratio must be above 0 and below 1, got {self.mask_ratio}")

    def check_experiment(self, config: Config) -> None:
        """Require a backbone that can be masked."""
        require(
            config.backbone.maskable,
            f"the objective mae masks the input of its encoder, which a {config.backbone.kind} does not support; "
            "choose --backbone vit or --backbone energy",
        )
