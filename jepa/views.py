"""Batched crops and flips on the device: a batch of uint8 images in, a batch of float views out."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.config import CropConfig
from jepa.rng import Rng

__all__ = ["content", "crop", "resize"]

CANDIDATES = 8  # boxes drawn for an image where empty ones are rejected
WINDOW, FLAT = 5, 4.5 / 255
LARGE = 64 * 64  # pixels


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
        return _random_resized(images, config, size, rng)
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
    u = rng.uniform("crop", CANDIDATES if config.min_content else 1, 5)
    boxes, mirrored = _draw_boxes(u, config, *images.shape[-2:])
    if config.min_content:
        shares = content(images, boxes)  # (B, candidates)
        enough = shares >= config.min_content
        chosen = torch.where(enough.any(1), enough.int().argmax(1), shares.argmax(1))
    else:
        chosen = torch.zeros(len(images), dtype=torch.long, device=images.device)
    each = torch.arange(len(images), device=images.device)
    one_by_one = images.device.type == "cpu" and images.shape[-2] * images.shape[-1] >= LARGE
    views = (_cut_each if one_by_one else _cut_all)(images, boxes[each, chosen], size)
    if config.flip:
        views = torch.where(mirrored[each, chosen][:, None, None, None], views.flip(-1), views)
    return views


def _draw_boxes(u: Tensor, config: CropConfig, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Turn uniform numbers (B, N, 5) into boxes (B, N, 4), top, left, height, width in pixels, and who is mirrored."""
    area = config.scale[0] + u[..., 0] * (config.scale[1] - config.scale[0])
    low, high = (math.log(ratio) for ratio in config.aspect)
    aspect = torch.exp(low + u[..., 1] * (high - low)) * height / width  # in units of the image's own sides
    across = (area * aspect).sqrt().clamp(max=1)  # a side that does not fit is cut, the other makes up for it
    down = (area / across).clamp(max=1)
    across = (area / down).clamp(max=1)
    rows, columns = (down * height).round().clamp(min=1), (across * width).round().clamp(min=1)
    top, left = (u[..., 3] * (height - rows + 1)).floor(), (u[..., 2] * (width - columns + 1)).floor()
    return torch.stack([top, left, rows, columns], -1).long(), u[..., 4] < 0.5


def _cut_each(images: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut boxes (B, 4) one after the other, which is the faster for large images on the CPU."""
    views = images.new_empty((*images.shape[:2], *size), dtype=torch.float32)
    for view, image, (top, left, height, width) in zip(views, images, boxes.tolist(), strict=True):
        cut = as_float(image[None, :, top : top + height, left : left + width])
        view.copy_(F.interpolate(cut, size, mode="bilinear", antialias=True, align_corners=False)[0])
    return views


def _cut_all(images: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut boxes (B, 4) of the whole batch at once: two products with matrices of weights, down and across."""
    top, left, height, width = boxes.unbind(-1)
    down = _triangles(top, height, images.shape[-2], size[0])
    across = _triangles(left, width, images.shape[-1], size[1])
    narrow = torch.bmm(as_float(images).flatten(1, 2), across.mT).unflatten(1, images.shape[1:3])  # (B, C, H, w)
    views = torch.bmm(down, narrow.transpose(1, 2).flatten(2))  # (B, h, C·w)
    return views.view(len(images), size[0], images.shape[1], size[1]).transpose(1, 2).contiguous()


def _triangles(start: Tensor, length: Tensor, pixels: int, size: int) -> Tensor:
    """Weights (B, size, pixels) that resample `length` pixels from `start` on to `size`: bilinear, antialiased.

    The triangle is as wide as an output pixel where that covers several input pixels, as in Pillow.
    """
    place = torch.arange(pixels, device=start.device)
    step = (length / size)[:, None]
    centre = start[:, None] + (torch.arange(size, device=start.device) + 0.5) * step - 0.5
    distance = (place - centre[..., None]).abs()
    inside = (place >= start[:, None]) & (place < (start + length)[:, None])
    weights = (1 - distance / step.clamp(min=1)[..., None]).clamp(min=0) * inside[:, None]
    return weights / weights.sum(-1, keepdim=True)


def content(images: Tensor, boxes: Tensor) -> Tensor:
    """Share of every box (B, N, 4) of images (B, C, H, W) that is not empty.

    A place is empty where all pixels of the 5x5 around it have one colour to 4 of 255 levels: a black or white
    border, an unlit or overexposed part. Looked at on a grid of at least 64 places a side, or of every pixel.
    """
    height, width = images.shape[-2:]
    stride = max(1, min(height, width) // 64)
    images = as_float(images)
    pool = partial(F.max_pool2d, kernel_size=WINDOW, stride=stride, padding=WINDOW // 2)
    filled = (pool(images) + pool(-images)).amax(1).gt(FLAT).float()
    sums = F.pad(filled.cumsum(1).cumsum(2), (1, 0, 1, 0))  # sums[b, y, x]: filled places above y and left of x
    rows, columns = filled.shape[1:]
    top, bottom = _span(boxes[..., 0], boxes[..., 2], rows / height, rows)
    left, right = _span(boxes[..., 1], boxes[..., 3], columns / width, columns)
    each = torch.arange(len(images), device=images.device)[:, None]
    inside = sums[each, bottom, right] - sums[each, top, right] - sums[each, bottom, left] + sums[each, top, left]
    return inside / ((bottom - top) * (right - left))


def _span(start: Tensor, length: Tensor, factor: float, places: int) -> tuple[Tensor, Tensor]:
    """First place and the one after the last that a side of a box touches on a grid of `places`."""
    first = (start * factor).floor().long().clamp(max=places - 1)
    end = ((start + length) * factor).ceil().long().clamp(max=places)
    return first, torch.maximum(end, first + 1)
