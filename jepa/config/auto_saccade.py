"""Automatic settings of Saccade JEPA: choose an experiment from a summary of the images and the device."""

from __future__ import annotations

import math
from dataclasses import replace

from jepa.config.auto import (
    DataSummary,
    Setting,
    batch_size,
    canvas_size,
    channels_setting,
    image_size,
    spelled,
    views_seen,
)
from jepa.config.backbones import PlainConvNetConfig
from jepa.config.base import Config, OptimConfig
from jepa.config.checks import MIN_CODED_SIDE
from jepa.config.data import DataConfig
from jepa.config.errors import InputError, require
from jepa.config.saccade import SaccadeConfig
from jepa.config.transforms import FixationConfig

__all__ = ["CODED", "auto_saccade_config"]

CODED = SaccadeConfig(
    hidden=256,
    prediction=20,
    cycle=5,
    variance=0,
    covariance=0,
    correlation=0.015,
    inverse=4,
    patch_codes=1,
    ema_half_life=20,
    ema_half_life_end=100,
    fixations=FixationConfig(view_fraction=1, shift=0.25, rotation=15, zoom=1.4),
)
"""The objective of `saccade-cifar10`, with codes of patches and views of the whole image that are zoomed in."""
ROTATIONS = (CODED.fixations.rotation, 10.0, 5.0, 2.0)  # in degrees; smaller ones for long views
LAST_SIDE = 4  # smallest side of the last feature map
LAST_WIDTH = {"cpu": 512, "cuda": 1536}  # number of channels of the last stage, as in the recipes for CIFAR-10
FIRST_WIDTH = {"cpu": 64, "cuda": 192}  # maximum number of channels before the first stage
SATURATED = 1_280_000  # number of training samples, counting repeats, after which CIFAR-10 gained little
ACTIVATION_BYTES = 14  # per pixel and channel before the first stage: seven maps in bf16, twice for all other stages,
# at a quarter of the pixels, and doubled as a safety margin


def auto_saccade_config(
    source: str, summary: DataSummary, given: tuple[int, int] | None = None
) -> tuple[Config, list[Setting]]:
    """Choose a Saccade JEPA experiment for a set of images, and return its config and the chosen settings.

    The method is that of `saccade-cifar10`: a small ConvNet, codes of patches, and views of the whole image that are
    zoomed in. `given` is the height and width of the views, if set by the user. Raises `InputError` for a source of
    fewer than two images, or if the given views are too long to be rotated.
    """
    require(summary.count >= 2, f"{source} has {summary.count} training image; training requires at least 2")
    on_gpu = summary.device == "cuda"
    device = "cuda" if on_gpu else "cpu"
    (height, width), why_size = image_size(summary, given)
    view = height if height == width else (height, width)
    canvas, why_canvas = canvas_size(summary, height, width, 1 / CODED.fixations.zoom, "the smallest views")
    channels = channels_setting(summary)
    data = DataConfig(source=source, image_size=view, canvas=canvas, channels=channels[1])
    stages = min(8, max(1, int(math.log2(max(1, min(height, width) / LAST_SIDE)))))
    first = min(FIRST_WIDTH[device], max(8, LAST_WIDTH[device] // 2**stages))
    batch, why_batch = batch_size(summary, 512 if on_gpu else 256, ACTIVATION_BYTES * height * width * first)
    seen, why_steps = _views_seen_on_gpu(summary.count) if on_gpu else views_seen(summary.count, on_gpu)
    steps = max(500, seen // batch)
    config = Config(
        name="saccade-folder",
        steps=steps,
        batch_size=batch,
        save_every=max(100, min(1000, steps // 10)),
        eval_every=max(100, steps // 4),
        data=data,
        backbone=PlainConvNetConfig(width=first, stages=stages, dim=1024 if on_gpu else 2048),
        objective=replace(
            CODED, patch_codes=1 if min(height, width) >= MIN_CODED_SIDE else 0, fixations=_fixations(data)
        ),
        optim=OptimConfig(
            kind="muon",
            lr=6e-3 if on_gpu else 4e-3,
            lr_start=1e-5,
            warmup=max(50, steps // 20),
            weight_decay=0.05,
            weight_decay_end=0.05,
        ),
    )
    side = f"{min(height, width) // 2**stages} positions along the shorter side of the last feature map"
    settings = [
        ("--data.image-size", view, why_size),
        ("--data.canvas", canvas, why_canvas),
        channels,
        ("--backbone.stages", stages, side),
        ("--backbone.width", first, f"{first * 2**stages} channels after the last stage"),
        ("--batch-size", batch, why_batch),
        ("--steps", steps, f"each image about {steps * batch / summary.count:,.0f} times: {why_steps}"),
    ]
    return config, spelled(settings)


def _fixations(data: DataConfig) -> FixationConfig:
    """Choose the largest rotation at which zoomed-in views fit into the canvas."""
    for rotation in ROTATIONS:
        fixations = replace(CODED.fixations, rotation=rotation)
        try:
            fixations.check_canvas(data.canvas_size, data.size)
        except InputError as error:
            reason = error
            continue
        return fixations
    height, width = data.size
    raise InputError(
        f"data.image_size is {height}x{width}, and views of this aspect ratio cannot be rotated within the image; "
        "choose one that is closer to a square"
    ) from reason


def _views_seen_on_gpu(count: int) -> tuple[int, str]:
    """Choose the number of training samples on a GPU, counting repeats."""
    if 400 * count <= SATURATED:
        return 400 * count, "400 epochs of a small dataset"
    if 20 * count <= SATURATED:
        return SATURATED, "more gained little on CIFAR-10"
    return 20 * count, "20 epochs of a large dataset"
