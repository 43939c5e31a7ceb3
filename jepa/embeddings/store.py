"""Features of a source in a folder, in shards that are written one by one, so that extraction can be resumed.

A shard covers a fixed range of images of a split. It is complete once its record exists and the checksum in it matches;
anything else, such as the shard that a killed process was writing, is written again. Ranges are multiples of the batch
size, so a batch consists of the same images whether extraction is interrupted or not, and its features are the same to
the last bit.
"""

from __future__ import annotations

import hashlib
import shutil
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jepa.config import InputError
from jepa.config.errors import Interrupted
from jepa.data.sources.base import source_cache
from jepa.embeddings.source import Image, SourceImages
from jepa.evaluation.features import BATCH_SIZE, Encoded, encode_readable
from jepa.files import Locked, atomic_write, lock, printable, read_record, write_record
from jepa.terminal import say_stage

__all__ = ["SHARD_IMAGES", "Block", "FeatureShards", "cached_features", "file_checksum"]

SHARD_IMAGES = 20 * BATCH_SIZE  # what is lost at most when extraction is interrupted
MAX_PRINTED = 3  # unreadable images named in an error
RECORD = "key.json"


class Block(NamedTuple):
    """Features of some images of a split, in the order of the images."""

    split: str
    indices: Tensor  # (B,): positions of the readable images in their split
    x: Tensor  # (B, D) float32

    @property
    def images(self) -> list[Image]:
        """The images."""
        return [Image(self.split, index) for index in self.indices.tolist()]


@dataclass(frozen=True)
class Shard:
    """A range of images of a split."""

    split: str
    start: int
    stop: int
    file: Path  # of the features; its record has the suffix .json


class FeatureShards:
    """The features of the images of a source, stored in a folder.

    `key` are JSON values by name that the features depend on. If any of them differs from those of the folder, its
    features are removed, and `restarted` names what has changed.
    """

    def __init__(self, folder: Path, images: SourceImages, key: dict[str, Any] | None = None) -> None:
        self.folder, self.images = folder, images
        self.key = images.key if key is None else key
        self.restarted = ""
        self.reused = 0  # number of images whose features were there already
        self.shards: list[Shard] = []
        self._unreadable: dict[Shard, dict[int, str]] = {}  # reasons by index, of each complete shard
        for split, dataset in images.splits.items():
            for start in range(0, len(dataset), SHARD_IMAGES):
                file = folder / f"{len(self.shards):06d}.bin"
                self.shards.append(Shard(split, start, min(start + SHARD_IMAGES, len(dataset)), file))

    def fill(self, listing: Path | None = None) -> None:
        """Extract all features that are missing.

        Raises `InputError` if another process does, or if too many images are unreadable, which the file `listing`
        then lists.
        """
        self._find_complete()
        missing = [shard for shard in self.shards if shard not in self._unreadable]
        self.reused = sum(shard.stop - shard.start for shard in self._unreadable)
        self._check_broken(listing)
        if not missing:
            return
        try:
            self._extract(missing, listing)
        except Interrupted as stop:
            raise Interrupted("interrupted; run the same command again to continue", stop.signal_number) from stop

    def _extract(self, missing: list[Shard], listing: Path | None) -> None:
        with self._writing():
            self._remove_if_changed()
            say_stage(f"features of {sum(shard.stop - shard.start for shard in missing):,} images")
            for split, dataset in self.images.splits.items():
                waiting = [shard for shard in missing if shard.split == split]
                if waiting:
                    indices = torch.cat([torch.arange(shard.start, shard.stop) for shard in waiting])
                    options = self.images.encode_options(f"features of {dataset.name}")
                    batches = encode_readable(self.images.model.encoder, dataset, indices, **options)
                    for shard, parts in by_shard(batches, waiting):
                        self._write(shard, parts)
                        self._check_broken(listing)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the folder; remove it at the end if it has no features, as after an error in the first shard."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with lock(self.folder / ".lock"):
                try:
                    yield
                finally:
                    if not self._unreadable:
                        self.remove()
        except Locked as holder:
            raise InputError(f"{holder} extracts features into {self.folder}; wait until it ends") from holder

    def _find_complete(self) -> None:
        """Find the shards that are complete: none of them if the folder has features of something else."""
        if read_record(self.folder / RECORD) == self.key:
            for shard in self.shards:
                record = read_record(shard.file.with_suffix(".json"))
                with suppress(FileNotFoundError):
                    if record is not None and file_checksum(shard.file) == record["checksum"]:
                        self._unreadable[shard] = {int(index): text for index, text in record["unreadable"].items()}

    def _remove_if_changed(self) -> None:
        """Remove the features of another model, of other images, or of other settings."""
        before = read_record(self.folder / RECORD)
        if before == self.key:
            return
        if before is not None:
            changed = [name for name, value in self.key.items() if before.get(name) != value]
            self.restarted = f"started again, because these have changed: {', '.join(changed)}"
        for file in (*self.folder.glob("*.bin"), *self.folder.glob("*.json"), *self.folder.glob("*.faiss")):
            file.unlink()
        write_record(self.folder / RECORD, self.key)

    def _write(self, shard: Shard, parts: list[Encoded]) -> None:
        """Write the features of a shard, then its record."""
        with atomic_write(shard.file) as temporary, temporary.open("wb") as file:
            for part in parts:
                file.write(part.parts[0].numpy().tobytes())
        reasons = self.images.splits[shard.split].unreadable
        unreadable = {index: reasons[index] for index in range(shard.start, shard.stop) if index in reasons}
        write_record(shard.file.with_suffix(".json"), {"checksum": file_checksum(shard.file), "unreadable": unreadable})
        self._unreadable[shard] = unreadable

    def unreadable(self) -> list[str]:
        """Return a line for each unreadable image: its path, and the reason."""
        found = [(Image(s.split, i), why) for s in self.shards for i, why in self._unreadable.get(s, {}).items()]
        return [printable(f"{self.images.path(image)}: {why}") for image, why in found]

    def _check_broken(self, listing: Path | None) -> None:
        """Raise `InputError` if too many images are unreadable, or all of them."""
        count, is_full = sum(map(len, self._unreadable.values())), len(self._unreadable) == len(self.shards)
        if not self.images.too_many_broken(count) and not (is_full and count == len(self.images)):
            return
        lines, where = self.unreadable(), ""
        if listing is not None:
            write_lines(listing, lines)
            where = f" listed in {listing}"
        raise InputError(
            f"{count:,} of {len(self.images):,} images of {self.images.name} cannot be read, for example "
            f"{'; '.join(lines[:MAX_PRINTED])}; repair or remove the files{where}, or raise --max-broken"
        )

    def __len__(self) -> int:
        return len(self.images) - sum(map(len, self._unreadable.values()))

    def blocks(self) -> Iterator[Block]:
        """Yield the features of all readable images in blocks of up to 2,000, in the order of the source."""
        dim = self.images.model.dim
        for shard in self.shards:
            indices = self._readable(shard)
            x = np.fromfile(shard.file, np.float32).reshape(len(indices), dim)
            yield Block(shard.split, torch.tensor(indices, dtype=torch.long), torch.from_numpy(x))

    def locate(self, rows: Iterable[int]) -> list[Image]:
        """Return the images of some rows of all blocks, one after the other."""
        starts = [0, *accumulate(shard.stop - shard.start - len(self._unreadable[shard]) for shard in self.shards)]
        readable = [self._readable(shard) for shard in self.shards]
        found = []
        for row in rows:
            number = bisect_right(starts, row) - 1
            found.append(Image(self.shards[number].split, readable[number][row - starts[number]]))
        return found

    def _readable(self, shard: Shard) -> Sequence[int]:
        """Return the positions of the readable images of a shard in their split."""
        unreadable, every = self._unreadable[shard], range(shard.start, shard.stop)
        return [index for index in every if index not in unreadable] if unreadable else every

    def remove(self) -> None:
        """Remove the folder and all features in it."""
        shutil.rmtree(self.folder)


def cached_features(images: SourceImages) -> FeatureShards:
    """Return the features of a source, stored in its cache folder for the next search."""
    which = "-".join([*images.splits, images.model_digest[:8]])
    shards = FeatureShards(source_cache(images.name, images.cache) / f"features-{which}", images)
    shards.fill()
    return shards


def by_shard(batches: Iterable[Encoded], shards: list[Shard]) -> Iterator[tuple[Shard, list[Encoded]]]:
    """Yield each shard with its batches of features; a shard of unreadable images has none."""
    waiting, parts = deque(shards), list[Encoded]()
    for batch in batches:
        while int(batch.indices[0]) >= waiting[0].stop:
            yield waiting.popleft(), parts
            parts = []
        parts.append(batch)
    for shard in waiting:
        yield shard, parts
        parts = []


def file_checksum(path: Path) -> str:
    """Return a hash of the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file of lines."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
