"""Automatic settings: choose an experiment from a summary of the images and the device.

I-JEPA is planned here, Saccade JEPA in `auto_saccade`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from jepa.config.backbones import ViTConfig, is_power_of_two, parse_width
from jepa.config.base import Config, OptimConfig
from jepa.config.checks import MIN_CODED_SIDE
from jepa.config.data import DataConfig
from jepa.config.errors import require
from jepa.config.ijepa import IJepaConfig
from jepa.config.transforms import CropConfig, MaskConfig

__all__ = [
    "DataSummary",
    "Setting",
    "auto_config",
    "batch_size",
    "canvas_size",
    "channels_setting",
    "image_size",
    "spelled",
    "views_seen",
]

MIN_CROP_AREA = 0.35
MAX_CANVAS_ASPECT = 2.0  # crops of longer images would be distorted
CPU_SIZES, GPU_SIZES = (32, 64), (32, 64, 96, 128, 160, 192, 224)
ACTIVATION_BYTES = (
    34 * 2
)  # per token, layer and unit of width, in bf16 (Korthikanti et al. 2022); doubled as a safety margin


@dataclass(frozen=True)
class DataSummary:
    """Properties of the images and the device that determine the automatic settings."""

    count: int
    """Number of training images."""
    height: int
    width: int
    """Height and width in pixels of the image with the median shorter side."""
    one_aspect: bool = False
    """Whether nearly all images have the aspect ratio of that image."""
    gray: bool = False
    """Whether all images are grayscale."""
    device: str = "cpu"
    memory_gb: float = 16.0
    """Memory of the device, in gigabytes."""


@dataclass(frozen=True)
class Setting:
    """A chosen setting, written as on the command line, and the reason for it."""

    flag: str
    value: str
    reason: str


def auto_config(
    source: str, summary: DataSummary, given: tuple[int, int] | None = None
) -> tuple[Config, list[Setting]]:
    """Choose an I-JEPA experiment for a set of images, and return its config and the chosen settings.

    `given` is the height and width of the encoder's input, if set by the user. Raises `InputError` for a source
    of fewer than two images, or if no patch size suits the given size.
    """
    require(summary.count >= 2, f"{source} has {summary.count} training image; training requires at least 2")
    on_gpu = summary.device == "cuda"
    (height, width), why_size = image_size(summary, given)
    patch = _patch(height, width, 16 if on_gpu else 8)
    canvas, why_canvas = canvas_size(
        summary, height, width, math.sqrt(MIN_CROP_AREA), f"crops of {MIN_CROP_AREA:.0%} of it"
    )
    size, predictor, why_model = _model(summary.count, on_gpu)
    tokens = (height // patch) * (width // patch)
    batch, why_batch = _batch(summary, on_gpu, tokens, size, predictor)
    samples_seen, why_steps = views_seen(summary.count, on_gpu)
    steps = max(500, samples_seen // batch)
    view = height if height == width else (height, width)
    config = Config(
        name="ijepa-folder",
        steps=steps,
        batch_size=batch,
        save_every=max(100, min(1000, steps // 10)),
        eval_every=max(100, steps // 4),
        data=DataConfig(source=source, image_size=view, canvas=canvas, channels=channels_setting(summary)[1]),
        backbone=ViTConfig(size=size, patch=patch, stem="conv" if is_power_of_two(patch) else "linear"),
        objective=IJepaConfig(
            predictor=predictor,
            loss="smooth_l1",
            variance=0.01,
            covariance=0.01,
            ema_half_life=max(20.0, min(173.0, round(steps / 26))),
            ema_half_life_end=float(round(steps / 2.6)),
            crop=CropConfig(kind="random", scale=(MIN_CROP_AREA, 1.0), flip=True),
            masks=MaskConfig(context_limit=1.0 if on_gpu else 0.35),
        ),
        optim=OptimConfig(lr_start=1e-5, warmup=max(50, steps // 20), weight_decay=0.05, weight_decay_end=0.05),
    )
    if not on_gpu:
        config = _fast(config)
    settings = [
        ("--data.image-size", view, why_size),
        ("--data.canvas", canvas, why_canvas),
        channels_setting(summary),
        ("--backbone.patch", patch, f"{height // patch}x{width // patch} tokens"),
        ("--backbone.size", size, why_model),
        ("--batch-size", batch, why_batch),
        ("--steps", steps, f"each image about {steps * batch / summary.count:,.0f} times: {why_steps}"),
    ]
    return config, spelled(settings)


def spelled(settings: Iterable[tuple[str, object, str]]) -> list[Setting]:
    """Return settings, given as flags, values and reasons, with the values written as on the command line."""
    return [
        Setting(flag, " ".join(map(str, value)) if isinstance(value, tuple) else str(value), reason)
        for flag, value, reason in settings
    ]


def channels_setting(summary: DataSummary) -> tuple[str, Literal[1, 3], str]:
    """Choose the number of channels."""
    if summary.gray:
        return "--data.channels", 1, "all images are grayscale"
    return "--data.channels", 3, "some images are in color"


def image_size(summary: DataSummary, given: tuple[int, int] | None) -> tuple[tuple[int, int], str]:
    """Choose a square input size: the largest supported one within the median shorter side, or the smallest one."""
    if given:
        return given, "set by the user"
    side, on_gpu = min(summary.height, summary.width), summary.device == "cuda"
    known = GPU_SIZES if on_gpu else CPU_SIZES
    size = max((size for size in known if size <= side), default=known[0])
    if size == known[-1]:
        return (size, size), f"the largest size that trains in {'hours on a GPU' if on_gpu else 'minutes on a CPU'}"
    return (size, size), f"the median shorter side is {side} pixels"


def _patch(height: int, width: int, side: int) -> int:
    """Choose the smallest patch size that gives at most `side` x `side` tokens, preferably a power of two.

    Raises `InputError` if no patch size gives at least 4 tokens a side without exceeding three times `side`.
    """
    fitting = [patch for patch in range(1, min(height, width) // 4 + 1) if height % patch == 0 and width % patch == 0]
    few = [patch for patch in fitting if height * width <= (side * patch) ** 2]
    if not few and fitting and height * width <= (3 * side * fitting[-1]) ** 2:
        few = [fitting[-1]]
    nearest = [max(32, round(length / 8) * 8) for length in (height, width)]
    require(
        bool(few),
        f"data.image_size is {height}x{width}, but no patch size gives 4 to {side} tokens per side; choose "
        f"--data.image-size {nearest[0]}{f' {nearest[1]}' if height != width else ''}",
    )
    return min([patch for patch in few if is_power_of_two(patch)] or few)


def canvas_size(
    summary: DataSummary, height: int, width: int, fraction: float, views: str
) -> tuple[int | tuple[int, int], str]:
    """Choose the canvas: large enough that the smallest views are not upsampled, but no larger than the images.

    `fraction` is the part of the side of the canvas that they cover, and `views` their name in the reason.
    """
    needed = [math.ceil(length / fraction / 8) * 8 for length in (height, width)]
    fitting = min(1.0, summary.height / needed[0], summary.width / needed[1])
    down, across = max(height, int(needed[0] * fitting)), max(width, int(needed[1] * fitting))
    enough = f"{views} are not upsampled" if fitting == 1 else "no larger than the images"
    if height != width:
        return (down, across), f"the center; {enough}"
    if (
        summary.one_aspect
        and 1 < max(summary.height, summary.width) / min(summary.height, summary.width) <= MAX_CANVAS_ASPECT
    ):
        factor = down / min(summary.height, summary.width)
        shape = (max(down, round(summary.height * factor)), max(across, round(summary.width * factor)))
        return shape, f"nearly all images have this aspect ratio; {enough}"
    return down, f"the center square; {enough}"


def _model(count: int, on_gpu: bool) -> tuple[str, str, str]:
    if not on_gpu:
        return "128x4x4", "64x2x4", "best on CIFAR-10 after ten minutes on two cores"
    if count < 50_000:
        return "tiny", "96x4x3", "fewer than 50,000 images: a small model with a shallow predictor"
    if count < 1_000_000:
        return "small", "192x6x6", "fewer than a million images"
    return "base", "384x6x12", "a million images or more"


def _batch(summary: DataSummary, on_gpu: bool, tokens: int, width: str, predictor: str) -> tuple[int, str]:
    """Choose the batch size for a ViT and its predictor."""
    dim, depth = ViTConfig(size=width, patch=16).dimensions[:2]
    narrow, layers, _ = parse_width(predictor, "objective.predictor")
    image = (
        ACTIVATION_BYTES * tokens * (dim * depth + 4 * narrow * layers)
    )  # four targets, each with the context tokens
    return batch_size(summary, 1024 if on_gpu else 128, image)


def batch_size(summary: DataSummary, limit: int, image: float) -> tuple[int, str]:
    """Choose the largest power of two up to `limit` that fits in memory and leaves at least four batches per epoch.

    `image` is the memory for one image, in bytes.
    """
    largest = min(limit, 0.8 * summary.memory_gb * 1e9 / image)
    by_count = summary.count / 4
    batch = 2 ** max(1, int(math.log2(max(2.0, min(largest, by_count)))))
    if by_count < largest:
        return batch, f"leaves at least four batches per epoch of {summary.count:,} images"
    on_gpu = summary.device == "cuda"
    return batch, f"fits in {summary.memory_gb:.0f} GB" if on_gpu else "the batch size of the CPU recipes"


def _fast(config: Config) -> Config:
    """Return the config with the parts of `ijepa-cifar10` that learn the most in minutes (EXPERIMENTS.md)."""
    backbone, objective = config.backbone, config.objective
    assert isinstance(backbone, ViTConfig)
    assert isinstance(objective, IJepaConfig)
    codes = 0.1 if min(config.data.size) >= MIN_CODED_SIDE else 0.0
    return replace(
        config,
        backbone=replace(backbone, stem="whitening") if backbone.stem == "conv" else backbone,
        objective=replace(objective, patch_codes=codes, ema_half_life=60, ema_half_life_end=60),
        optim=replace(config.optim, kind="muon", lr=8e-3),
    )


def views_seen(count: int, on_gpu: bool) -> tuple[int, str]:
    """Choose the number of training samples, counting repeats."""
    if not on_gpu:
        seen = min(160_000, 400 * count)
        return seen, "about ten minutes on two cores" if seen == 160_000 else "400 epochs of a small dataset"
    seen = min(300_000_000, max(300 * count, 5_000_000), 800 * count)
    return seen, "300 epochs; fewer for millions of images, more for thousands"
