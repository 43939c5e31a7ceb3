"""Open a source of images: the built-in sample, a folder, a table, parquet files, or a data set by name.

A new kind of source is a function that gives a `Listing` for each split, and a line in `_listings`.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from jepa.config import DataConfig, InputError, suggest
from jepa.data.decode import Unreadable, decode
from jepa.data.files import Files, Listing, read_listing
from jepa.data.folder import SPLITS, Found, index_folder, is_fresh
from jepa.data.images import Images, PixelCache, progress
from jepa.data.named import TORCHVISION, open_hub, write_torchvision
from jepa.data.tables import image_column, open_parquet, signature, write_images, write_paths

__all__ = ["CACHE", "open_dataset", "open_listing"]

CACHE = Path("runs") / ".jepa-cache"
"""Where indexes and decoded images lie, unless a run is trained elsewhere: beside the run."""
SAMPLE = Path(__file__).with_name("sample")
ACCEPTED = (
    "--data takes 'sample', a folder of images, parquet files, a .txt, .csv, .tsv or .parquet table of paths, "
    "hf:OWNER/NAME, or a name of torchvision's (cifar10, imagenette, flowers102, …)"
)
DECODER = 1  # raise it when images come out of `decode` otherwise than before: what was kept is then decoded again
AT_ONCE = 300e6  # bytes of encoded images that are decoded before training starts: seconds, and no core is taken later
LOOKED_AT = 32

Listings = dict[str, Callable[[], Listing]]


def open_dataset(config: DataConfig, split: str = "train", cache: Path | None = None) -> Images | None:
    """Open one split, `train` or `test`, of the source that a config names.

    A source without a labelled `test` split gives its `validation` split for it, or None where it has neither. What is
    worth keeping for a second start is kept in the folder `cache`. Raises `InputError` where the source is missing,
    holds no images, or cannot be read.
    """
    place = place_of(config.source, cache or CACHE)
    listings = _listings(config.source, place)
    if split == "train" and "train" not in listings:
        raise InputError(f"{config.source} has no training split: it has {', '.join(sorted(listings))} only")
    names = [name for name in (("test", "validation") if split == "test" else (split,)) if name in listings]
    opened = None
    for name in names:
        opened = _images(listings[name](), config, name, place)
        if opened.labels is not None:
            break  # the labels of a test split may be hidden: then the validation split is the one to score on
    return opened


def open_listing(source: str, cache: Path | None = None) -> dict[str, Listing]:
    """Open the listings of every split of a source, without decoding anything. Raises `InputError`."""
    return {split: make() for split, make in _listings(source, place_of(source, cache or CACHE)).items()}


def place_of(source: str, cache: Path) -> Path:
    """Name the folder in the cache that belongs to a source."""
    path = str(Path(source).expanduser().resolve())
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(source).name)[-40:] or "root"
    return cache / f"{name}-{hashlib.blake2b(path.encode('utf-8', 'replace'), digest_size=4).hexdigest()}"


def _listings(source: str, place: Path) -> Listings:
    """Find the splits of a source and how to open each."""
    path = Path(source).expanduser()
    if source == "sample":
        return _parquet(sorted(SAMPLE.glob("*.parquet")), source, place)
    if source.startswith("hf:"):
        return {SPLITS.get(name, name): partial(_same, part) for name, part in open_hub(source[3:]).items()}
    if path.is_dir():
        return _folder(path, source, place)
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix in (".txt", ".csv", ".tsv") or (
            suffix == ".parquet" and image_column(open_parquet(path).schema_arrow) is None
        ):
            return _kept(place, signature([path]), partial(write_paths, path, place), path.parent)
        if suffix == ".parquet":
            return _parquet([path], source, place)
        raise InputError(f"{source} is one file, and no table; {ACCEPTED}")
    if files := sorted(Path(name) for name in glob.glob(str(path), recursive=True)):  # noqa: PTH207  (absolute globs)
        return _parquet(files, source, place)
    if source in TORCHVISION:
        return _kept(place, source, partial(write_torchvision, source, place), Path())
    raise InputError(f"there is nothing at {source}{suggest(source, ['sample', *TORCHVISION])}; {ACCEPTED}")


def _same(listing: Listing) -> Listing:
    return listing


def _kept(place: Path, stamp: str, write: Callable[[], list[str]], root: Path) -> Listings:
    """Open listings whose splits are written together, writing them first where what is there is of another time."""
    note = place / "splits.json"
    found: dict[str, str | list[str]] = {}
    with suppress(OSError, ValueError):
        found = json.loads(note.read_text())
    if found.get("stamp") != stamp:
        found = {"stamp": stamp, "splits": write()}
        note.write_text(json.dumps(found))
    return {split: partial(_read, place, split, root) for split in found["splits"]}


def _read(place: Path, split: str, root: Path) -> Listing:
    listing = read_listing(place / f"{split}.arrow", root)
    if listing is None:
        raise InputError(f"the index {place / split}.arrow cannot be read; remove {place} and start again")
    return listing


def _folder(root: Path, source: str, place: Path) -> Listings:
    """Open a folder of images, or of parquet files that hold images."""
    note = place / "folder.json"
    found = None
    with suppress(OSError, ValueError, TypeError):
        found = Found(**json.loads(note.read_text()))
    if found is None or not is_fresh(found):
        found = index_folder(root, place)
        note.write_text(json.dumps(dataclasses.asdict(found)))
    parquet = sorted(Path(file) for file in found.parquet)
    if parquet and image_column(open_parquet(parquet[0]).schema_arrow) is not None:
        return _parquet(parquet, source, place / "parquet")
    splits = {name: count for name, count in found.splits.items() if count}
    if not splits:
        others = ", ".join(f"{count} {name}" for name, count in list(found.ignored.items())[:3])
        raise InputError(f"the folder {source} has no images in it{f' ({others})' if others else ''}; {ACCEPTED}")
    return {split: partial(_among, place, split, root, found.ignored) for split in splits}


def _among(place: Path, split: str, root: Path, ignored: dict[str, int]) -> Listing:
    listing = _read(place, split, root)
    listing.facts["ignored"] = ignored
    return listing


def _parquet(files: list[Path], source: str, place: Path) -> Listings:
    """Open parquet files that hold images; the split is in the name of a file or its folder."""
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(_split_of(file), []).append(file)
    return {split: partial(_open_parquet, parts, source, split, place) for split, parts in found.items()}


def _open_parquet(files: list[Path], source: str, split: str, place: Path) -> Listing:
    target = place / f"{split}.arrow"
    listing = read_listing(target, Path())
    if listing is None or listing.facts["signature"] != signature(files):
        write_images(files, f"{source} ({split})", target)
        listing = _read(place, split, Path())
    return listing


def _split_of(file: Path) -> str:
    """Read the split from a file's name, or its folder's: train-00000-of-00003.parquet, test/0000.parquet."""
    match = re.search(r"(?<![a-z])(train|test|validation|valid|val)(?![a-z])", file.stem.lower())
    return SPLITS.get(match.group(1) if match else file.parent.name.lower(), "train")


def _images(listing: Listing, config: DataConfig, split: str, place: Path) -> Images:
    """Say how the images of a listing are decoded, and decode those of small sets at once."""
    name = f"{config.source} ({split})"
    canvas = None if config.canvas is None else config.canvas_size
    shape = (config.channels, *canvas) if canvas is not None else _common_shape(listing.files, config.channels, name)
    nbytes = len(listing.files) * shape[0] * shape[1] * shape[2]
    stamp = listing.facts["signature"]
    images = Images(name, listing.files, listing.labels, listing.classes, shape, canvas, None, stamp)
    if nbytes > config.cache_gb * 1e9:
        return images
    form = f"{split}-{shape[2]}x{shape[1]}x{shape[0]}-{'cut' if canvas else 'whole'}"
    target = place / f"{form}-{stamp}-{DECODER}.pixels"
    for old in place.glob(f"{form}-*.pixels"):
        if old != target:
            old.unlink(missing_ok=True)
            old.with_suffix(".crc32").unlink(missing_ok=True)
    try:
        images.cache = PixelCache(target, len(images), shape)
    except OSError as error:
        raise InputError(
            f"{nbytes / 1e9:.1f} GB of decoded images cannot be kept in {place} ({error.strerror}); free the disk, or "
            "give --data.cache-gb 0 to decode them in every epoch"
        ) from error
    if listing.files.nbytes <= AT_ONCE and not images.cache.complete:
        rows = torch.arange(len(images))
        for part in progress(rows.split(500), f"decoding {name}"):
            images.read(part)
    return images


def _common_shape(files: Files, channels: int, name: str) -> tuple[int, int, int]:
    """Look at some images for the size that all should have. Raises `InputError` where they differ."""
    shapes: dict[tuple[int, ...], int] = {}
    reasons = []
    for row in torch.linspace(0, len(files) - 1, min(LOOKED_AT, len(files)), dtype=torch.float64).long().tolist():
        try:
            shapes.setdefault(decode(files.read(row), channels).shape, row)
        except Unreadable as reason:
            reasons.append(f"{files.name(row)}: {reason}")
    if not shapes:
        raise InputError(f"no image of {name} can be read: {'; '.join(reasons[:3])}")
    if len(shapes) > 1:
        sizes = " and ".join(f"{shape[2]}x{shape[1]}" for shape in sorted(shapes)[:2])
        raise InputError(
            f"the images of {name} have several sizes, {sizes} among them; bring them to one with --data.canvas PIXELS "
            "(the shorter side, then the centre square) or HEIGHT WIDTH"
        )
    channels, height, width = next(iter(shapes))
    return channels, height, width
