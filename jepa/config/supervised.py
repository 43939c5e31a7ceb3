"""Config of supervised training, a baseline of `jepa evaluate --full`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from jepa.config.base import ObjectiveConfig
from jepa.config.errors import check_limits, require
from jepa.config.transforms import CropConfig

__all__ = ["SupervisedConfig"]

MAX_CLASSES = 1_000_000


@dataclass(frozen=True)
class SupervisedConfig(ObjectiveConfig):
    """Cross-entropy of a linear layer on the averaged tokens. It is the only objective that requires labels."""

    kind: ClassVar[str] = "supervised"
    uses_labels: ClassVar[bool] = True

    classes: int = 10
    """Number of classes of the source."""
    crop: CropConfig = field(default_factory=CropConfig)

    def __post_init__(self) -> None:
        require(self.classes >= 2, f"objective.classes must be an integer of at least 2, got {self.classes}")
        check_limits(self, "objective.", classes=MAX_CLASSES)
