"""Config of I-JEPA."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jepa.config.backbones import parse_width
from jepa.config.base import Config, ObjectiveConfig
from jepa.config.checks import check_batch_size, check_half_lives, check_patch_codes, check_weights
from jepa.config.errors import require
from jepa.config.transforms import CropConfig, MaskConfig

__all__ = ["IJepaConfig"]


@dataclass(frozen=True)
class IJepaConfig(ObjectiveConfig):
    """I-JEPA (Assran et al. 2023): predict the representations of target blocks from one context block."""

    kind: ClassVar[str] = "ijepa"

    predictor: str = "384x6"
    """Width, depth and heads of the predictor: DIMxDEPTH[xHEADS]."""
    loss: Literal["smooth_l1", "l2"] = "l2"
    """Distance between predicted and target tokens: l2 (the paper) or smooth_l1 (its published code)."""
    variance: float = 0.0
    """Weight of the variance term on the averaged context tokens, which prevents small models from collapsing."""
    covariance: float = 0.0
    """Weight of the covariance term on the averaged context tokens."""
    patch_codes: float = 0.0
    """Weight of the InfoNCE loss between codes of whitened patches and their prediction from the averaged context
    tokens."""
    ema_half_life: float = 173.0
    """Half-life of the target encoder's moving average at the first step, in steps; 173 is equivalent to a
    momentum of 0.996."""
    ema_half_life_end: float = 1e9
    """Half-life at the last step; 1e9 is equivalent to a momentum of 1. The momentum changes linearly in between."""
    crop: CropConfig = field(default_factory=CropConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)

    def __post_init__(self) -> None:
        parse_width(self.predictor, "objective.predictor")
        check_weights(self, ("variance", "covariance", "patch_codes"))
        check_half_lives(self)

    def check_experiment(self, config: Config) -> None:
        """Require a backbone that can be masked, and a batch large enough for the variance term."""
        require(
            config.backbone.maskable,
            f"the objective ijepa masks the input of its encoder, which a {config.backbone.kind} does not support; "
            "choose --backbone vit or --backbone energy, or a saccade recipe",
        )
        if self.variance or self.covariance or self.patch_codes:
            check_batch_size(config)
        if self.patch_codes:
            check_patch_codes(config)
