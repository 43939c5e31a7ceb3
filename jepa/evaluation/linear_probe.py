"""Linear probes of frozen features, with all labels or a share of them."""

from __future__ import annotations

import torch

from jepa.config import InputError
from jepa.evaluation.features import Features
from jepa.evaluation.labels import check_labels, num_classes
from jepa.evaluation.logistic_regression import accuracy, fit_by_minibatches, fit_in_memory

__all__ = ["few_labels", "linear_probe"]

MAX_LBFGS_BYTES = 2e9  # of features; larger ones are fitted by minibatches


def linear_probe(train: Features, test: Features, last4: bool = False) -> tuple[float, float]:
    """Return the accuracy in percent of a linear probe, and the penalty that was chosen.

    The probe is logistic regression on the last layer, or with `last4` on the last four layers. Features are
    standardized on `train`. Up to 2 GB of features are fitted by LBFGS, with an L2 penalty that is chosen on held-out
    images of `train`. Larger ones are fitted by minibatches; a learning rate is chosen and returned instead of the
    penalty.
    """
    train_labels, test_labels = check_labels(train, test)
    train_x, test_x = (train.last4, test.last4) if last4 else (train.x, test.x)
    if train_x is None or test_x is None:
        raise InputError(
            f"the last four layers of {train.source} are missing; extract them with last4=True, from an encoder of at "
            "least four layers"
        )
    fit = fit_in_memory if train_x.numel() * train_x.element_size() <= MAX_LBFGS_BYTES else fit_by_minibatches
    weights, chosen = fit(train_x, train_labels, num_classes(train_labels, test_labels))
    return accuracy(test_x, test_labels, weights), chosen


def few_labels(train: Features, test: Features, share: float) -> float | None:
    """Return the accuracy in percent of a linear probe that is fitted on the same share of the images of each class.

    The same images are drawn for all encoders. None is returned if the share of a class is less than one image.
    """
    train_labels, _ = check_labels(train, test)
    order = torch.randperm(len(train_labels), generator=torch.Generator().manual_seed(0))
    labels = train_labels[order]
    chosen = []
    for label in labels.unique().tolist():
        of_class = order[labels == label]
        count = round(share * len(of_class))
        if count < 1:
            return None
        chosen.append(of_class[:count])
    indices = torch.cat(chosen)
    subset = Features(train.x[indices], train_labels[indices], train.indices[indices], train.source)
    return linear_probe(subset, test)[0]
