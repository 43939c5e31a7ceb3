"""Online evaluation: fast scores of an encoder during training."""

from __future__ import annotations

from torch import Tensor

from jepa.backbones import Encoder
from jepa.data import ImageDataset, evenly_spaced
from jepa.evaluation.collapse import feature_std, rankme
from jepa.evaluation.features import extract
from jepa.evaluation.knn import HEADLINE_K, knn

__all__ = ["evaluate_online"]

LABELED_IMAGES, UNLABELED_IMAGES = 5000, 1000  # maximum number of training images, with and without labels


def evaluate_online(encoder: Encoder, dataset: ImageDataset, indices: Tensor, held_out: Tensor) -> dict[str, float]:
    """Return the standard deviation and RankMe of training features, and the kNN accuracy on held-out images.

    Accuracy is in percent. It requires labels of at least two classes, two held-out images, and as many training images
    as neighbors.
    """
    limit = LABELED_IMAGES if dataset.labels is not None else UNLABELED_IMAGES
    subset = indices[evenly_spaced(len(indices), limit)]
    train = extract(encoder, dataset, subset, last4=False, label="online evaluation")
    scores = {"feature_std": float(feature_std(train.x)), "rankme": rankme(train.x)}
    has_classes = train.labels is not None and len(train.labels.unique()) > 1
    if has_classes and len(held_out) >= 2 and len(train.x) >= HEADLINE_K:
        test = extract(encoder, dataset, held_out, last4=False, label="online evaluation")
        scores["knn"] = knn(train, test, (HEADLINE_K,))[HEADLINE_K]
    return scores
