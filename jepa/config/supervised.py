"""Config of supervised training: fine-tuning, and a baseline of `jepa evaluate --full`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal, Self

import tyro

from jepa.config.base import ObjectiveConfig
from jepa.config.errors import check_limits, require
from jepa.config.hints import listed
from jepa.config.transforms import CropConfig

__all__ = ["SupervisedConfig"]

MAX_CLASSES = 1_000_000
MIN_MIXUP, MAX_MIXUP = 0.01, 100.0  # below, almost nothing is mixed; above, almost all in halves


@dataclass(frozen=True)
class SupervisedConfig(ObjectiveConfig):
    """Cross-entropy of a linear layer on the averaged tokens. It is the only objective that requires labels."""

    kind: ClassVar[str] = "supervised"
    uses_labels: ClassVar[bool] = True

    classes: int | None = None
    """Number of classes; by default, that of the source."""
    crop: CropConfig = field(default_factory=CropConfig)
    labels: float = 1.0
    """Fraction of the labeled training images of each class that is used, at least one of each."""
    head: Literal["random", "probe"] = "random"
    """Start of the linear layer: random weights, or a linear probe of the features before training."""
    freeze: bool = False
    """Train the linear layer only."""
    label_smoothing: float = 0.0
    """Fraction of the target probability that is spread over all classes."""
    mixup: float = 0.0
    """Parameter of the Beta distribution of the weights with which images are mixed in pairs; 0 disables it."""
    names: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()  # of the classes; set when training starts

    def __post_init__(self) -> None:
        classes = self.classes
        require(
            classes is None or classes >= 2,
            f"objective.classes must be an integer of at least 2, or none, got {classes}",
        )
        if classes is not None:
            check_limits(self, "objective.", classes=MAX_CLASSES)
        require(0 < self.labels <= 1, f"objective.labels must be a fraction in (0, 1], got {self.labels}")
        require(
            0 <= self.label_smoothing < 1, f"objective.label_smoothing must be in [0, 1), got {self.label_smoothing}"
        )
        require(
            self.mixup == 0 or MIN_MIXUP <= self.mixup <= MAX_MIXUP,
            f"objective.mixup must be 0, or between {MIN_MIXUP} and {MAX_MIXUP:g}, got {self.mixup}",
        )
        require(
            not self.names or len(self.names) == classes,
            f"objective.names must be as many as objective.classes, {classes}, got {len(self.names)}",
        )

    def with_classes(self, names: tuple[str, ...]) -> Self:
        """Return the config with the classes of a source. Raises `InputError` if they are not those of the config."""
        require(
            len(names) >= 2,
            f"the supervised objective requires labels of at least two classes, but the images have {len(names)}; "
            "choose a source with classes",
        )
        require(
            self.classes in (None, len(names)),
            f"objective.classes is {self.classes}, but the images have {len(names)} classes; leave out the setting",
        )
        require(
            self.names in ((), names),
            f"the run has the classes {listed(self.names)}, but the images have {listed(names)}; choose images of the "
            "same classes, or train another run",
        )
        return replace(self, classes=len(names), names=names)

    def without_classes(self) -> Self:
        """Return the config without the classes of the images with which it was trained."""
        return replace(self, classes=None, names=()) if self.names else self
