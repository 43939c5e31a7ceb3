"""Linear probes of frozen features, with all labels or a fraction of them."""

from __future__ import annotations

import torch

from jepa.config import InputError
from jepa.evaluation.features import Features
from jepa.evaluation.labels import check_labels, num_classes
from jepa.evaluation.logistic_regression import accuracy, fit_by_minibatches, fit_in_memory

__all__ = ["few_labels", "linear_probe"]

MAX_LBFGS_BYTES = 2e9  # maximum size of features fitted by L-BFGS; larger ones are fitted by SGD


def linear_probe(train: Features, test: Features, last4: bool = False) -> tuple[float, float]:
    """Return the accuracy of a linear probe, in percent, and the selected penalty.

    The probe is a logistic regression on the last layer, or on the last four layers with `last4`. Features are
    standardized on `train`. Up to 2 GB of features are fitted by L-BFGS, with an L2 penalty selected on held-out images
    of `train`. Larger ones are fitted by minibatch SGD; the selected learning rate is then returned instead of the
    penalty. Raises `InputError` if the layers are missing, or if the features or labels are invalid.
    """
    train_labels, test_labels = check_labels(train, test)
    train_x, test_x = (train.last4, test.last4) if last4 else (train.x, test.x)
    if train_x is None or test_x is None:
        raise InputError(
            f"the last four layers of {train.source} are missing; extract them with last4=True from an encoder with at "
            "least four layers"
        )
    fit = fit_in_memory if train_x.numel() * train_x.element_size() <= MAX_LBFGS_BYTES else fit_by_minibatches
    weights, penalty = fit(train_x, train_labels, num_classes(train_labels, test_labels))
    return accuracy(test_x, test_labels, weights), penalty


def few_labels(train: Features, test: Features, fraction: float) -> float | None:
    """Return the accuracy, in percent, of a linear probe fitted on a fraction of the images of each class.

    The same images are drawn for all encoders. Returns None if the fraction is less than one image for some class.
    """
    train_labels, _ = check_labels(train, test)
    order = torch.randperm(len(train_labels), generator=torch.Generator().manual_seed(0))
    labels = train_labels[order]
    selected = []
    for label in labels.unique().tolist():
        class_indices = order[labels == label]
        count = round(fraction * len(class_indices))
        if count < 1:
            return None
        selected.append(class_indices[:count])
    indices = torch.cat(selected)
    subset = Features(train.x[indices], train_labels[indices], train.indices[indices], train.source)
    return linear_probe(subset, test)[0]
