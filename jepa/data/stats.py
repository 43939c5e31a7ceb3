"""Mean and standard deviation of the pixels, for normalization."""

from __future__ import annotations

import dataclasses

import torch

from jepa.config import DataConfig, InputError
from jepa.data.dataset import ImageDataset, progress
from jepa.data.index import evenly_spaced

__all__ = ["measure_statistics"]

MAX_MEASURED_IMAGES = 2000  # maximum number of images read


def measure_statistics(config: DataConfig, dataset: ImageDataset) -> DataConfig:
    """Return the config with the mean and std of each channel, measuring them unless both are set.

    Pixels are scaled to 0 … 1, and up to 2,000 evenly spaced images are read. Raises `InputError` if none of them is
    readable.
    """
    if config.mean is not None and config.std is not None:
        return config
    measured = evenly_spaced(len(dataset), MAX_MEASURED_IMAGES)
    sums = torch.zeros(2, config.channels, dtype=torch.float64)
    count = 0
    for indices in progress(measured.split(50), "measuring mean and std"):
        batch = dataset.read(indices)
        pixels = batch.pixels[batch.readable].double() / 255
        sums += torch.stack([pixels.sum((0, 2, 3)), pixels.square().sum((0, 2, 3))])
        count += pixels.numel() // config.channels
    if not count:
        raise InputError(
            f"none of the {len(measured)} sampled images of {dataset.name} can be read; "
            "run 'jepa data SOURCE' for the reasons"
        )
    mean = sums[0] / count
    std = (sums[1] / count - mean.square()).clamp(min=1e-6).sqrt()
    rounded = [tuple(round(value, 4) for value in values.tolist()) for values in (mean, std)]
    return dataclasses.replace(config, mean=config.mean or rounded[0], std=config.std or rounded[1])
