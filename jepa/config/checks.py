"""Checks that the configs of several objectives share."""

from __future__ import annotations

import math
from typing import Any

from jepa.config.base import Config
from jepa.config.errors import require

__all__ = ["MAX_WIDTH", "check_batch_size", "check_half_lives", "check_patch_codes", "check_weights"]

MAX_WIDTH = 65_536  # of the layers of projectors and predictors
MIN_CODED_SIDE = 8  # in pixels: two by two patches of six pixels, two pixels apart


def check_batch_size(config: Config) -> None:
    """Raise `InputError` if microbatches have one image, so that nothing varies within a batch."""
    require(
        config.batch_size // config.accumulate >= 2,
        f"batch_size is {config.batch_size} with accumulate {config.accumulate}, but the losses compare the images of "
        f"a microbatch, which needs at least 2; give --batch-size {2 * config.accumulate} or more",
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


def check_patch_codes(config: Config) -> None:
    """Raise `InputError` if the views are smaller than a patch of the codes."""
    height, width = config.data.size
    require(
        min(height, width) >= MIN_CODED_SIDE,
        f"objective.patch_codes needs views of at least {MIN_CODED_SIDE}x{MIN_CODED_SIDE} pixels, got "
        f"{height}x{width}; set it to 0, or choose a larger --data.image-size",
    )
