"""Accuracies of features at equal width and pooling, so that neither decides which encoder looks better."""

from __future__ import annotations

from dataclasses import replace

from jepa.evaluation.features import Features
from jepa.evaluation.knn import HEADLINE_K, knn
from jepa.evaluation.labels import standard_error
from jepa.evaluation.linear_probe import linear_probe
from jepa.evaluation.pooling import equal_width

__all__ = ["VIEWS", "pooled_scores"]

VIEWS = ("pca", "2x2", "2x2_pca")
"""Features averaged over the image at 128 dimensions; pooled in quadrants; pooled in quadrants at 128 dimensions."""


def pooled_scores(train: Features, test: Features, known: dict[str, float]) -> dict[str, float]:
    """Return kNN and linear accuracies, in percent, of each of `VIEWS`, as knn_VIEW and linear_VIEW, and their errors.

    `known` are the accuracies `knn` and `linear` of the features themselves, and of any of the views. Features of at
    most 128 dimensions keep their width. Without quadrants, there are no accuracies for these.
    """
    scores = dict(known)
    parts: dict[str, tuple[Features, Features] | None] = {"pca": equal_width(train, test)}
    if train.quadrants is not None and test.quadrants is not None:
        quadrants = replace(train, x=train.quadrants), replace(test, x=test.quadrants)
        parts |= {"2x2": quadrants, "2x2_pca": equal_width(*quadrants)}
    for view, features in parts.items():
        wide = {"pca": "", "2x2_pca": "_2x2"}.get(view, "")
        for name in ("knn", "linear"):
            key = f"{name}_{view}"
            if key in scores:
                continue
            if features is None:  # they are not wider
                if f"{name}{wide}" in scores:
                    scores[key] = scores[f"{name}{wide}"]
            elif name == "linear":
                scores[key] = linear_probe(*features)[0]
            elif len(features[0].x) >= HEADLINE_K:
                scores[key] = knn(*features)[HEADLINE_K]
    found = {key: value for key, value in scores.items() if key not in ("knn", "linear")}
    return found | {f"{key}_error": standard_error(value, len(test.x)) for key, value in found.items()}
