"""Labels of images: which values of a column are classes, and the same classes for all splits, by name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from jepa.data.index import SplitIndex

__all__ = ["Labels", "align_classes", "class_texts", "encode_labels", "label_metadata", "number_rows", "unnamed"]

UNLABELED_WORDS = frozenset({"", "na", "n/a", "nan", "none", "null", "-"})  # among numbers; among names they are names
UNLABELED_NUMBERS = frozenset({"-1", "-100"})  # the second is what the losses of PyTorch ignore
MAX_FRACTION_DISTINCT = 0.5  # values that occur less than twice on average are identifiers or measurements
MIN_DISTINCT = 5  # fewer values are classes, however few the images are
MAX_DECIMAL_CLASSES = 20  # decimals such as ratings are classes if there are few, and each occurs often
MIN_DECIMAL_IMAGES = 10
INTEGER = re.compile(r"-?(0|[1-9]\d*)")  # 007 is a name
DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Labels:
    """The class of each image. `numbers` (N,) int32 index `classes`, and are -1 for unlabeled images."""

    numbers: np.ndarray
    classes: tuple[str, ...]
    why_none: str = ""  # why no image has a label; empty if some have

    def select(self, rows: np.ndarray) -> Labels:
        """Return the labels of some rows, with the classes that occur among them."""
        return number_rows(self.numbers[rows], self.classes, self.why_none)


def number_rows(numbers: np.ndarray, classes: Sequence[str], why_none: str = "") -> Labels:
    """Return the labels whose classes are those that occur in `numbers` (N,); negative numbers are unlabeled."""
    occurring = np.unique(numbers[numbers >= 0])
    position = np.full(int(occurring.max(initial=-1)) + 2, -1, np.int32)  # the last place is for -1
    position[occurring] = np.arange(len(occurring))
    names = tuple(classes[i] if i < len(classes) else unnamed(i, classes) for i in occurring.tolist())
    why_none = "" if names else why_none or ("all labels are -1 or missing" if len(numbers) else "there are no images")
    return Labels(position[np.maximum(numbers, -1)], names, why_none)


def unnamed(number: int, classes: Sequence[str]) -> str:
    """Return the name of a class without one: its number, unless the other classes have names."""
    return f"unnamed {number}" if classes else str(number)


def class_texts(numbers: pa.ChunkedArray, names: Sequence[str]) -> pa.ChunkedArray:
    """Replace the numbers of classes in a column by their names; negative numbers become missing values."""
    distinct = [number for number in numbers.unique().to_pylist() if number is not None and number >= 0]  # not NaN
    texts = {i: names[int(i)] if int(i) < len(names) else unnamed(int(i), names) for i in distinct}
    return pa.chunked_array([pa.array([texts.get(number) for number in numbers.to_pylist()], pa.large_string())])


def encode_labels(column: pa.ChunkedArray, name: str, declared: Sequence[str] = ()) -> Labels:
    """Return the labels of a column called `name`. Missing values, -1 and -100 are unlabeled.

    The values of the column are the names of the classes: integers, whole decimals such as 1.0, strings or booleans.
    They are sorted as numbers if all of them are, else alphabetically, or in the order of the names `declared`. Values
    that hardly occur twice, and decimals unless they are few, are not classes but identifiers or measurements.
    """
    if pa.types.is_nested(column.type):
        return _none(len(column), f"the column '{name}' has a list or structure for each image, not one class")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        try:
            column = column.cast(pa.large_string())
        except pa.ArrowException:
            return _none(len(column), f"the column '{name}' has values of type {column.type}, which are not text")
    encoded = pa.chunked_array([column.combine_chunks()]).combine_chunks().dictionary_encode()
    values = [value.strip() if isinstance(value, str) else value for value in encoded.dictionary.to_pylist()]
    names, is_number = (values, False) if declared else _class_names(values)
    rows = pc.fill_null(encoded.indices, len(values)).to_numpy(zero_copy_only=False)
    order = {text: i for i, text in enumerate(declared)} if declared else {}
    classes = sorted({text for text in names if text}, key=_order(order, is_number))
    numbers = {text: i for i, text in enumerate(classes)}
    labels = np.array([*(numbers.get(text or "", -1) for text in names), -1], np.int32)[rows]
    reason = "" if declared else _why_no_classes(classes, int((labels >= 0).sum()), name, is_number)
    return _none(len(column), reason) if reason else number_rows(labels, classes, f"the column '{name}' is empty or -1")


def _none(count: int, reason: str) -> Labels:
    return Labels(np.full(count, -1, np.int32), (), reason)


def _order(declared: dict[str, int], is_number: bool) -> Any:
    return (lambda text: float(text)) if is_number else (lambda text: (declared.get(text, len(declared)), text))


def _class_names(values: list[Any]) -> tuple[list[str | None], bool]:
    """Return the class name of each distinct value, None if it means unlabeled, and whether all names are numbers."""
    names = [None if value is None or value != value else str(value) for value in values]
    words = {name for name in names if name is not None and name.lower() not in UNLABELED_WORDS}
    is_number = bool(words) and all(DECIMAL.fullmatch(word) for word in words)
    is_number &= all(INTEGER.fullmatch(word) or "." in word or "e" in word.lower() for word in words)
    if is_number:
        names = [_number_name(name) if name in words else None for name in names]
    found = {name for name in names if name}
    if found != {"-1", "1"}:  # exactly -1 and 1 are two classes
        names = [None if name in UNLABELED_NUMBERS else name for name in names]
    return names, is_number


def _number_name(text: str) -> str:
    """Return the name of a number: 3 for '3', '3.0' and '3e0'."""
    if INTEGER.fullmatch(text):
        return text
    value = float(text)
    return str(int(value)) if value.is_integer() else repr(value)


def _why_no_classes(classes: list[str], count: int, name: str, is_number: bool) -> str:
    """Return why the values of a column are not classes, or an empty string if they are."""
    distinct = len(classes)
    example = f"such as {classes[0]}" if classes else ""
    if is_number and not all(INTEGER.fullmatch(text) for text in classes):
        if distinct > MAX_DECIMAL_CLASSES or count < MIN_DECIMAL_IMAGES * distinct:
            return f"the column '{name}' contains measurements, {distinct:,} different numbers {example}, not classes"
    elif distinct >= MIN_DISTINCT and distinct > MAX_FRACTION_DISTINCT * count:
        return f"the column '{name}' has {distinct:,} values for {count:,} images, {example}, which are not classes"
    return ""


def label_metadata(labels: Labels) -> dict[str, Any]:
    """Return the metadata of an index with these labels."""
    return {"classes": list(labels.classes), "why_no_labels": labels.why_none}


def _all_names(index: SplitIndex) -> tuple[str, ...]:
    """Return the name of every class; classes that a source does not name have numbers."""
    assert index.labels is not None
    count = int(index.labels.max()) + 1 if len(index.labels) else 0
    return (*index.classes, *(unnamed(i, index.classes) for i in range(len(index.classes), count)))


def align_classes(index: SplitIndex, train: SplitIndex) -> SplitIndex:
    """Return a split whose labels are those of the training split, by the names of the classes.

    Classes without training images are numbered after those of the training split, so that they count as errors, and
    `metadata["notes"]` names them.
    """
    if index.labels is None or train.labels is None:
        return index
    classes, names = _all_names(train), _all_names(index)
    known = {name: number for number, name in enumerate(classes)}
    unknown = [name for name in dict.fromkeys(names) if name not in known]
    known |= {name: len(classes) + i for i, name in enumerate(unknown)}
    mapping = torch.tensor([*(known[name] for name in names), -1])  # the last place is for -1
    labels = mapping[index.labels]
    metadata = dict(index.metadata)
    if unknown:
        count = int((labels >= len(classes)).sum())
        listed = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
        images = "1 image is" if count == 1 else f"{count:,} images are"
        note = f"{images} of classes without training images, and can only be classified wrongly: {listed}"
        metadata["notes"] = [*metadata.get("notes", ()), note]
    return dataclasses.replace(index, labels=labels, classes=(*classes, *unknown), metadata=metadata)
