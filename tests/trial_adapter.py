"""The two functions through which tests outside of this repository look at the data that the product reads."""

from pathlib import Path

import numpy as np
import torch

from jepa.config import DataConfig
from jepa.data import open_dataset, open_source


def pixels(source: str, channels: int, split: str = "train") -> tuple[np.ndarray, dict[str, str]]:
    """Decode all images of a split: (N, C, H, W), and the reason by name of those that cannot be read."""
    dataset = open_dataset(DataConfig(source=str(source), channels=channels), split, Path("cache").resolve())
    batch = dataset.read(torch.arange(len(dataset)))
    return batch.pixels.numpy(), {dataset.files.name(index): reason for index, reason in batch.unreadable.items()}


def splits(source: str) -> dict[str, tuple[int, list[str] | None, int]]:
    """Return the number of images, the class of each image or None, and the number of classes of every split."""
    opened = open_source(str(source), Path("cache").resolve())
    result = {}
    for split in opened.splits():
        index = opened.open(split)
        names = None if index.labels is None else [_class(index, label) for label in index.labels.tolist()]
        result[split] = (len(index.files), names, len(index.classes))
    return result


def _class(index, label: int) -> str | None:
    return index.classes[label] if label >= 0 else None
