"""Online evaluation: fast scores of an encoder during training."""

from __future__ import annotations

from torch import Tensor

from jepa.backbones import Encoder
from jepa.data import ImageDataset, evenly_spaced
from jepa.evaluation.features import Subset, extract
from jepa.evaluation.knn import HEADLINE_K, knn
from jepa.evaluation.label_free import label_free_scores
from jepa.evaluation.labels import has_classes, labeled, standard_error

__all__ = ["evaluate_online"]

LABELED_IMAGES, UNLABELED_IMAGES = 5000, 1000  # maximum number of training images, with and without labels


def evaluate_online(encoder: Encoder, dataset: ImageDataset, indices: Tensor, held_out: Tensor) -> dict[str, float]:
    """Return measures without labels of training features (`label_free_scores`), and kNN accuracy on held-out images.

    Accuracy (`knn`) and its standard error (`knn_error`) are in percent. They require labels of at least two classes,
    two labeled held-out images, and as many labeled training images as neighbors.
    """
    limit = LABELED_IMAGES if dataset.labels is not None else UNLABELED_IMAGES
    subset = Subset(dataset, indices[evenly_spaced(len(indices), limit)])
    train = extract(encoder, *subset, last4=False, label="online evaluation")
    scores = label_free_scores(encoder, train.x, subset)
    if not has_classes(train.labels, Subset(dataset, held_out).labels):
        return scores
    test = labeled(extract(encoder, dataset, held_out, last4=False, label="online evaluation"))
    bank = labeled(train)
    if len(test.x) >= 2 and len(bank.x) >= HEADLINE_K:
        scores["knn"] = knn(bank, test, (HEADLINE_K,))[HEADLINE_K]
        scores["knn_error"] = standard_error(scores["knn"], len(test.x))
    return scores
