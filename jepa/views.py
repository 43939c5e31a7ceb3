"""Batched crops and flips on the device: a batch of uint8 images in, a batch of float views out."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.config import CropConfig
from jepa.rng import Rng

__all__ = ["crop", "resize"]


def as_float(images: Tensor) -> Tensor:
    """Turn uint8 images into floats in [0, 1]; floats pass through."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut the centre of images (B, C, H, W) to the aspect of `size` and bring it to `size`, antialiased.

    Returns floats in [0, 1]; images that have the size already are not resampled.
    """
    images = as_float(images)
    height, width = images.shape[-2:]
    if (height, width) == tuple(size):
        return images
    factor = min(height / size[0], width / size[1])
    rows, columns = min(height, round(size[0] * factor)), min(width, round(size[1] * factor))
    top, left = (height - rows) // 2, (width - columns) // 2
    cut = images[..., top : top + rows, left : left + columns]
    return F.interpolate(cut, size=size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def crop(images: Tensor, config: CropConfig, size: tuple[int, int], rng: Rng) -> Tensor:
    """Make one view of every image (B, C, H, W), of `size`, as floats in [0, 1].

    A random crop takes a share of the area within `config.scale` and an aspect drawn on a log scale within
    `config.aspect`, at a place uniform over all that fit; it is one bilinear resampling of the whole batch, mirrored
    in the same pass.
    """
    if config.kind == "random":
        return _random_resized(as_float(images), config, size, rng)
    if config.kind == "centre":
        side = min(images.shape[-2:])
        top, left = ((length - side) // 2 for length in images.shape[-2:])
        images = images[..., top : top + side, left : left + side]
        views = resize(images, size) if size[0] == size[1] else _stretch(as_float(images), size)
    else:
        views = _stretch(as_float(images), size)
    if config.flip:
        mirrored = rng.uniform("flip")[:, None, None, None] < 0.5
        views = torch.where(mirrored, views.flip(-1), views)
    return views


def _stretch(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring whole images to `size`, without regard to their aspect."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def _random_resized(images: Tensor, config: CropConfig, size: tuple[int, int], rng: Rng) -> Tensor:
    height, width = images.shape[-2:]
    u = rng.uniform("crop", 5)
    area = config.scale[0] + u[:, 0] * (config.scale[1] - config.scale[0])
    low, high = (math.log(ratio) for ratio in config.aspect)
    aspect = torch.exp(low + u[:, 1] * (high - low)) * height / width  # in units of the image's own sides
    half_x = (area * aspect).sqrt().clamp(max=1)  # a side that does not fit is cut, the other makes up for it
    half_y = (area / half_x).clamp(max=1)
    half_x = (area / half_y).clamp(max=1)
    centre_x = (2 * u[:, 2] - 1) * (1 - half_x)
    centre_y = (2 * u[:, 3] - 1) * (1 - half_y)
    sign = torch.where(u[:, 4] < 0.5, -1.0, 1.0) if config.flip else torch.ones_like(area)
    zero = torch.zeros_like(area)
    theta = torch.stack([half_x * sign, zero, centre_x, zero, half_y, centre_y], -1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [len(images), images.shape[1], *size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
