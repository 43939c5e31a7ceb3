"""Online evaluation: quick scores of an encoder during training."""

from __future__ import annotations

from torch import Tensor

from jepa.backbones import Encoder
from jepa.data import ImageDataset, evenly_spaced
from jepa.evaluation.collapse import feature_std, rankme
from jepa.evaluation.features import extract
from jepa.evaluation.knn import HEADLINE_K, knn

__all__ = ["evaluate_online"]

LABELLED_IMAGES, UNLABELLED_IMAGES = 5000, 1000  # training images whose features are computed


def evaluate_online(encoder: Encoder, dataset: ImageDataset, indices: Tensor, held_out: Tensor) -> dict[str, float]:
    """Return feature standard deviation and RankMe of training images, and kNN accuracy on held-out images, in percent.

    kNN requires labels of at least two classes, two held-out images, and as many training images as neighbors.
    """
    limit = LABELLED_IMAGES if dataset.labels is not None else UNLABELLED_IMAGES
    chosen = indices[evenly_spaced(len(indices), limit)]
    train = extract(encoder, dataset, chosen, last4=False, label="online evaluation")
    scores = {"feature_std": float(feature_std(train.x)), "rankme": rankme(train.x)}
    has_classes = train.labels is not None and len(train.labels.unique()) > 1
    if has_classes and len(held_out) >= 2 and len(train.x) >= HEADLINE_K:
        test = extract(encoder, dataset, held_out, last4=False, label="online evaluation")
        scores["knn"] = knn(train, test, (HEADLINE_K,))[HEADLINE_K]
    return scores
