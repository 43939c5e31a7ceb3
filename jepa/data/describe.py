"""Describe a source of images for `jepa data`: splits, classes, every file, duplicates and broken images."""

from __future__ import annotations

import textwrap
from collections import Counter
from pathlib import Path

import torch

from jepa.config import require
from jepa.data.contact_sheet import contact_sheet
from jepa.data.dataset import cores
from jepa.data.duplicates import Duplicates, find_duplicates
from jepa.data.index import SplitIndex
from jepa.data.inspect import DECODED_SIZE, InspectionResult, inspect_images
from jepa.data.labels import align_classes
from jepa.data.sources.base import open_source

__all__ = ["inspect_source"]

MAX_INSPECTED_IMAGES = 2000  # maximum number of images of a split that are decoded without --all
MAX_COMPARED_IMAGES = 20_000  # maximum number of images of a split that are compared with all others without --all
MAX_LISTED = 5  # maximum number of files, groups or classes in a list
MAX_KINDS = 12  # maximum number of kinds of files
SHEET_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
WIDTH, INDENT = 80, 14  # columns of the text, and of the titles of its lines


def inspect_source(source: str, sheet: Path, inspect_all: bool = False) -> str:
    """Describe and inspect every split of a source, and save a contact sheet of the first to the file `sheet`.

    The first split is the training split, or the alphabetically first one if there is none. Raises `InputError` if the
    source cannot be read or the extension of `sheet` is not supported.
    """
    require(
        sheet.suffix.lower() in SHEET_EXTENSIONS,
        f"--sheet must be a file name ending in {', '.join(SHEET_EXTENSIONS)}, got {sheet}",
    )
    opened = open_source(source)
    found = {split: opened.open(split) for split in opened.splits()}
    first = "train" if "train" in found else min(found)
    order = [first, *sorted(found.keys() - {first})]
    indexes = {split: found[split] for split in order}
    if first == "train":
        indexes |= {split: align_classes(found[split], found[first]) for split in order[1:]}
    duplicates = find_duplicates(indexes, None if inspect_all else MAX_COMPARED_IMAGES)
    lines = [source, *(line for split in order for line in _line(split, _split_text(indexes[split])))]
    lines += _files_lines(opened.count_files()) + _note_lines(indexes) + _duplicate_lines(duplicates, indexes)
    results = {}
    for split in order:
        results[split] = inspect_images(indexes[split], None if inspect_all else MAX_INSPECTED_IMAGES)
        lines += ["", *_inspection_lines(split, indexes[split], results[split])]
    if results[first].readable:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(indexes[first], results[first].sizes).save(sheet)
        lines += ["", f"contact sheet: {sheet}"]
    return "\n".join(lines)


def _line(title: str, text: str) -> list[str]:
    """Return a title and a text, wrapped beside it."""
    wrapped = textwrap.wrap(text, WIDTH - INDENT, break_long_words=False, break_on_hyphens=False)
    titles = [f"  {title:<{INDENT - 3}}", *[" " * (INDENT - 1)] * len(wrapped)]
    return [f"{title} {line}" for title, line in zip(titles, wrapped, strict=False)]


def _split_text(index: SplitIndex) -> str:
    """Describe a split: number of images, size on disk, largest classes."""
    count = f"{len(index.files):,} images, {_bytes_text(index.files.nbytes)}"
    if index.labels is None:
        reason = index.metadata.get("why_no_labels")
        return f"{count}, no labels{f' because {reason}' if reason else ''}"
    sizes = torch.bincount(index.labels[index.labels >= 0], minlength=len(index.classes))
    order = sizes.argsort(descending=True, stable=True)[: int((sizes > 0).sum())].tolist()
    largest = ", ".join(f"{index.classes[label]} {int(sizes[label]):,}" for label in order[:MAX_LISTED])
    classes = f"{len(order):,} {'class' if len(order) == 1 else 'classes'}: {largest}"
    unlabeled = int((index.labels < 0).sum())
    more = ", …" if len(order) > MAX_LISTED else ""
    return f"{count}, {classes}{more}{f'; {unlabeled:,} without a label (-1 or missing)' if unlabeled else ''}"


def _bytes_text(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB" if count >= 1e3 else f"{count} bytes"


def _files_lines(files: dict[str, int]) -> list[str]:
    """Return the number of files in a folder, by kind."""
    kinds = [(kind, count) for kind, count in files.items() if count]
    listed = [f"{count:,} {kind}" for kind, count in kinds[:MAX_KINDS]]
    if others := sum(count for _, count in kinds[MAX_KINDS:]):
        listed.append(f"{others:,} others")
    return _line("files", f"{sum(files.values()):,} in all: {', '.join(listed)}") if kinds else []


def _note_lines(indexes: dict[str, SplitIndex]) -> list[str]:
    """Return what may be wrong with the source; notes that not all splits share begin with the split."""
    splits: dict[str, list[str]] = {}
    for split, index in indexes.items():
        for note in index.metadata.get("notes", ()):
            splits.setdefault(note, []).append(split)
    lines = []
    for note, names in splits.items():
        lines += _line("note", note if len(names) == len(indexes) else f"{', '.join(names)}: {note}")
    return lines


def _duplicate_lines(duplicates: Duplicates, indexes: dict[str, SplitIndex]) -> list[str]:
    """Describe identical images, across splits first."""
    items = []
    order = list(indexes)
    for i, split in enumerate(order):
        for other in order[:i]:
            if pairs := duplicates.across(split, other):
                number = len(duplicates.compared[split])
                names = _pair_text(indexes, (split, pairs[0][0]), (other, pairs[0][1]))
                items.append(f"{split}: {len(pairs):,} of {number:,} images are also in {other}: {names}")
    for split in order:
        if groups := duplicates.within(split):
            name = indexes[split].files.name
            listed = [" = ".join(map(name, group[:4])) + (" = …" if len(group) > 4 else "") for group in groups]
            total = "1 group" if len(groups) == 1 else f"{len(groups):,} groups"
            items += [f"{split}: {total}: {listed[0]}", *listed[1:MAX_LISTED]]
            items += ["…"] if len(groups) > MAX_LISTED else []
    lines = _line("duplicates", items[0] if items else "none")
    lines += [line for item in items[1:] for line in _line("", item)]
    for split, index in indexes.items():
        compared, count = len(duplicates.compared[split]), len(index.files)
        if compared < count:
            text = (
                f"{split}: {compared:,} of {count:,} images were compared with all others (use --all for all of them)"
            )
            lines += _line("", text)
    return lines


def _pair_text(indexes: dict[str, SplitIndex], first: tuple[str, int], second: tuple[str, int]) -> str:
    return " = ".join(indexes[split].files.name(index) for split, index in (first, second))


def _inspection_lines(split: str, index: SplitIndex, result: InspectionResult) -> list[str]:
    """Describe the inspected images of a split."""
    count, inspected = len(index.files), len(result.images)
    sampled = f"{inspected:,} of {count:,} images inspected, evenly spaced (use --all to inspect all of them)"
    lines = [f"{split}: {'all images inspected' if inspected == count else sampled}"]
    if readable := result.readable:
        modes = Counter(image.mode for image in readable).most_common()
        formats = Counter(image.format for image in readable).most_common()
        lines += _line("sizes", _sizes_text(result))
        lines += _line("colors", ", ".join(f"{mode} {total:,}" for mode, total in modes))
        lines += _line("formats", ", ".join(f"{name} {total:,}" for name, total in formats))
        speed = f"{result.images_per_second:,.0f} images/s on {cores()} core{'s' * (cores() > 1)}"
        lines += _line("decoding", f"{speed}, to {DECODED_SIZE}x{DECODED_SIZE} pixels")
    return lines + _list_lines("broken", result.broken)


def _sizes_text(result: InspectionResult) -> str:
    sizes = sorted(dict.fromkeys(image.size for image in result.readable), key=lambda size: size[0] * size[1])
    width, height = result.median_size
    if len(sizes) == 1:
        return f"all {width}x{height} pixels"
    smallest, largest = (f"{size[0]}x{size[1]}" for size in (sizes[0], sizes[-1]))
    return (
        f"{len(sizes)} sizes from {smallest} to {largest} pixels, median {width}x{height}; "
        f"{result.median_aspect_fraction:.0%} of images have the median aspect ratio"
    )


def _list_lines(title: str, items: list[str]) -> list[str]:
    """Return the number of items and the first few, each on lines of its own."""
    if not items:
        return _line(title, "none")
    lines = _line(title, f"{len(items):,}: {items[0]}")
    lines += [line for item in items[1:MAX_LISTED] for line in _line("", item)]
    return lines + (_line("", "…") if len(items) > MAX_LISTED else [])
