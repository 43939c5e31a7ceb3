"""Checks that the configs of several objectives share."""

from __future__ import annotations

import math
from typing import Any

from jepa.config.base import Config
from jepa.config.errors import require

__all__ = ["check_batch_size", "check_half_lives", "check_weights"]


def check_batch_size(config: Config) -> None:
    """Raise `InputError` if microbatches have one image, so that the batch variance is undefined."""
    require(
        config.batch_size // config.accumulate >= 2,
        f"batch_size is {config.batch_size} with accumulate {config.accumulate}, but a variance over the batch needs "
        f"at least 2 images in each microbatch; give --batch-size {2 * config.accumulate} or more",
    )


def check_weights(config: Any, names: tuple[str, ...]) -> None:
    """Raise `InputError` if a loss weight is negative or infinite."""
    for name in names:
        weight = getattr(config, name)
        require(0 <= weight < math.inf, f"objective.{name} must be at least 0, got {weight}")


def check_half_lives(config: Any) -> None:
    """Raise `InputError` if a half-life of the moving average is not positive."""
    for name in ("ema_half_life", "ema_half_life_end"):
        steps = getattr(config, name)
        require(steps > 0, f"objective.{name} must be positive, got {steps}")
