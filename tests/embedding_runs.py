"""Small runs and folders of images for the tests of embeddings."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from jepa.checkpoints import to_tensors
from jepa.config.serialization import to_dict
from jepa.runs import Run, fresh_objective
from tests.conftest import tiny_config, toy_images


def save_run(path: Path, source: str = "nowhere", seed: int = 0) -> Path:
    """Save an untrained run."""
    config = tiny_config(source, seed=seed)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, mean=(0.5,) * 3, std=(0.25,) * 3))
    Run.create(path, config).save("last", to_tensors(fresh_objective(config)), step=0, config=to_dict(config))
    return path


def save_images(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Save images of two classes in split folders."""
    for number, (split, count) in enumerate(counts.items()):
        images, labels = toy_images(count, seed=seed + number)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            file = folder / split / "ab"[label] / f"{index:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return folder


def read_image(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))
