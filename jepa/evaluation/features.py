"""Features of images: what every evaluation works on, extracted once and kept in a folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from jepa.backbones import Encoder
from jepa.config import InputError
from jepa.data import Images, stream
from jepa.views import as_float, resize

__all__ = ["FeatureStore", "Features", "extract", "pixels"]

BATCH = 100
PIXEL_SIDE = 32


@dataclass(frozen=True)
class Features:
    """Frozen features of one split. `source` and `rows` say of which images, so that none is fitted and scored on."""

    x: Tensor  # (N, D) float32, the last layer averaged over tokens
    labels: Tensor | None  # (N,)
    rows: Tensor  # (N,): of the images in their split
    source: str  # which split of which images
    last4: Tensor | None = None  # (N, D of the last four layers), each averaged, concatenated


@dataclass(frozen=True)
class FeatureStore:
    """A folder of features, one folder in it for each encoder and split of images.

    What is there is used again where encoder, images and `stamp` (whatever else the features depend on) are the same,
    read by memory map. Features under way lie under another name, so what a killed extraction leaves is never used.
    """

    folder: Path
    stamp: str

    def extract(
        self, name: str, encoder: Encoder, images: Images, index: Tensor, label: str | None = None, workers: int = 0
    ) -> Features:
        """Do as `extract` for the encoder called `name`, or return what was extracted before."""
        about = hashlib.blake2b(images.name.encode() + digest(index), digest_size=4).hexdigest()
        target = self.folder / f"{name}-{about}"
        facts = [self.stamp, images.signature, images.shape, images.canvas, encoder.size]
        key = f"{weights_digest(encoder)} {json.dumps(facts)}"
        if not self._holds(target, key):
            temporary = self.folder / f".{target.name}.{os.getpid()}"
            self._forget_the_dead(target.name)
            temporary.mkdir(parents=True)
            try:
                widths, parts = [0], []
                with (temporary / "features.bin").open("wb") as file:
                    for part, pooled in encode(encoder, images, index, True, label, workers):
                        file.write(torch.cat(pooled, -1).numpy().tobytes())
                        widths = [layer.shape[-1] for layer in pooled]
                        parts.append(part)
                np.save(temporary / "rows.npy", torch.cat(parts).numpy())
                about_them = {"key": key, "widths": widths, "unreadable": images.unreadable}
                (temporary / "facts.json").write_text(json.dumps(about_them))
                shutil.rmtree(target, ignore_errors=True)
                temporary.rename(target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        rows = torch.from_numpy(np.load(target / "rows.npy"))
        kept = json.loads((target / "facts.json").read_text())
        images.unreadable |= {int(row): reason for row, reason in kept["unreadable"].items()}
        widths = kept["widths"]
        # copy on write: torch refuses to know of memory that it may not write to
        mapped = np.memmap(target / "features.bin", np.float32, "c", shape=(len(rows), sum(widths)))
        return as_features(torch.from_numpy(mapped), widths, rows, images)

    @staticmethod
    def _holds(target: Path, key: str) -> bool:
        with suppress(OSError, ValueError):
            return bool(json.loads((target / "facts.json").read_text())["key"] == key)
        return False

    def _forget_the_dead(self, name: str) -> None:
        """Remove what killed processes left."""
        for left in self.folder.glob(f".{name}.*"):
            try:
                os.kill(int(left.suffix[1:]), 0)
            except ProcessLookupError:
                shutil.rmtree(left, ignore_errors=True)


def digest(tensor: Tensor) -> bytes:
    """Hash the bytes of a tensor."""
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.blake2b(flat.numpy().data, digest_size=16).digest()


def weights_digest(encoder: Encoder) -> str:
    """Hash every weight and buffer of an encoder."""
    parts = [name.encode() + digest(tensor) for name, tensor in encoder.state_dict().items()]
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


def extract(
    encoder: Encoder, images: Images, index: Tensor, last4: bool = True, label: str | None = None, workers: int = 0
) -> Features:
    """Encode the images at `index` on the encoder's device, leaving out those that cannot be read.

    `label` names the progress bar; `workers` processes decode ahead. Raises `InputError` where no image can be read, or
    where features are not numbers.
    """
    rows, pooled = zip(*encode(encoder, images, index, last4, label, workers), strict=True)
    widths = [layer.shape[-1] for layer in pooled[0]]
    return as_features(torch.cat([torch.cat(part, -1) for part in pooled]), widths, torch.cat(rows), images)


def as_features(every: Tensor, widths: list[int], rows: Tensor, images: Images) -> Features:
    """Name the parts of concatenated layers (N, sum of widths)."""
    labels = None if images.labels is None else images.labels[rows]
    last4 = every if len(widths) == 4 else None
    return Features(every[:, -widths[-1] :], labels, rows, f"{images.name} {images.signature}", last4)


@torch.no_grad()
def encode(
    encoder: Encoder, images: Images, index: Tensor, last4: bool, label: str | None, workers: int
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield rows (B,) and the layers asked for, averaged over tokens, (B, D) each on the CPU, batch by batch."""
    device = encoder.mean.device
    was_training = encoder.training
    encoder.eval()
    layers = (-4, -3, -2, -1) if last4 and encoder.backbone.num_layers >= 4 else (-1,)
    found = stream(images, index.split(BATCH), workers)
    total = -(-len(index) // BATCH)
    count = 0
    for read in tqdm(found, desc=label, total=total, unit="batch", delay=3, leave=False, disable=label is None):
        if not read.readable.any():
            continue
        views = resize(read.pixels[read.readable].to(device), encoder.size)
        tokens = encoder(views, layers=layers)
        pooled = [encoder.backbone.pool(layer).float().cpu() for layer in tokens.layers]
        if not all(bool(layer.isfinite().all()) for layer in pooled):
            raise InputError(
                f"the features of {images.name} are no numbers (NaN or infinite): the weights of this encoder are "
                "broken; judge an earlier checkpoint, or train again with a lower --optim.lr"
            )
        count += len(views)
        yield read.rows[read.readable], pooled
    encoder.train(was_training)
    if not count:
        raise InputError(f"none of {len(index):,} images of {images.name} can be read, so there is nothing to judge on")


def pixels(images: Images, index: Tensor) -> Features:
    """Take the raw pixels of the images at `index` as features, the baseline that everything must beat.

    Images of more pixels than 32x32 are brought to that, or the probe would not fit into memory.
    """
    parts, rows = [], []
    for row, batch in small_images(images, index):
        parts.append(batch.flatten(1))
        rows.append(row)
    return as_features(torch.cat(parts), [parts[0].shape[1]], torch.cat(rows), images)


def small_images(images: Images, index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows (B,) and images (B, C, H, W) in [0, 1] of at most 32x32 pixels."""
    for part in index.split(BATCH):
        read = images.read(part)
        batch = as_float(read.pixels[read.readable])
        small = batch.shape[-2] * batch.shape[-1] <= PIXEL_SIDE**2
        yield part[read.readable], batch if small else resize(batch, (PIXEL_SIDE, PIXEL_SIDE))
