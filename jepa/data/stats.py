"""Statistics of the pixels: mean and standard deviation for normalization, and images to fit a first layer to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from jepa.config import DataConfig, InputError
from jepa.data.dataset import ImageDataset, progress
from jepa.data.index import evenly_spaced
from jepa.transforms.crop import resize

__all__ = ["measure_statistics", "sample_images"]

MAX_MEASURED_IMAGES = 2000  # maximum number of images read
MAX_SAMPLED_PIXELS = 2000 * 45 * 45  # approximate maximum number of pixels that a first layer is fitted to
MIN_SAMPLED_IMAGES = 100  # minimum number of images that it is fitted to


def measure_statistics(config: DataConfig, dataset: ImageDataset) -> DataConfig:
    """Return the config with the mean and std of each channel, measuring them unless both are set.

    Pixels are scaled to 0 … 1, and up to 2,000 evenly spaced images are read. Raises `InputError` if none of them is
    readable.
    """
    if config.mean is not None and config.std is not None:
        return config
    sums = torch.zeros(2, config.channels, dtype=torch.float64)
    count = 0
    for images in read_sample(dataset, MAX_MEASURED_IMAGES, "measuring mean and std"):
        pixels = images.double() / 255
        sums += torch.stack([pixels.sum((0, 2, 3)), pixels.square().sum((0, 2, 3))])
        count += pixels.numel() // config.channels
    mean = sums[0] / count
    std = (sums[1] / count - mean.square()).clamp(min=1e-6).sqrt()
    rounded = [tuple(round(value, 4) for value in values.tolist()) for values in (mean, std)]
    return dataclasses.replace(config, mean=config.mean or rounded[0], std=config.std or rounded[1])


def sample_images(dataset: ImageDataset, size: tuple[int, int]) -> Tensor:
    """Return evenly spaced images (N, C, *size) in [0, 1]: up to 2,000, fewer if they are larger than 45 pixels.

    Raises `InputError` if none of them is readable.
    """
    count = min(MAX_MEASURED_IMAGES, max(MIN_SAMPLED_IMAGES, MAX_SAMPLED_PIXELS // (size[0] * size[1])))
    return torch.cat([resize(images, size) for images in read_sample(dataset, count, "fitting the first layer")])


def read_sample(dataset: ImageDataset, count: int, description: str) -> Iterator[Tensor]:
    """Yield the readable ones of up to `count` evenly spaced images, in batches (B, C, H, W) of uint8.

    Raises `InputError` if none of them is readable.
    """
    indices, found = evenly_spaced(len(dataset), count), False
    for part in progress(indices.split(50), description):
        batch = dataset.read(part)
        if batch.readable.any():
            found = True
            yield batch.pixels[batch.readable]
    if not found:
        raise InputError(
            f"none of the {len(indices)} sampled images of {dataset.name} can be read; "
            "run 'jepa data SOURCE' for the reasons"
        )
