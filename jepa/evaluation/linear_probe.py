"""Linear probes of frozen features, with all labels or a fraction of them."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.config import InputError
from jepa.evaluation.features import Features
from jepa.evaluation.labels import check_labels, num_classes, percent_correct
from jepa.evaluation.logistic_regression import accuracy, predict
from jepa.evaluation.penalty_selection import fit_draws, fit_in_chunks, fit_in_memory

__all__ = ["few_labels", "linear_probe", "predict_linear"]

MAX_LBFGS_BYTES = 2e9  # maximum size of features that are copied to memory to fit them
MIN_SUBSET = 50_000  # minimum number of larger features on which the penalty is selected
FEW_LABEL_DRAWS = 5  # number of random subsets of labeled images


def linear_probe(train: Features, test: Features, last4: bool = False) -> tuple[float, float]:
    """Return the accuracy of a linear probe, in percent, and the selected penalty; see `predict_linear`."""
    predicted, penalty = predict_linear(train, test, last4)
    return percent_correct(predicted, check_labels(train, test)[1]), penalty


def predict_linear(train: Features, test: Features, last4: bool = False) -> tuple[Tensor, float]:
    """Return the classes (N,) that a linear probe predicts for test images, and the selected penalty.

    The probe is a logistic regression on the last layer, or on the last four layers with `last4`. Features are
    standardized on `train`. It is fitted by L-BFGS, with an L2 penalty selected on held-out images of `train`. If the
    features take more than 2 GB, the penalty is selected on a random subset of them. Raises `InputError` if the layers
    are missing, or if the features or labels are invalid.
    """
    train_labels, test_labels = check_labels(train, test)
    train_x, test_x = (train.last4, test.last4) if last4 else (train.x, test.x)
    if train_x is None or test_x is None:
        raise InputError(
            f"the last four layers of {train.source} are missing; extract them with last4=True from an encoder with at "
            "least four layers"
        )
    classes = num_classes(train_labels, test_labels)
    subset_size = max(MIN_SUBSET, int(MAX_LBFGS_BYTES / (4 * train_x.shape[1])))
    if train_x.numel() * train_x.element_size() <= MAX_LBFGS_BYTES:
        weights, penalty = fit_in_memory(train_x, train_labels, classes)
    else:
        weights, penalty = fit_in_chunks(train_x, train_labels, classes, subset_size)
    return predict(test_x, weights), penalty


def few_labels(train: Features, test: Features, fraction: float) -> list[float]:
    """Return the accuracies, in percent, of linear probes fitted on a fraction of the images of each class.

    There are five probes, each fitted on a random draw of images, which are the same for all encoders. They have a
    common penalty, selected on held-out images of the draws. The result is empty if the fraction is less than one image
    for some class.
    """
    train_labels, test_labels = check_labels(train, test)
    class_sizes = train_labels.unique(return_counts=True)[1]
    if round(fraction * int(class_sizes.min())) < 1:
        return []
    indices = (draw_stratified(train_labels, fraction, seed) for seed in range(FEW_LABEL_DRAWS))
    draws = ((train.x[draw], train_labels[draw]) for draw in indices)
    weights, _ = fit_draws(draws, num_classes(train_labels, test_labels))
    return [accuracy(test.x, test_labels, fitted) for fitted in weights]


def draw_stratified(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Draw a fraction of the indices of each class at random."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = labels[order]
    by_class = [order[shuffled == label] for label in labels.unique().tolist()]
    return torch.cat([indices[: round(fraction * len(indices))] for indices in by_class])
