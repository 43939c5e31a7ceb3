"""Classify images with the head of a run that was trained with labels, and write a table of predictions.

Classes are compared by name, because other images may number theirs differently.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa.config import Config, InputError, require
from jepa.config.hints import command, listed
from jepa.data import ImageDataset, auto_workers, cache_beside, open_splits
from jepa.data.sources.base import source_hash
from jepa.distributed import pick_device, pick_precision
from jepa.evaluation.features import encode_readable
from jepa.evaluation.labels import standard_error
from jepa.files import atomic_write
from jepa.objectives.supervised import Supervised
from jepa.runs import Run, load_objective

__all__ = ["SplitResult", "classify"]

TRAINED_ON = {
    True: "; the head was trained on some of them",
    None: "; copies of images with which the head was trained are counted, too",
    False: "",
}


@dataclass
class SplitResult:
    """What was classified in one split."""

    name: str
    images: int
    trained_on: bool | None  # whether the head was trained on some of these images; None if it is not known
    labeled: int = 0  # images of classes that the head has
    correct: int = 0
    unknown: dict[str, int] = field(default_factory=dict)  # images of other classes, by class
    unreadable: list[str] = field(default_factory=list)  # names and reasons

    def __str__(self) -> str:
        """Describe the result in a line."""
        text = f"{self.name}: {_count(self.images, 'image')}"
        if self.labeled:
            accuracy = 100 * self.correct / self.labeled
            text += f", accuracy {accuracy:.1f} ± {standard_error(accuracy, self.labeled):.1f}%"
            text += f" of {self.labeled:,} labeled ones" if self.labeled < self.images else ""
            text += TRAINED_ON[self.trained_on]
        if self.unknown:
            known = "also " if self.labeled else ""
            text += f"; {known}{_count(sum(self.unknown.values()), 'image')} of classes that the head does not have: "
            text += listed(list(self.unknown))
        if self.unreadable:
            text += f"; {_count(len(self.unreadable), 'unreadable image')}, for example {self.unreadable[0]}"
        return text


def classify(
    path: str | Path,
    source: str,
    out: Path,
    *,
    checkpoint: str = "last",
    split: str | None = None,
    top: int = 1,
) -> list[SplitResult]:
    """Write the predicted class of every image of a source to the CSV file `out`, and return the results by split.

    The columns are path, split, label (the name of the true class, empty without one), prediction and probability, then
    prediction_2, probability_2 and so on up to the `top` most probable classes, and error, the reason why an image
    cannot be read. Images are cropped as in the evaluation. The file is written completely or not at all. Raises
    `InputError` if the run has no head, if the source cannot be opened, if no image is readable, or if the file cannot
    be written.
    """
    require(not out.is_dir(), f"--out {out} is a folder; give the name of a file, such as {out / 'predictions.csv'}")
    require(out.parent.is_dir(), f"the folder {out.parent} of --out does not exist; create it, or give another file")
    run = Run.open(path)
    config = run.config
    objective, _, _ = load_objective(run, checkpoint)
    names = class_names(objective, path)
    require(1 <= top <= len(names), f"--top must be between 1 and {len(names)}, the number of classes, got {top}")
    data = config.data
    if source != data.source:  # its images may vary in size
        data = dataclasses.replace(data, source=source, canvas=data.canvas or data.image_size)
    datasets = open_splits(data, split, cache_beside(run.path))
    assert isinstance(objective, Supervised)
    objective.to(pick_device("auto")).eval()
    signatures, place = {dataset.signature for dataset in datasets.values()}, source_hash(source)
    is_known = any(seen.signature in signatures or seen.source == place for seen in config.labels_seen)
    results = []
    try:
        with atomic_write(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            ranks = ["", *(f"_{rank}" for rank in range(2, top + 1))]
            predicted = [f"{title}{rank}" for rank in ranks for title in ("prediction", "probability")]
            writer.writerow(["path", "split", "label", *predicted, "error"])
            for name, dataset in datasets.items():
                trained_on = name == "train" if is_known else None
                result = SplitResult(name, len(dataset), trained_on)
                writer.writerows(_rows(objective, config, dataset, result, top))
                results.append(result)
            if all(len(result.unreadable) == result.images for result in results):
                raise InputError(f"no image of {source} can be read, for example {results[0].unreadable[0]}")
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror or error}") from error
    return results


def class_names(objective: Any, path: str | Path) -> tuple[str, ...]:
    """Return the names of the classes of an objective's head. Raises `InputError` if it has none."""
    if not isinstance(objective, Supervised):
        raise InputError(
            f"{path} has no head that classifies images; fine-tune it with labeled images: "
            f"{command('finetune', path, '--data', 'SOURCE')}"
        )
    if not objective.config.names:
        raise InputError(
            f"{path} does not know the names of its {objective.config.classes} classes, because it was trained by "
            "version 0.1.0; train it again"
        )
    return objective.config.names


def _rows(
    objective: Supervised, config: Config, dataset: ImageDataset, result: SplitResult, top: int
) -> Iterator[list[str]]:
    """Yield a row for each image of a split, in order, and count what they contain."""
    device = objective.head.weight.device
    names, next_index = objective.config.names, 0
    labels = torch.full((len(dataset),), -1) if dataset.labels is None else dataset.labels
    batches = encode_readable(
        objective.encoder,
        dataset,
        torch.arange(len(dataset)),
        last4=False,
        quadrants=None,
        label=dataset.name,
        workers=auto_workers(device) if config.data.workers is None else config.data.workers,
        precision=pick_precision(config.precision, device),
    )
    for batch in batches:
        probabilities, classes = _predict(objective, batch.parts[-1], top)
        for index, best, numbers in zip(batch.indices.tolist(), probabilities, classes, strict=True):
            yield from _unreadable_rows(dataset, labels, result, range(next_index, index), top)
            next_index = index + 1
            label = _class_name(dataset, int(labels[index]))
            _count_label(result, label, names, names[numbers[0]])
            predicted = [text for p, number in zip(best, numbers, strict=True) for text in (names[number], f"{p:.4f}")]
            yield [dataset.files.name(index), result.name, label, *predicted, ""]
    yield from _unreadable_rows(dataset, labels, result, range(next_index, len(dataset)), top)


@torch.no_grad()
def _predict(objective: Supervised, features: Tensor, top: int) -> tuple[list[list[float]], list[list[int]]]:
    """Return the probabilities and the numbers of the `top` most probable classes of features (B, D)."""
    logits = objective.head(features.to(objective.head.weight.device))
    found = logits.softmax(-1).topk(top)
    return found.values.tolist(), found.indices.tolist()


def _unreadable_rows(
    dataset: ImageDataset, labels: Tensor, result: SplitResult, indices: range, top: int
) -> Iterator[list[str]]:
    """Yield a row for each of these images, which cannot be read."""
    for index in indices:
        name, reason = dataset.files.name(index), dataset.unreadable[index]
        result.unreadable.append(f"{name}: {reason}")
        yield [name, result.name, _class_name(dataset, int(labels[index])), *[""] * (2 * top), reason]


def _class_name(dataset: ImageDataset, label: int) -> str:
    return dataset.classes[label] if label >= 0 else ""


def _count_label(result: SplitResult, label: str, names: tuple[str, ...], predicted: str) -> None:
    """Count a label, and whether it is predicted."""
    if label in names:
        result.labeled += 1
        result.correct += label == predicted
    elif label:
        result.unknown[label] = result.unknown.get(label, 0) + 1


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
