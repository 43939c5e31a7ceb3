"""Scores of features and encoders: kNN, linear probes, RankMe and correlation dimension."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from jepa.backbones import Encoder
from jepa.data import evenly_spaced
from jepa.evaluation.class_predictions import ClassPredictions, save_predictions
from jepa.evaluation.correlation_dimension import correlation_dimension
from jepa.evaluation.features import Features, Subset, pixel_features
from jepa.evaluation.knn import HEADLINE_K, NEIGHBORS, predict_knn
from jepa.evaluation.label_free import label_free_scores
from jepa.evaluation.labels import UNLABELED, has_classes, labeled, percent_correct, standard_error
from jepa.evaluation.linear_probe import few_labels, linear_probe, predict_linear
from jepa.evaluation.pooled_scores import pooled_scores
from jepa.terminal import say_stage

__all__ = ["MAX_DIMENSION_POINTS", "MAX_WIDTH", "pixel_subset", "score", "score_encoders"]

MAX_PIXEL_IMAGES = 50_000  # maximum number of training images for raw pixels, 600 MB
MAX_WIDTH = 1024  # of features that have all scores in the default evaluation
MAX_DIMENSION_POINTS = 10_000  # maximum number of images for the correlation dimension


def score_encoders(
    encoders: dict[str, Encoder],
    train: Subset,
    test: Subset,
    extract: Callable[[str, Encoder, Subset], Features],
    folder: Path | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    full: bool = True,
) -> dict[str, Any]:
    """Return the scores of each encoder and of raw pixels (`pixels`), fitted on `train` and computed on `test`.

    Accuracies are in percent and all scores are rounded; scores that need more images or labels are omitted. An error
    NAME_error stands next to each score: the standard error for the number of test images, or, with a fraction of the
    labels, the standard deviation over draws of the labeled images. `extract` returns the features of a subset that an
    encoder, given with its name, computes. If `folder` is given, predicted classes are stored there.
    `precision` is that of other forward passes. Unless `full`, features of more than 1,024 numbers have no probe on the
    last four layers.
    """
    results: dict[str, Any] = {}
    for name, encoder in encoders.items():
        say_stage(f"scores of the {name} encoder")
        train_features, test_features = (extract(name, encoder, subset) for subset in (train, test))
        measures = label_free_scores(encoder, test_features.x, test, precision)
        if not full and encoder.backbone.dim > MAX_WIDTH:
            train_features = dataclasses.replace(train_features, last4=None)
        results[name] = score(name, train_features, test_features, folder)
        results[name] |= {key: round(value, 5) for key, value in measures.items()}
    say_stage("scores of raw pixels")
    test_pixels = pixel_features(*test)
    train_pixels = dataclasses.replace(test_pixels, labels=None)  # nothing is fitted without classes
    if has_classes(train.labels, test.labels):
        train_pixels = pixel_features(*pixel_subset(train))
    results["pixels"] = score("raw pixels", train_pixels, test_pixels)
    return results


def pixel_subset(train: Subset) -> Subset:
    """Return up to 50,000 evenly spaced labeled images, on which raw pixels and their baselines are fitted."""
    assert train.labels is not None
    known = train.indices[train.labels != UNLABELED]
    return Subset(train.dataset, known[evenly_spaced(len(known), MAX_PIXEL_IMAGES)])


def score(name: str, train: Features, test: Features, folder: Path | None = None) -> dict[str, Any]:
    """Return the scores of features: kNN and linear probes if there are labels, and the correlation dimension.

    `name` is shown on the progress bar. If `folder` is given, predicted classes are stored there. Scores that need more
    images are omitted. Unlabeled images are not scored.
    """
    scores: dict[str, Any] = {}
    if has_classes(train.labels, test.labels):
        scores = _label_scores(name, labeled(train), labeled(test), folder)
    with tqdm(total=1, desc=f"{name}: correlation dimension", delay=3, leave=False, disable=None):
        dimension = correlation_dimension(test.x[evenly_spaced(len(test.x), MAX_DIMENSION_POINTS)])
    if dimension:
        scores |= {"dimension": dimension.value, "dimension_error": dimension.error}
    return {key: _rounded(key, value) for key, value in scores.items()}


def _label_scores(name: str, train: Features, test: Features, folder: Path | None) -> dict[str, Any]:
    """Return the scores that need labels, and their errors."""
    assert test.labels is not None
    scores: dict[str, Any] = {}
    with tqdm(total=6, unit="score", delay=3, leave=False, disable=None) as bar:

        def begin(stage: str) -> None:
            bar.set_description(f"{name}: {stage}", refresh=False)
            bar.update()

        begin("nearest neighbors")
        predicted = predict_knn(train, test, [k for k in NEIGHBORS if k <= len(train.x)])
        scores["knn_by_neighbours"] = {k: percent_correct(classes, test.labels) for k, classes in predicted.items()}
        if HEADLINE_K in predicted:
            scores["knn"] = scores["knn_by_neighbours"][HEADLINE_K]
        begin("linear probe")
        linear, scores["penalty"] = predict_linear(train, test)
        scores["linear"] = percent_correct(linear, test.labels)
        if folder is not None:
            save_predictions(
                folder, name, train, test, ClassPredictions(test.labels, linear, predicted.get(HEADLINE_K))
            )
        begin("linear probe on the last four layers")
        if train.last4 is not None:
            scores["linear_last4"], _ = linear_probe(train, test, last4=True)
        begin("equal width and pooling")
        scores |= pooled_scores(train, test, {key: scores[key] for key in ("knn", "linear") if key in scores})
        for key in ("knn", "linear", "linear_last4"):
            if key in scores:
                scores[f"{key}_error"] = standard_error(scores[key], len(test.x))
        for key, fraction in (("linear_10pc", 0.1), ("linear_1pc", 0.01)):
            begin(f"linear probe with {fraction:.0%} of the labels")
            if accuracies := few_labels(train, test, fraction):
                scores |= {key: statistics.mean(accuracies), f"{key}_error": statistics.stdev(accuracies)}
    return scores


def _rounded(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): round(accuracy, 2) for k, accuracy in value.items()}
    return round(value, 5 if key == "penalty" else 2)
