"""Validation of the features and labels passed to kNN and linear probes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jepa.config import InputError
from jepa.evaluation.collapse import check_features
from jepa.evaluation.features import Features

__all__ = ["UNLABELED", "check_labels", "has_classes", "labeled", "num_classes", "percent_correct", "standard_error"]

UNLABELED = -1  # label of an image without one, in a dataset in which others have labels


def labeled(features: Features) -> Features:
    """Return the features of the labeled images only."""
    if features.labels is None or int(features.labels.min()) != UNLABELED:
        return features
    known = features.labels != UNLABELED
    last4, quadrants = (None if x is None else x[known] for x in (features.last4, features.quadrants))
    labels, indices = features.labels[known], features.indices[known]
    return Features(features.x[known], labels, indices, features.source, last4=last4, quadrants=quadrants)


def has_classes(train_labels: Tensor | None, test_labels: Tensor | None) -> bool:
    """Return whether accuracies can be computed: labels of two or more classes to fit on, and two labels to score."""
    if train_labels is None or test_labels is None:
        return False
    return len(train_labels[train_labels != UNLABELED].unique()) > 1 and int((test_labels != UNLABELED).sum()) > 1


def percent_correct(predicted: Tensor, labels: Tensor) -> float:
    """Return the percentage of predicted classes (N,) that are the labels (N,)."""
    return 100 * int((predicted == labels).sum()) / len(labels)


def standard_error(accuracy: float, count: int) -> float:
    """Return the standard error, in percent, of an accuracy in percent that was measured on `count` images.

    It is the error of a binomial proportion, with two successes and two failures added so that it is not 0 if all
    images are classified correctly (Agresti & Coull 1998).
    """
    proportion = (accuracy / 100 * count + 2) / (count + 4)
    return 100 * math.sqrt(proportion * (1 - proportion) / (count + 4))


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
        if features.labels is None or int(features.labels.min()) == UNLABELED:
            missing = "no labels" if features.labels is None else "unlabeled images"
            raise InputError(f"{features.source} has {missing}; kNN and linear probes require labels")
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
