"""Online evaluation: fast scores of an encoder during training."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from jepa.backbones import Encoder
from jepa.data import ImageDataset, evenly_spaced
from jepa.evaluation.features import Subset, extract
from jepa.evaluation.knn import HEADLINE_K, knn
from jepa.evaluation.label_free import label_free_scores
from jepa.evaluation.labels import has_classes, labeled, standard_error

__all__ = ["evaluate_online"]

LABELED_IMAGES, UNLABELED_IMAGES = 5000, 1000  # maximum number of training images, with and without labels


def evaluate_online(
    encoder: Encoder,
    dataset: ImageDataset,
    indices: Tensor,
    held_out: Tensor,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> dict[str, float]:
    """Return measures without labels of training features (`label_free_scores`), and kNN accuracy on held-out images.

    Accuracy (`knn`) and its standard error (`knn_error`) are in percent. They require labels of at least two classes,
    two labeled held-out images, and as many labeled training images as neighbors. `precision` is that of the forward
    pass.
    """
    limit = LABELED_IMAGES if dataset.labels is not None else UNLABELED_IMAGES
    subset = Subset(dataset, indices[evenly_spaced(len(indices), limit)])
    options: dict[str, Any] = {"last4": False, "label": "online evaluation", "precision": precision}
    train = extract(encoder, *subset, **options)
    scores = label_free_scores(encoder, train.x, subset, precision)
    if not has_classes(train.labels, Subset(dataset, held_out).labels):
        return scores
    test = labeled(extract(encoder, dataset, held_out, **options))
    bank = labeled(train)
    if len(test.x) >= 2 and len(bank.x) >= HEADLINE_K:
        scores["knn"] = knn(bank, test, (HEADLINE_K,))[HEADLINE_K]
        scores["knn_error"] = standard_error(scores["knn"], len(test.x))
    return scores
