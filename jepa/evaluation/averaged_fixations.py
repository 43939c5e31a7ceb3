"""Accuracy against the number of fixations of an image whose features are averaged."""

from __future__ import annotations

import dataclasses
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
BANK_IMAGES, NUM_IMAGES = 2000, 300  # maximum numbers of training and test images
BATCH_SIZE = 128  # number of views at a time


def averaged_fixations(
    encoder: Encoder,
    geometry: Geometry,
    train: tuple[ImageDataset, Features],
    test: tuple[ImageDataset, Features],
    precision: Literal["fp32", "bf16"] = "fp32",
) -> dict[str, float] | None:
    """Return the accuracy of averages of 1, 2, 4, 8 and 16 fixations, and of the whole image, in percent.

    `train` and `test` are datasets and whole-image features of images of them. The average of the first k random
    fixations of each of up to 300 images of `test` is classified by its 20 nearest neighbors among single fixations of
    up to 2,000 images of `train`, the same ones for all k, so that only what is seen of a test image changes. Fixations
    are independent, and distributed as those of training. (Whole-image features as neighbors would be unfair: they
    differ from those of views, which cost 6 to 13 points on the sample.) seq-JEPA (arXiv 2505.03176) measures the
    accuracy against the number of glances. Both encoders of saccade-cifar10 take 11 to 12 core seconds.

    The keys are the numbers of fixations and `whole image`, the accuracy of the whole-image features of the same images
    among each other, with standard errors NAME_error. Returns None without labels of at least two classes, with fewer
    than 20 labeled training images, or if features are not finite.
    """
    if not has_classes(train[1].labels, test[1].labels):
        return None
    bank, queries = spaced(labeled(train[1]), BANK_IMAGES), spaced(labeled(test[1]), NUM_IMAGES)
    if len(bank.x) < HEADLINE_K:
        return None
    single = fixation_features(
        encoder, geometry, train[0], bank.indices, count=1, seed=COUNTS[-1], precision=precision
    )[:, 0]
    x = fixation_features(encoder, geometry, test[0], queries.indices, count=COUNTS[-1], seed=0, precision=precision)
    if not bool(single.isfinite().all() and x.isfinite().all()):
        return None
    fixations = dataclasses.replace(bank, x=single)
    pairs = {str(count): (fixations, dataclasses.replace(queries, x=x[:, :count].mean(1))) for count in COUNTS}
    scores = {}
    for name, (neighbors, averages) in (pairs | {"whole image": (bank, queries)}).items():
        accuracy = knn(neighbors, averages)[HEADLINE_K]
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
    *,
    count: int,
    seed: int,
    precision: Literal["fp32", "bf16"],
) -> Tensor:
    """Return the features (N, count, D) of random fixations of the readable images at `indices`.

    The fixations of an image have the seeds from `seed` on.
    """
    result = []
    for i, batch in enumerate(indices.split(BATCH_SIZE // count)):
        pixels = dataset.read(batch).pixels.to(encoder.device)
        geometry = geometry.for_images(pixels)
        positions = torch.arange(len(pixels), device=encoder.device)
        fixations = [geometry.sample(Rng(seed + k, i, positions))[0] for k in range(count)]
        views = torch.cat(geometry.render(pixels, *fixations))
        result.append(embed_views(encoder, views, precision).unflatten(0, (count, -1)).transpose(0, 1))
    return torch.cat(result)
