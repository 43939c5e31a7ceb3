"""Accuracy of a linear layer that was trained with labels."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.evaluation.features import Features
from jepa.evaluation.labels import percent_correct, standard_error
from jepa.objectives.supervised import Supervised

__all__ = ["head_accuracy", "match_classes"]


def head_accuracy(objective: Supervised, test: Features, classes: tuple[str, ...]) -> dict[str, float] | None:
    """Return the accuracy in percent of the head of a supervised objective, its standard error, and the images scored.

    `classes` are the names of the classes of the test images. They are compared by name, so images of classes that the
    head was not trained with are left out. Returns None if the names of its classes are not
    known, or if no image can be scored.
    """
    names = objective.config.names
    if not names or test.labels is None:
        return None
    labels = match_classes(classes, names)[test.labels]
    scored = (test.labels >= 0) & (labels >= 0)
    if not bool(scored.any()):
        return None
    with torch.no_grad():
        head = objective.head
        predicted = head(test.x[scored].to(head.weight.device)).argmax(-1).cpu()
    accuracy = percent_correct(predicted, labels[scored])
    return {"accuracy": accuracy, "error": standard_error(accuracy, len(predicted)), "images": len(predicted)}


def match_classes(classes: tuple[str, ...], names: tuple[str, ...]) -> Tensor:
    """Return the position in `names` of each class (K + 1,), -1 if it is not among them; the last is -1."""
    positions = {name: index for index, name in enumerate(names)}
    return torch.tensor([*(positions.get(name, -1) for name in classes), -1])
