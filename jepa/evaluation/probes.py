"""Probes of frozen features: weighted k nearest neighbours and linear classifiers, fitted on train, scored on test."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.config import InputError
from jepa.evaluation.features import Features
from jepa.evaluation.geometry import numbers
from jepa.evaluation.logistic import accuracy, fit_by_minibatches, fit_in_memory

__all__ = ["few_labels", "knn", "linear_probe"]

IN_MEMORY = 2e9  # bytes of features, up to which a probe is fitted by LBFGS on all of them


def labels_of(train: Features, test: Features) -> tuple[Tensor, Tensor]:
    """Return the labels of both.

    Raises `InputError` where there are none, where an image is in both, or where features are no numbers.
    """
    if train.x.shape[-1] != test.x.shape[-1]:
        raise InputError(f"features have widths {train.x.shape[-1]} and {test.x.shape[-1]}; take those of one encoder")
    for each in (train, test):
        numbers(each.x)
        if each.labels is None:
            raise InputError(f"{each.source} has no labels, which a probe is fitted to and scored by")
    if train.source == test.source and bool(torch.isin(test.rows, train.rows).any()):
        raise InputError(
            f"images of {train.source} are both fitted and scored on, which says nothing about new ones; take other "
            "rows, or another split"
        )
    assert train.labels is not None
    assert test.labels is not None
    if int(train.labels.min()) == int(train.labels.max()):
        raise InputError(f"all images of {train.source} have one label, so there is nothing to tell apart")
    return train.labels, test.labels


def num_classes(train_labels: Tensor, test_labels: Tensor) -> int:
    """Count the classes, labels from 0."""
    return int(max(train_labels.max(), test_labels.max())) + 1


@torch.no_grad()
def knn(
    train: Features, test: Features, neighbours: Sequence[int] = (20,), temperature: float = 0.07
) -> dict[int, float]:
    """Accuracy in percent of weighted kNN (Wu et al. 2018; k of DINO) for each number of neighbours.

    Features are centred on the train mean and L2-normalised; the k nearest by cosine vote with exp(cosine / T). All k
    are counted in one pass. Raises `InputError` for a k that is more than the images to fit on.
    """
    train_labels, test_labels = labels_of(train, test)
    if not neighbours or min(neighbours) < 1 or temperature <= 0:
        raise InputError(f"kNN of {list(neighbours)} at temperature {temperature} is asked for; give numbers above 0")
    if max(neighbours) > len(train.x):
        raise InputError(f"{max(neighbours)} neighbours are asked for among {len(train.x)} images; ask for fewer")
    mean = train.x.mean(0)
    bank = F.normalize(train.x - mean, dim=-1)
    classes = num_classes(train_labels, test_labels)
    hits = dict.fromkeys(sorted(neighbours), 0)
    for queries, labels in zip(test.x.split(1000), test_labels.split(1000), strict=True):
        similarity, nearest = (F.normalize(queries - mean, dim=-1) @ bank.T).topk(max(neighbours), dim=-1)
        weights, answers = (similarity / temperature).exp(), train_labels[nearest]
        votes = torch.zeros(len(queries), classes)
        counted = 0
        for k in hits:
            votes.scatter_add_(1, answers[:, counted:k], weights[:, counted:k])
            hits[k] += int((votes.argmax(-1) == labels).sum())
            counted = k
    return {k: 100 * hits[k] / len(test.x) for k in neighbours}


def linear_probe(train: Features, test: Features, last4: bool = False) -> tuple[float, float]:
    """Accuracy in percent of a linear probe of the last layer, or of the last four, and the penalty that it chose.

    Features are standardised on train. Up to 2 GB of them, logistic regression is fitted by LBFGS, its L2 penalty
    chosen on a part of train. What is more is fitted by minibatches, and what was chosen is a learning rate.
    """
    train_labels, test_labels = labels_of(train, test)
    fit, score = (train.last4, test.last4) if last4 else (train.x, test.x)
    if fit is None or score is None:
        raise InputError(f"the last four layers of {train.source} were not extracted, or there are fewer than four")
    fits = fit.numel() * fit.element_size() <= IN_MEMORY
    solve = fit_in_memory if fits else fit_by_minibatches
    weights, chosen = solve(fit, train_labels, num_classes(train_labels, test_labels))
    return accuracy(score, test_labels, weights), chosen


def few_labels(train: Features, test: Features, share: float) -> float | None:
    """Accuracy in percent of the linear probe on a share of the train images, the same of every class.

    The draw is the same for all encoders. None where a class would get less than one image.
    """
    train_labels, _ = labels_of(train, test)
    order = torch.randperm(len(train_labels), generator=torch.Generator().manual_seed(0))
    labels = train_labels[order]
    picked = []
    for label in labels.unique().tolist():
        of_class = order[labels == label]
        if round(share * len(of_class)) < 1:
            return None
        picked.append(of_class[: round(share * len(of_class))])
    rows = torch.cat(picked)
    few = Features(train.x[rows], train_labels[rows], train.rows[rows], train.source)
    return linear_probe(few, test)[0]
