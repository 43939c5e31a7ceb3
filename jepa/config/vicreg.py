"""Config of VICReg, the baseline for Saccade JEPA."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from jepa.config.base import Config, ObjectiveConfig
from jepa.config.checks import MAX_WIDTH, check_batch_size, check_weights
from jepa.config.errors import check_limits, require
from jepa.config.transforms import CropConfig, FixationConfig

__all__ = ["VICRegConfig"]

LOSSES = ("invariance", "variance", "covariance")


@dataclass(frozen=True)
class VICRegConfig(ObjectiveConfig):
    """VICReg (Bardes et al. 2022) on two fixations, with no predictor or teacher, and without the saccade."""

    kind: ClassVar[str] = "vicreg"

    expander: int = 1024
    """Width of the three layers of the expander, whose output the losses are computed on."""
    invariance: float = 25.0
    """Weight of the squared distance between the two embeddings."""
    variance: float = 25.0
    """Weight of the variance term, averaged over the two embeddings."""
    covariance: float = 1.0
    """Weight of the covariance term, summed over the two embeddings."""
    fixations: FixationConfig = field(default_factory=FixationConfig)

    def __post_init__(self) -> None:
        require(self.expander >= 1, f"objective.expander must be an integer of at least 1, got {self.expander}")
        check_limits(self, "objective.", expander=MAX_WIDTH)
        check_weights(self, LOSSES)
        require(
            any(getattr(self, name) for name in LOSSES),
            f"the weights of all losses ({', '.join(LOSSES)}) are 0; set at least one of them to a positive value",
        )

    def check_experiment(self, config: Config) -> None:
        """Require views that stay within the image, and a batch large enough for the statistics."""
        self.fixations.check_canvas(config.data.canvas_size, config.data.size)
        check_batch_size(config)

    def supervised_crop(self) -> CropConfig:
        """Return random crops whose smallest area is that of a view."""
        return CropConfig(scale=(self.fixations.view_fraction**2, 1.0))
