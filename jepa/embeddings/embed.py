"""Write the features of a whole source of images to a file."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch

from jepa.config import InputError
from jepa.embeddings.formats import Rows, check_suffix, companions, read_metadata, write_features
from jepa.embeddings.page import encode_thumbnail
from jepa.embeddings.source import SourceImages, counts_text
from jepa.embeddings.store import Block, FeatureShards, write_lines
from jepa.files import read_record, write_record
from jepa.version import __version__

__all__ = ["embed_source"]

ASSEMBLED = "assembled.json"  # in the folder of shards while files are moved to their places


def embed_source(
    model: Path, source: str, out: Path, *, split: str | None, max_broken: float | None, thumbnails: bool
) -> str:
    """Write the features of all images of a source to a file, and return what was done in words.

    Features are kept in a folder beside the file until it is complete, so that an interrupted command continues where
    it was. Raises `InputError` if the file exists with other content, or if too many images are unreadable.
    """
    check_suffix(out, thumbnails)
    if not out.parent.is_dir():
        raise InputError(f"the folder {out.parent} of --out {out} does not exist; create it first")
    start = time.perf_counter()
    images = SourceImages.open(model, source, split, max_broken)
    key = images.key | {"number of threads": torch.get_num_threads(), "version of torch": torch.__version__}
    shards = FeatureShards(partial_folder(out), images, key)
    metadata = describe(images, key, thumbnails)
    if is_complete(out, metadata, shards):
        return f"{out} is complete: it has the features of these images by this model"
    listing = out.with_name(f"{out.name}.broken.txt")
    shards.fill(listing)
    assemble(shards, out, metadata, thumbnails)
    return summary(shards, out, listing, time.perf_counter() - start)


def partial_folder(out: Path) -> Path:
    """Return the folder of the features of an incomplete file."""
    return out.with_name(f".{out.name}.partial")


def describe(images: SourceImages, key: dict[str, Any], thumbnails: bool) -> dict[str, Any]:
    """Return the metadata of a file of features."""
    return {
        "version": __version__,
        "model": images.model_name,
        "source": images.name,
        "dim": images.model.dim,
        "thumbnails": thumbnails,
        "key": key,
    }


def is_complete(out: Path, metadata: dict[str, Any], shards: FeatureShards) -> bool:
    """Return whether the file exists already. Raises `InputError` if it has other content, or is in the way."""
    if out.exists() and (found := read_metadata(out)) is not None:
        changed = [name for name in ("dim", "thumbnails") if found.get(name) != metadata[name]]
        before, now = found["key"], metadata["key"]
        changed += [name for name in now if before.get(name) != now[name]]
        if not changed:
            return True
        raise InputError(
            f"{out} exists and has other features (different: {', '.join(changed)}); remove it, or give another --out"
        )
    was_moving = read_record(shards.folder / ASSEMBLED) is not None and not out.exists()
    in_the_way = next((file for file in (out, *companions(out)) if file.exists()), None)
    if in_the_way is not None and not was_moving:
        raise InputError(f"{in_the_way} exists and would be replaced; remove it, or give another --out")
    return False


def assemble(shards: FeatureShards, out: Path, metadata: dict[str, Any], thumbnails: bool) -> None:
    """Write the files from the shards and move them to their places, `out` last; then remove the shards."""
    new = shards.folder / "assembled" / out.name
    new.parent.mkdir(exist_ok=True)
    rows = (to_rows(shards.images, block, thumbnails) for block in shards.blocks())
    write_features(new, rows, len(shards), metadata)
    write_record(shards.folder / ASSEMBLED, {})
    for file, target in zip((*companions(new), new), (*companions(out), out), strict=True):
        with file.open("rb") as written:
            os.fsync(written.fileno())
        file.replace(target)
    shards.remove()


def to_rows(images: SourceImages, block: Block, thumbnails: bool) -> Rows:
    """Return the rows of a block of features."""
    found = block.images
    labels = [images.label(image) for image in found] if images.has_classes else None
    encoded = [encode_thumbnail(images.pixels(image)) for image in found] if thumbnails else None
    return Rows([images.path(image) for image in found], [block.split] * len(found), labels, block.x.numpy(), encoded)


def summary(shards: FeatureShards, out: Path, listing: Path, seconds: float) -> str:
    """Return what was written in words, and list unreadable images in a file if there are any."""
    images = shards.images
    new = len(images) - shards.reused
    counts = counts_text({name: len(dataset) for name, dataset in images.splits.items()})
    speed = f" ({new / seconds:,.0f} images/s)" if new else ""
    lines = [
        f"{len(shards):,} images of {images.name} ({counts}), {images.model.dim} values each, "
        f"in {seconds:.0f} s{speed}",
        f"features: {', '.join(map(str, (out, *companions(out))))}",
    ]
    if shards.restarted:
        lines.append(shards.restarted)
    if shards.reused:
        lines.append(f"continued: {shards.reused:,} images had been embedded before")
    if unreadable := shards.unreadable():
        write_lines(listing, unreadable)
        count = f"{len(unreadable)} unreadable image{'s' * (len(unreadable) > 1)}"
        lines.append(f"skipped: {count}, listed in {listing}, for example {unreadable[0]}")
    else:
        listing.unlink(missing_ok=True)
    return "\n".join(lines)
