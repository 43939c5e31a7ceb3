"""Batched crops and flips on the device: uint8 images in, float views out."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.config import CropConfig
from jepa.rng import Rng

__all__ = ["as_float", "content_fraction", "crop", "resize"]

NUM_CANDIDATES = 8  # number of candidate boxes per image if `min_content` is set
CONTENT_WINDOW = 5  # side of the window, in pixels, in which the range of values is measured
MAX_FLAT_RANGE = 4.5 / 255  # largest range of values in an empty window
CONTENT_GRID = 64  # minimum number of cells per side of the content grid, unless cells are single pixels
LARGE_IMAGE_PIXELS = 64 * 64  # size from which cropping one image at a time is faster on the CPU


def as_float(images: Tensor) -> Tensor:
    """Convert uint8 images to floats in [0, 1]; return floats unchanged."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Center-crop images (B, C, H, W) to the aspect ratio of `size` and resize them to `size` with antialiasing.

    Returns floats in [0, 1]. Images that already have this size are not resampled.
    """
    images = as_float(images)
    height, width = images.shape[-2:]
    if (height, width) == tuple(size):
        return images
    factor = min(height / size[0], width / size[1])
    rows, columns = min(height, round(size[0] * factor)), min(width, round(size[1] * factor))
    top, left = (height - rows) // 2, (width - columns) // 2
    return _interpolate(images[..., top : top + rows, left : left + columns], size).clamp(0, 1)


def crop(images: Tensor, config: CropConfig, size: tuple[int, int], rng: Rng, *, view: int = 0) -> Tensor:
    """Return one view of each image (B, C, H, W), as floats (B, C, *size) in [0, 1].

    The area of a random crop is uniform within `config.scale`, its aspect ratio is log-uniform within `config.aspect`,
    and its position is uniform over all valid positions. Objectives that need several crops of an image pass different
    `view` numbers, which give different crops.
    """
    suffix = f", view {view}" if view else ""
    if config.kind == "random":
        u = rng.uniform(f"crop{suffix}", NUM_CANDIDATES if config.min_content else 1, 5)
        return _random_resized_crop(images, config, size, u)
    if config.kind == "centre":
        side = min(images.shape[-2:])
        top, left = ((length - side) // 2 for length in images.shape[-2:])
        images = images[..., top : top + side, left : left + side]
        views = resize(images, size) if size[0] == size[1] else _stretch(as_float(images), size)
    else:
        views = _stretch(as_float(images), size)
    if config.flip:
        flipped = rng.uniform(f"flip{suffix}")[:, None, None, None] < 0.5
        views = torch.where(flipped, views.flip(-1), views)
    return views


def _interpolate(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)


def _stretch(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize whole images to `size`, ignoring the aspect ratio."""
    return images if tuple(images.shape[-2:]) == tuple(size) else _interpolate(images, size).clamp(0, 1)


def _random_resized_crop(images: Tensor, config: CropConfig, size: tuple[int, int], u: Tensor) -> Tensor:
    """Crop images to random boxes, given uniform random numbers (B, candidates, 5)."""
    boxes, flipped = _draw_boxes(u, config, *images.shape[-2:])
    if config.min_content:
        fractions = content_fraction(images, boxes)  # (B, candidates)
        accepted = fractions >= config.min_content
        selected = torch.where(accepted.any(1), accepted.int().argmax(1), fractions.argmax(1))
    else:
        selected = torch.zeros(len(images), dtype=torch.long, device=images.device)
    image_index = torch.arange(len(images), device=images.device)
    one_by_one = images.device.type == "cpu" and images.shape[-2] * images.shape[-1] >= LARGE_IMAGE_PIXELS
    views = (_crop_one_by_one if one_by_one else _crop_batch)(images, boxes[image_index, selected], size)
    if config.flip:
        views = torch.where(flipped[image_index, selected][:, None, None, None], views.flip(-1), views)
    return views


def _draw_boxes(u: Tensor, config: CropConfig, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Map uniform numbers (B, N, 5) to boxes (B, N, 4) as (top, left, height, width) in pixels, and flips (B, N)."""
    area = config.scale[0] + u[..., 0] * (config.scale[1] - config.scale[0])
    low, high = (math.log(ratio) for ratio in config.aspect)
    aspect = torch.exp(low + u[..., 1] * (high - low)) * height / width  # relative width / relative height
    # if one side does not fit, it is clipped and the other enlarged to keep the area
    relative_width = (area * aspect).sqrt().clamp(max=1)
    relative_height = (area / relative_width).clamp(max=1)
    relative_width = (area / relative_height).clamp(max=1)
    rows, columns = (relative_height * height).round().clamp(min=1), (relative_width * width).round().clamp(min=1)
    top, left = (u[..., 3] * (height - rows + 1)).floor(), (u[..., 2] * (width - columns + 1)).floor()
    return torch.stack([top, left, rows, columns], -1).long(), u[..., 4] < 0.5


def _crop_one_by_one(images: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop images to boxes (B, 4) and resize the crops, one image at a time."""
    views = images.new_empty((*images.shape[:2], *size), dtype=torch.float32)
    for view, image, (top, left, height, width) in zip(views, images, boxes.tolist(), strict=True):
        cropped = as_float(image[None, :, top : top + height, left : left + width])
        view.copy_(_interpolate(cropped, size)[0])
    return views


def _crop_batch(images: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop images to boxes (B, 4) and resize the crops, with one batched matrix product per axis."""
    top, left, height, width = boxes.unbind(-1)
    vertical = _resampling_weights(top, height, images.shape[-2], size[0])
    horizontal = _resampling_weights(left, width, images.shape[-1], size[1])
    narrow = torch.bmm(as_float(images).flatten(1, 2), horizontal.mT).unflatten(1, images.shape[1:3])  # (B, C, H, w)
    views = torch.bmm(vertical, narrow.transpose(1, 2).flatten(2))  # (B, h, C·w)
    return views.view(len(images), size[0], images.shape[1], size[1]).transpose(1, 2).contiguous()


def _resampling_weights(start: Tensor, length: Tensor, num_pixels: int, size: int) -> Tensor:
    """Return weights (B, size, num_pixels) that resample the `length` pixels starting at `start` to `size` pixels.

    Resampling is bilinear with antialiasing, as in Pillow: when downsampling, the triangle filter is scaled to the size
    of an output pixel.
    """
    pixel = torch.arange(num_pixels, device=start.device)
    step = (length / size)[:, None]
    center = start[:, None] + (torch.arange(size, device=start.device) + 0.5) * step - 0.5
    distance = (pixel - center[..., None]).abs()
    inside = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])
    weights = (1 - distance / step.clamp(min=1)[..., None]).clamp(min=0) * inside[:, None]
    return weights / weights.sum(-1, keepdim=True)


def content_fraction(images: Tensor, boxes: Tensor) -> Tensor:
    """Return the fraction (B, N) of each box (B, N, 4) of images (B, C, H, W) that has content.

    A position is empty if the pixels in the 5x5 window around it differ by at most 4 of 255 levels, as in a black or
    white border or an unlit or overexposed area. Positions are tested on a grid with at least 64 cells per side, or at
    each pixel of smaller images.
    """
    height, width = images.shape[-2:]
    stride = max(1, min(height, width) // CONTENT_GRID)
    images = as_float(images)
    max_pool = partial(F.max_pool2d, kernel_size=CONTENT_WINDOW, stride=stride, padding=CONTENT_WINDOW // 2)
    filled = (max_pool(images) + max_pool(-images)).amax(1).gt(MAX_FLAT_RANGE).float()
    # sums[b, y, x] is the number of filled cells above y and left of x
    sums = F.pad(filled.cumsum(1).cumsum(2), (1, 0, 1, 0))
    rows, columns = filled.shape[1:]
    top, bottom = _cell_range(boxes[..., 0], boxes[..., 2], rows / height, rows)
    left, right = _cell_range(boxes[..., 1], boxes[..., 3], columns / width, columns)
    image_index = torch.arange(len(images), device=images.device)[:, None]
    corners = [sums[image_index, y, x] for y, x in ((bottom, right), (top, right), (bottom, left), (top, left))]
    inside = corners[0] - corners[1] - corners[2] + corners[3]
    return inside / ((bottom - top) * (right - left))


def _cell_range(start: Tensor, length: Tensor, cells_per_pixel: float, num_cells: int) -> tuple[Tensor, Tensor]:
    """Return the half-open range of grid cells that a box overlaps along one axis."""
    first = (start * cells_per_pixel).floor().long().clamp(max=num_cells - 1)
    end = ((start + length) * cells_per_pixel).ceil().long().clamp(max=num_cells)
    return first, torch.maximum(end, first + 1)
