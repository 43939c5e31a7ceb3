"""Preprocessing in the formats of transformers and timm, and how much its pixels differ from those of image-jepa."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jepa.backbones import Encoder
from jepa.config import DataConfig
from jepa.interop.agreement import Difference
from jepa.interop.images import read_batches

__all__ = ["pixel_differences", "processor_config", "timm_preprocessing"]

Size = tuple[int, int]


def processor_config(encoder: Encoder) -> dict[str, Any]:
    """Return the preprocessor_config.json of transformers that is closest to the preprocessing of an encoder.

    For square inputs, the shorter side is resized and the center is cropped. A processor of transformers cannot crop to
    another aspect ratio before it resizes, so for other inputs it resizes whole images, whose aspect ratio must fit.
    """
    height, width = encoder.size
    mean, std = (values.flatten().tolist() for values in (encoder.mean, encoder.std))
    config: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "resample": int(Image.Resampling.BILINEAR),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
    if len(mean) == 3:
        config["do_convert_rgb"] = True
    if height != width:
        return config | {"size": {"height": height, "width": width}}
    return config | {
        "size": {"shortest_edge": height},
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
    }


def timm_preprocessing(encoder: Encoder) -> dict[str, Any]:
    """Return the settings of timm's pretrained_cfg that are closest to the preprocessing of an encoder."""
    height, width = encoder.size
    mean, std = (values.flatten().tolist() for values in (encoder.mean, encoder.std))
    return {
        "input_size": [len(mean), height, width],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "center" if height == width else "squash",
        "mean": mean,
        "std": std,
    }


def pixel_differences(encoder: Encoder, data: DataConfig, process: Callable[[Image.Image], Tensor]) -> list[Difference]:
    """Return how much the pixels of another preprocessing differ from ours, in levels of 0 to 255.

    `process` returns normalized pixels (C, H, W) of an image. The images are smooth, with all levels.
    """
    height, width = encoder.size
    sizes: dict[str, Iterable[Size]] = {
        f"{height}x{width} images, as the model takes them": [(height, width)],
        f"{2 * height}x{2 * width} images": [(2 * height, 2 * width)],
        f"{5 * height}x{5 * width} images": [(5 * height, 5 * width)],
        "images of another aspect ratio (4:3 and 3:4 of it)": [(3 * height, 4 * width), (4 * height, 3 * width)],
    }
    return [
        Difference(name, max(_difference(encoder, data, process, size) for size in images), 255.0, True)
        for name, images in sizes.items()
    ]


def _difference(encoder: Encoder, data: DataConfig, process: Callable[[Image.Image], Tensor], size: Size) -> float:
    channels, rng = len(encoder.mean), np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8))
    image = coarse.resize(size[::-1], Image.Resampling.BICUBIC).convert("L" if channels == 1 else "RGB")
    (batch,) = read_batches(image, channels, data.canvas_size, 1)
    with torch.no_grad():
        ours = encoder.prepare(batch)[0]
    return float(((ours - process(image)) * encoder.std * 255).abs().max())
