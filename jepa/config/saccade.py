"""Config of Saccade JEPA."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from jepa.config.backbones import parse_width
from jepa.config.base import Config, ObjectiveConfig
from jepa.config.checks import MAX_WIDTH, check_batch_size, check_half_lives, check_patch_codes, check_weights
from jepa.config.errors import check_limits, require
from jepa.config.transforms import ColorConfig, CropConfig, FixationConfig

__all__ = ["SaccadeConfig"]

LOSSES = ("prediction", "cycle", "invariance", "variance", "covariance", "correlation", "inverse", "patch_codes")


@dataclass(frozen=True)
class SaccadeConfig(ObjectiveConfig):
    """Saccade JEPA: predict the teacher's embedding after an eye movement from the student's embedding before it."""

    kind: ClassVar[str] = "saccade"

    predictor: str = "mlp"
    """mlp (three layers, on the averaged tokens), or DIMxDEPTH[xHEADS]: a transformer over the grid of tokens."""
    hidden: int = 1024
    """Width of the hidden layers of the MLPs."""
    prediction: float = 1.0
    """Weight of the Huber loss between the predicted and the teacher's embedding."""
    cycle: float = 0.25
    """Weight of the Huber loss between the student's embedding and the prediction mapped back by the inverse
    saccade."""
    invariance: float = 0.0
    """Weight of the squared distance between the student's and the teacher's embedding, regardless of the saccade."""
    variance: float = 25.0
    """Weight of the variance term on the student's embeddings."""
    covariance: float = 1.0
    """Weight of the covariance term on the student's embeddings."""
    correlation: float = 0.0
    """Weight of the sum of squared correlations between dimensions of the student's embeddings, divided by the number
    of dimensions."""
    inverse: float = 0.0
    """Weight of the loss of a head that predicts the saccade from both embeddings."""
    patch_codes: float = 0.0
    """Weight of the InfoNCE loss between the predicted and the true codes of whitened patches after the saccade. The
    codes are those of a teacher that is not learned."""
    hinge: float = 1.0
    """Target standard deviation of the variance hinge (γ in VICReg)."""
    ema_half_life: float = 69.0
    """Half-life of the teacher's moving average at the first step, in steps."""
    ema_half_life_end: float = 693.0
    """Half-life at the last step. The momentum changes linearly in between."""
    fixations: FixationConfig = field(default_factory=FixationConfig)
    color: ColorConfig = field(default_factory=ColorConfig)
    """Changes of the student's view; the teacher and the codes of patches see the original colors."""

    def __post_init__(self) -> None:
        if self.predictor != "mlp":
            parse_width(self.predictor, "objective.predictor", "mlp, ")
        require(self.hidden >= 1, f"objective.hidden must be an integer of at least 1, got {self.hidden}")
        check_limits(self, "objective.", hidden=MAX_WIDTH)
        check_weights(self, LOSSES)
        require(
            any(getattr(self, name) for name in LOSSES),
            f"the weights of all losses ({', '.join(LOSSES)}) are 0; set at least one of them to a positive value",
        )
        require(0 < self.hinge < math.inf, f"objective.hinge must be positive, got {self.hinge}")
        check_half_lives(self)

    def check_experiment(self, config: Config) -> None:
        """Require views that stay within the image, and a batch large enough for the variance term."""
        self.fixations.check_canvas(config.data.canvas_size, config.data.size)
        if self.variance or self.covariance or self.correlation or self.patch_codes:
            check_batch_size(config)
        if self.patch_codes:
            check_patch_codes(config)

    def supervised_crop(self) -> CropConfig:
        """Return random crops whose smallest area is that of a view."""
        return CropConfig(scale=(self.fixations.view_fraction**2, 1.0))
