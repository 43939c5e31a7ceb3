"""Scores of several checkpoints of a run, and how well measures without labels would have chosen among them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from jepa.backbones import Encoder
from jepa.data import evenly_spaced
from jepa.evaluation.features import Features, Subset, extract
from jepa.evaluation.knn import HEADLINE_K, knn
from jepa.evaluation.label_free import label_free_scores
from jepa.evaluation.labels import has_classes, labeled, standard_error
from jepa.evaluation.linear_probe import linear_probe

__all__ = ["MEASURES", "accuracies", "choices", "measure_values", "score_checkpoints"]

MAX_TRAIN, MAX_TEST = 5_000, 5_000  # maximum number of images; the checkpoints are scored on the same ones
MEASURES = ("rankme", "lidar", "alpha_req", "clid")


def score_checkpoints(
    encoders: Iterable[tuple[int, Encoder]],
    train: Subset,
    test: Subset,
    workers: int = 0,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> list[dict[str, float]]:
    """Return the scores of encoders, each given with its step: measures without labels, kNN and a linear probe.

    They are computed on up to 5,000 test images and fitted on up to 5,000 training images, so accuracies are lower than
    those of the evaluation. Without labels of at least two classes, there are no accuracies. `workers` is the number of
    processes that decode images, and `precision` is that of the forward pass.
    """
    chosen = [
        Subset(part.dataset, part.indices[evenly_spaced(len(part.indices), limit)])
        for part, limit in ((train, MAX_TRAIN), (test, MAX_TEST))
    ]
    scores = []
    options: dict[str, Any] = {"last4": False, "workers": workers, "precision": precision}
    for step, encoder in encoders:
        fitted, scored = (extract(encoder, *part, label=f"step {step}: features", **options) for part in chosen)
        found = {"step": float(step)} | label_free_scores(encoder, scored.x, chosen[1], precision)
        scores.append(found | accuracies(fitted, scored))
    return scores


def accuracies(train: Features, test: Features) -> dict[str, float]:
    """Return the accuracies of kNN and a linear probe in percent, and the standard error of the latter."""
    if not has_classes(train.labels, test.labels):
        return {}
    train, test = labeled(train), labeled(test)
    found = {"linear": linear_probe(train, test)[0]}
    found["linear_error"] = standard_error(found["linear"], len(test.x))
    return found | ({"knn": knn(train, test, (HEADLINE_K,))[HEADLINE_K]} if len(train.x) >= HEADLINE_K else {})


def measure_values(scores: list[dict[str, float]], measure: str) -> list[float] | None:
    """Return the values of a measure at each checkpoint, or None if one of them has none.

    CLID is the sum of cluster learnability and intrinsic dimension, each standardized over the checkpoints, so it
    compares these but means nothing for one of them.
    """
    keys = ("cluster_learnability", "intrinsic_dimension") if measure == "clid" else (measure,)
    if not all(key in found for found in scores for key in keys):
        return None
    columns = torch.tensor([[found[key] for key in keys] for found in scores], dtype=torch.float64)
    return (standardized(columns) if measure == "clid" else columns).sum(1).tolist()


def standardized(columns: Tensor) -> Tensor:
    """Return columns with mean 0 and standard deviation 1, or 0 if all values are the same."""
    centered = columns - columns.mean(0)
    return centered / columns.std(0, correction=0).clamp(min=1e-12)


def choices(scores: list[dict[str, float]]) -> dict[str, Any]:
    """Return which checkpoint each measure would have chosen: its step and, with labels, the accuracy of its probe.

    α-ReQ chooses the checkpoint whose value is nearest to 1, the others the one with the highest value. `correlation`
    is Spearman's rank correlation with the linear probe over the checkpoints, of minus the distance to 1 for α-ReQ; it
    is omitted if one of the two does not change. `linear` is the best of the probes.
    """
    from scipy.stats import spearmanr  # takes two seconds to import

    result: dict[str, Any] = {}
    linear = [found["linear"] for found in scores] if all("linear" in found for found in scores) else None
    for measure in (*MEASURES, "linear"):
        values = linear if measure == "linear" else measure_values(scores, measure)
        if values is None:
            continue
        if measure == "alpha_req":
            values = [-abs(value - 1) for value in values]
        index = max(range(len(values)), key=values.__getitem__)
        result[measure] = {"step": int(scores[index]["step"])}
        if linear is not None:
            result[measure]["linear"] = linear[index]
            if len(set(values)) > 1 and len(set(linear)) > 1 and measure != "linear":
                result[measure]["correlation"] = round(float(spearmanr(values, linear).statistic), 4)
    return result
