"""Supervised training, a baseline of `jepa evaluate --full`: what the same network reaches with every label."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from jepa.config.errors import require
from jepa.config.ijepa import CropConfig

if TYPE_CHECKING:
    from jepa.config import Config

__all__ = ["SupervisedConfig"]


@dataclass(frozen=True)
class SupervisedConfig:
    """Cross-entropy of a linear layer on the averaged tokens. It needs labels, as no other objective does."""

    kind: ClassVar[str] = "supervised"

    classes: int = 10
    """Number of classes of the source."""
    crop: CropConfig = field(default_factory=CropConfig)

    def __post_init__(self) -> None:
        require(self.classes >= 2, f"objective.classes is {self.classes}; it takes a number from 2")

    def fits(self, config: Config) -> None:
        """Everything goes together with it."""
