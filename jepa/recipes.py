"""Named experiments. A recipe is a function that returns a config; its docstring has command, time and result."""

from __future__ import annotations

from collections.abc import Callable

from jepa.config import (
    Config,
    CropConfig,
    DataConfig,
    IJepaConfig,
    InputError,
    MaskConfig,
    OptimConfig,
    ViTConfig,
    suggest,
)

__all__ = ["RECIPES", "facts", "recipe"]


def demo() -> Config:
    """I-JEPA on the built-in sample, in two minutes on two cores.

    jepa train demo
    """
    return Config(
        name="demo",
        steps=900,
        batch_size=128,
        data=DataConfig(source="sample", image_size=28, channels=1),
        backbone=ViTConfig(size="96x4x3", patch=4, stem="conv"),
        objective=IJepaConfig(
            predictor="48x2x3",
            loss="smooth_l1",
            variance=0.2,
            covariance=0.2,
            ema_half_life=69,
            ema_half_life_end=693,
            crop=CropConfig(kind="full"),
            masks=MaskConfig(context_limit=0.4),
        ),
        optim=OptimConfig(lr=1e-3, lr_start=1e-5, warmup=50, weight_decay=0.05, weight_decay_end=0.05),
    )


def ijepa_cifar10() -> Config:
    """I-JEPA on CIFAR-10 at 32 pixels, made for CPUs.

    jepa train ijepa-cifar10 --data cifar10/
    """
    return Config(
        name="ijepa-cifar10",
        steps=1500,
        batch_size=128,
        data=DataConfig(source="cifar10", image_size=32),
        backbone=ViTConfig(size="128x4x4", patch=4, stem="conv"),
        objective=IJepaConfig(
            predictor="64x2x4",
            loss="smooth_l1",
            variance=0.2,
            covariance=0.2,
            ema_half_life=69,
            ema_half_life_end=693,
            crop=CropConfig(kind="random", scale=(0.35, 1.0), flip=True),
            masks=MaskConfig(context_limit=0.35),
        ),
        optim=OptimConfig(lr=1e-3, lr_start=1e-5, warmup=50, weight_decay=0.05, weight_decay_end=0.05),
    )


RECIPES: dict[str, Callable[[], Config]] = {
    "demo": demo,
    "ijepa-cifar10": ijepa_cifar10,
}


def facts(make: Callable[[], Config]) -> dict[str, str]:
    """Read a recipe's docstring: its first line as `what`, then every `Key: value` line."""
    what, *rest = (make.__doc__ or "").strip().splitlines()
    lines = [line.strip().partition(": ") for line in rest if ": " in line]
    return {"what": what} | {key.lower(): value for key, _, value in lines}


def recipe(name: str) -> Config:
    """Return the config of a recipe. Raises `InputError` for a name that is none."""
    if name not in RECIPES:
        raise InputError(f"there is no recipe '{name}'{suggest(name, RECIPES)} (recipes: {', '.join(RECIPES)})")
    return RECIPES[name]()
