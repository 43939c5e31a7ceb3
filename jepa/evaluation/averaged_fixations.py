"""Accuracy against the number of fixations of an image whose features are averaged."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from jepa.backbones import Encoder
from jepa.data import ImageDataset, evenly_spaced
from jepa.evaluation.features import Features
from jepa.evaluation.knn import HEADLINE_K, knn
from jepa.evaluation.labels import has_classes, labeled, standard_error
from jepa.evaluation.movement_regression import embed_views
from jepa.rng import Rng
from jepa.transforms.saccade import Geometry

__all__ = ["COUNTS", "averaged_fixations"]

COUNTS = (1, 2, 4, 8, 16)  # numbers of fixations
BANK_IMAGES, NUM_IMAGES = 5000, 400  # maximum numbers of training and test images
BATCH_SIZE = 8  # number of images at a time, with 16 fixations each


def averaged_fixations(
    encoder: Encoder,
    geometry: Geometry,
    dataset: ImageDataset,
    train: Features,
    test: Features,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> dict[str, float] | None:
    """Return the accuracy of averages of 1, 2, 4, 8 and 16 fixations, and of the whole image, in percent.

    The average of the first k random fixations of each of up to 400 images of `test`, which are images of `dataset`, is
    classified by its 20 nearest neighbors among the *whole-image* features of up to 5,000 images of `train`: the same
    ones for all k, so that only what is seen of a test image changes. Fixations are independent, and distributed as
    those of training. seq-JEPA (arXiv 2505.03176) measures the accuracy against the number of glances. The keys are the
    numbers of fixations and `whole image` (the same images and neighbors), with standard errors NAME_error. Returns
    None without labels of at least two classes, with fewer than 20 labeled training images, or if features are not
    finite.
    """
    if not has_classes(train.labels, test.labels):
        return None
    train, test = spaced(labeled(train), BANK_IMAGES), spaced(labeled(test), NUM_IMAGES)
    if len(train.x) < HEADLINE_K:
        return None
    x = fixation_features(encoder, geometry, dataset, test.indices, precision)
    if not bool(x.isfinite().all()):
        return None
    averages = {str(count): x[:, :count].mean(1) for count in COUNTS} | {"whole image": test.x}
    scores = {}
    for name, average in averages.items():
        accuracy = knn(train, Features(average, test.labels, test.indices, test.source))[HEADLINE_K]
        scores[name] = round(accuracy, 2)
        scores[f"{name}_error"] = round(standard_error(accuracy, len(x)), 2)
    return scores


def spaced(features: Features, count: int) -> Features:
    """Return the last layer of up to `count` evenly spaced images."""
    at = evenly_spaced(len(features.x), count)
    labels = None if features.labels is None else features.labels[at]
    return Features(features.x[at], labels, features.indices[at], features.source)


def fixation_features(
    encoder: Encoder,
    geometry: Geometry,
    dataset: ImageDataset,
    indices: Tensor,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Tensor:
    """Return the features (N, 16, D) of 16 random fixations of each of the readable images at `indices`."""
    count, result = COUNTS[-1], []
    for i, batch in enumerate(indices.split(BATCH_SIZE)):
        pixels = dataset.read(batch).pixels.to(encoder.device)
        geometry = geometry.for_images(pixels)
        positions = torch.arange(len(pixels), device=encoder.device)
        fixations = [geometry.sample(Rng(seed, i, positions))[0] for seed in range(count)]
        views = torch.cat(geometry.render(pixels, *fixations))
        result.append(embed_views(encoder, views, precision).unflatten(0, (count, -1)).transpose(0, 1))
    return torch.cat(result)
