"""Validation of the features and labels passed to kNN and linear probes."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.config import InputError
from jepa.evaluation.collapse import check_features
from jepa.evaluation.features import Features

__all__ = ["check_labels", "num_classes"]


def check_labels(train: Features, test: Features) -> tuple[Tensor, Tensor]:
    """Validate the features and return the labels of `train` and `test`.

    Raises `InputError` if features are not finite, differ in width or have no labels, if an image is in both `train`
    and `test`, or if `train` has only one class.
    """
    if train.x.shape[-1] != test.x.shape[-1]:
        raise InputError(
            f"train and test features have widths {train.x.shape[-1]} and {test.x.shape[-1]}; use a single encoder"
        )
    for features in (train, test):
        check_features(features.x)
        if features.labels is None:
            raise InputError(f"{features.source} has no labels; kNN and linear probes require them")
    if train.source == test.source and bool(torch.isin(test.indices, train.indices).any()):
        raise InputError(
            f"some images of {train.source} are in both train and test; pass disjoint indices or a different split"
        )
    assert train.labels is not None
    assert test.labels is not None
    if int(train.labels.min()) == int(train.labels.max()):
        raise InputError(
            f"all images of {train.source} have the same label; kNN and linear probes require at least two classes"
        )
    return train.labels, test.labels


def num_classes(train_labels: Tensor, test_labels: Tensor) -> int:
    """Return the number of classes. Labels start at 0."""
    return int(max(train_labels.max(), test_labels.max())) + 1
