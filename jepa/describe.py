"""Describe a source of images: the work behind `jepa data`, and behind the plan of `ijepa-folder`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from jepa.config import InputError, require
from jepa.data import Listing, Survey, contact_sheet, cores, look, open_listing
from jepa.distributed import pick_device
from jepa.plan import Situation

__all__ = ["describe", "situation"]

LOOKED_AT, GLANCE = 2000, 100  # images that a description and a plan look at
SHOWN = 5
SHEETS = (".jpg", ".jpeg", ".png", ".webp")


def situation(source: str, device: str, cache: Path | None = None) -> tuple[Situation, str]:
    """Look at some images of a source and at the device; return what a plan needs, and a line that says it.

    Raises `InputError` where the source has no images to train on.
    """
    chosen = pick_device(device)
    listing = training_images(source, cache)
    survey = look(listing, GLANCE)
    if not survey.readable:
        raise InputError(f"none of {len(survey.seen)} images of {source} can be read: {'; '.join(survey.broken[:3])}")
    width, height = survey.middle
    memory = torch.cuda.get_device_properties(chosen).total_memory / 1e9 if chosen.type == "cuda" else 16.0
    now = Situation(len(listing.files), height, width, survey.one_aspect > 0.8, survey.grey, chosen.type, memory)
    labels = f"{len(listing.classes)} classes" if listing.labels is not None else "no labels"
    on = f"a GPU of {memory:.0f} GB" if chosen.type == "cuda" else f"{cores()} cores"
    return now, f"{now.count:,} images, {labels}, {width}x{height} pixels in the middle of {len(survey.seen)}, {on}"


def training_images(source: str, cache: Path | None) -> Listing:
    """Open the training split of a source. Raises `InputError` where it has none."""
    listings = open_listing(source, cache)
    if "train" not in listings:
        raise InputError(f"{source} has no training split: it has {', '.join(sorted(listings))} only")
    return listings["train"]


def describe(source: str, sheet: Path, everything: bool = False) -> str:
    """Describe every split of a source, and write a contact sheet of the first to `sheet`."""
    require(sheet.suffix.lower() in SHEETS, f"--sheet is {sheet}; it takes a name that ends in {', '.join(SHEETS)}")
    listings = open_listing(source)
    first = "train" if "train" in listings else sorted(listings)[0]
    survey = look(listings[first], None if everything else LOOKED_AT)
    lines = [source]
    for split, listing in sorted(listings.items(), key=lambda item: (item[0] != first, item[0])):
        lines.append(f"  {split:<11} {_split(listing)}")
    count = len(listings[first].files)
    looked = "all of them" if len(survey.seen) == count else f"{len(survey.seen):,} of them, spread evenly (--all: all)"
    lines += ["", f"{first}, {looked}"]
    if survey.readable:
        lines += [f"  {name:<11} {text}" for name, text in _facts(survey)]
        sheet.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(listings[first], survey).save(sheet)
    lines += _named("broken", survey.broken, "none")
    same = [" = ".join(names[:4]) + (" = …" if len(names) > 4 else "") for names in survey.duplicates]
    lines += _named("duplicates", same, "none by content")
    ignored = listings[first].facts.get("ignored", {})
    if ignored:
        others = ", ".join(f"{number:,} {kind}" for kind, number in list(ignored.items())[:SHOWN])
        lines.append(f"  {'passed over':<11} {others}")
    if survey.readable:
        lines += ["", f"contact sheet: {sheet}"]
    return "\n".join(lines)


def _split(listing: Listing) -> str:
    count = f"{len(listing.files):,} images, {_bytes(listing.files.nbytes)}"
    if listing.labels is None:
        outside = listing.facts.get("outside")
        return f"{count}, no labels" + (f": {outside}" if outside else "")
    numbers = torch.bincount(listing.labels, minlength=len(listing.classes))
    order = numbers.argsort(descending=True, stable=True).tolist()
    each = ", ".join(f"{listing.classes[label]} {int(numbers[label]):,}" for label in order[:SHOWN])
    return f"{count}, {len(listing.classes)} classes: {each}{', …' if len(order) > SHOWN else ''}"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def _facts(survey: Survey) -> list[tuple[str, str]]:
    sizes = Counter(one.size for one in survey.readable)
    width, height = survey.middle
    if len(sizes) == 1:
        size = f"{width}x{height} pixels, all of them"
    else:
        ordered = sorted(sizes, key=lambda size: size[0] * size[1])
        low, high = ordered[0], ordered[-1]
        size = (
            f"{len(sizes)} sizes from {low[0]}x{low[1]} to {high[0]}x{high[1]}, {width}x{height} in the middle; "
            f"{survey.one_aspect:.0%} have its aspect"
        )
    return [
        ("sizes", size),
        ("colours", ", ".join(f"{mode} {number:,}" for mode, number in survey.modes.most_common())),
        ("formats", ", ".join(f"{kind} {number:,}" for kind, number in survey.formats.most_common())),
        ("decoding", f"{survey.rate:,.0f} images/s to 112 pixels on {cores()} cores"),
    ]


def _named(title: str, names: list[str], none: str) -> list[str]:
    """List the first few of some names."""
    if not names:
        return [f"  {title:<11} {none}"]
    shown = [f"  {title:<11} {len(names):,}: {names[0]}", *(f"  {'':<11} {name}" for name in names[1:SHOWN])]
    return shown + ([f"  {'':<11} …"] if len(names) > SHOWN else [])
