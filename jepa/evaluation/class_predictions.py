"""The classes that classifiers of frozen features predict for test images, stored next to the features."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa.evaluation.features import Features, digest
from jepa.evaluation.knn import HEADLINE_K, predict_knn
from jepa.evaluation.labels import labeled
from jepa.evaluation.linear_probe import predict_linear
from jepa.files import read_record, write_record

__all__ = [
    "ClassPredictions",
    "class_accuracy",
    "class_table",
    "predict_classes",
    "save_predictions",
    "top_confusions",
]

MAX_CLASSES = 1000  # maximum number of classes in evaluation.json; of more, those with the lowest accuracy


@dataclass(frozen=True)
class ClassPredictions:
    """The classes of the N labeled test images, and those that classifiers predict for them."""

    labels: Tensor  # (N,)
    linear: Tensor  # (N,), by the linear probe
    knn: Tensor | None  # (N,), by 20 neighbors; None if there are fewer labeled training images

    def accuracies(self, classes: int) -> dict[str, Tensor]:
        """Return the accuracy of each class by each classifier, 'knn' and 'linear'; see `class_accuracy`."""
        predicted = {"knn": self.knn, "linear": self.linear}
        return {name: class_accuracy(self.labels, x, classes) for name, x in predicted.items() if x is not None}


def predict_classes(folder: Path, name: str, train: Features, test: Features) -> ClassPredictions:
    """Return the predictions that `save_predictions` has stored under `name`.

    If there are none of these features and labels, the classifiers are fitted, and their predictions are stored.
    """
    train, test = labeled(train), labeled(test)
    record = read_record(predictions_file(folder, name))
    if record is not None and record["key"] == predictions_key(train, test):
        labels, linear, knn = (record[part] for part in ("labels", "linear", "knn"))
        return ClassPredictions(torch.tensor(labels), torch.tensor(linear), None if knn is None else torch.tensor(knn))
    assert test.labels is not None
    knn = predict_knn(train, test)[HEADLINE_K] if len(train.x) >= HEADLINE_K else None
    predictions = ClassPredictions(test.labels, predict_linear(train, test)[0], knn)
    save_predictions(folder, name, train, test, predictions)
    return predictions


def save_predictions(folder: Path, name: str, train: Features, test: Features, predictions: ClassPredictions) -> None:
    """Store predictions for the features of labeled images under `name`, unless `folder` cannot be written to."""
    if os.access(folder, os.W_OK):
        parts = {part: None if x is None else x.tolist() for part, x in vars(predictions).items()}
        write_record(predictions_file(folder, name), {"key": predictions_key(train, test)} | parts)


def predictions_file(folder: Path, name: str) -> Path:
    """Return the path of the predictions stored under `name`."""
    return folder / f"{name}-classes.json"


def predictions_key(train: Features, test: Features) -> str:
    """Return an identifier of what predictions depend on: the images, their labels, and the encoder."""
    assert train.labels is not None
    assert test.labels is not None
    tensors = (train.indices, train.labels, test.indices, test.labels, test.x)  # another encoder changes the last
    return json.dumps([train.source, test.source, *(digest(tensor).hex() for tensor in tensors)])


def class_accuracy(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Return the percentage of correct predictions for the images of each class, (classes,); NaN without images."""
    correct = torch.bincount(labels[predicted == labels], minlength=classes)
    return 100 * correct / torch.bincount(labels, minlength=classes)


def top_confusions(labels: Tensor, predicted: Tensor, count: int) -> list[tuple[int, int, int]]:
    """Return the most frequent errors, at most `count`: the label, the predicted class, and the number of images."""
    wrong = predicted != labels
    pairs, counts = torch.stack([labels[wrong], predicted[wrong]], 1).unique(dim=0, return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:count]
    return [(*pairs[i].tolist(), int(counts[i])) for i in order]


def class_table(predictions: dict[str, ClassPredictions], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the accuracies, in percent, of each class with test images, by encoder and classifier.

    There is a row for each class, because names may be equal. Of more than 1,000 classes, those with the lowest
    accuracy of the linear probe of the first encoder are returned.
    """
    first = next(iter(predictions.values()))
    images = torch.bincount(first.labels, minlength=len(classes))
    accuracies = {name: found.accuracies(len(classes)) for name, found in predictions.items()}
    lowest = accuracies[next(iter(predictions))]["linear"].argsort()[: min(MAX_CLASSES, int((images > 0).sum()))]
    return [
        {"class": classes[i], "test_images": int(images[i])}
        | {name: {key: round(float(x[i]), 2) for key, x in found.items()} for name, found in accuracies.items()}
        for i in lowest.sort().values.tolist()
    ]
