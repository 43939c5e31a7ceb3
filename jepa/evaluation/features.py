"""Frozen features, the input of all measures. They are extracted once and stored in a folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from jepa.backbones import Encoder, Tokens, eval_mode
from jepa.config import InputError
from jepa.data import DECODER, ImageDataset, evenly_spaced, read_ahead
from jepa.files import Locked, lock, read_record, write_record
from jepa.transforms.crop import as_float, resize

__all__ = [
    "BATCH_SIZE",
    "Encoded",
    "FeatureStore",
    "Features",
    "Pooling",
    "Subset",
    "encode",
    "encode_readable",
    "extract",
    "pixel_features",
    "read_evenly",
    "weights_digest",
]

BATCH_SIZE = 100
MAX_PIXEL_SIDE = 32  # maximum side of raw-pixel images; a linear probe on larger ones would not fit in memory


class Subset(NamedTuple):
    """A subset of the images of a dataset."""

    dataset: ImageDataset
    indices: Tensor

    @property
    def labels(self) -> Tensor | None:
        """Labels of the images, -1 for unlabeled ones; None if the dataset has no labels."""
        return None if self.dataset.labels is None else self.dataset.labels[self.indices]


def read_evenly(subset: Subset, count: int, batch_size: int = BATCH_SIZE) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield batches of up to `count` evenly spaced images (B, C, H, W) of a subset, and their labels (B,), if any.

    Unreadable images are left out. Raises `InputError` if all of them are unreadable.
    """
    dataset, chosen = subset.dataset, subset.indices[evenly_spaced(len(subset.indices), count)]
    is_empty = True
    for indices in chosen.split(batch_size):
        decoded = dataset.read(indices)
        readable = decoded.readable
        if bool(readable.any()):
            is_empty = False
            labels = None if dataset.labels is None else dataset.labels[decoded.indices[readable]]
            yield decoded.pixels[readable], labels
    if is_empty:
        raise InputError(f"none of the {len(chosen):,} images of {dataset.name} can be read; choose a different source")


@dataclass(frozen=True)
class Features:
    """Frozen features of images from one split.

    `source` and `indices` identify the images, to detect train/test overlap.
    """

    x: Tensor  # (N, D) float32: the last layer, averaged over tokens
    labels: Tensor | None  # (N,), -1 for unlabeled images
    indices: Tensor  # (N,): positions of the images in their split
    source: str  # name and signature of the split
    last4: Tensor | None = None  # (N, sum of widths): the last four layers, averaged over tokens and concatenated
    quadrants: Tensor | None = None  # (N, Q): the last layer, averaged over each quadrant; see `QuadrantPooling`


@dataclass(frozen=True)
class FeatureStore:
    """Stores the features of each encoder and subset in a folder.

    They are memory-mapped and reused while weights, images and `stamp` (an identifier of all other dependencies) are
    unchanged and their checksum matches; otherwise they are extracted again. Without a folder that can be written to,
    features are extracted whenever they are needed.
    """

    folder: Path
    stamp: str
    precision: Literal["fp32", "bf16"] = "fp32"  # of the forward pass

    def extract(
        self,
        name: str,
        encoder: Encoder,
        dataset: ImageDataset,
        indices: Tensor,
        *,
        quadrants: Pooling | None = None,
        label: str | None = None,
        workers: int = 0,
    ) -> Features:
        """Return the encoder's features of the images at `indices`, stored under `name`.

        See `extract` for the other arguments.
        """
        subset_hash = hashlib.blake2b(dataset.name.encode() + digest(indices), digest_size=4).hexdigest()
        target = self.folder / f"{name}-{subset_hash}"
        dependencies = [self.stamp, self.precision, DECODER, dataset.signature, dataset.shape, dataset.canvas]
        dependencies += [encoder.size, "" if quadrants is None else quadrants.key]
        key = f"{weights_digest(encoder)} {json.dumps(dependencies)}"
        features = self._open(target, key, dataset, quadrants is not None)
        options: dict[str, Any] = {"quadrants": quadrants, "label": label, "workers": workers}
        options["precision"] = self.precision
        if features is None and not self._is_writable():
            return extract(encoder, dataset, indices, **options)
        if features is None:
            batches = encode(encoder, dataset, indices, last4=True, **options)
            try:
                with lock(self.folder / ".lock"):
                    self._write(target, key, dataset, batches)
            except Locked as holder:
                raise InputError(f"{holder} extracts features into {self.folder}; wait until it ends") from holder
            features = self._open(target, key, dataset, quadrants is not None)
        if features is None:
            raise InputError(f"the features in {target} differ from what was written; the disk may be faulty")
        return features

    def _is_writable(self) -> bool:
        """Create the folder if it is missing; return whether features can be stored in it."""
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
        return os.access(self.folder, os.W_OK)

    def _write(self, target: Path, key: str, dataset: ImageDataset, batches: Iterator[Encoded]) -> None:
        """Write features to a folder that replaces `target` when it is complete."""
        for leftover in self.folder.glob(f".{target.name}.*"):  # of a killed process; there is one evaluation at a time
            shutil.rmtree(leftover, ignore_errors=True)
        temporary = self.folder / f".{target.name}.{os.getpid()}"
        temporary.mkdir()
        try:
            widths, used = [0], []
            with (temporary / "features.bin").open("wb") as file:
                for batch in batches:
                    file.write(torch.cat(batch.parts, -1).numpy().tobytes())
                    widths = [part.shape[-1] for part in batch.parts]
                    used.append(batch.indices)
            np.save(temporary / "indices.npy", torch.cat(used).numpy())
            metadata = {"key": key, "widths": widths, "unreadable": dataset.unreadable, "checksum": checksum(temporary)}
            write_record(temporary / "metadata.json", metadata)
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @staticmethod
    def _open(target: Path, key: str, dataset: ImageDataset, has_quadrants: bool) -> Features | None:
        """Return the features in a folder, or None if they are missing, damaged or of something else."""
        metadata = read_record(target / "metadata.json")
        if metadata is None or metadata["key"] != key:
            return None
        try:
            if checksum(target) != metadata["checksum"]:
                return None
        except OSError:
            return None
        indices = torch.from_numpy(np.load(target / "indices.npy"))
        dataset.unreadable |= {int(index): reason for index, reason in metadata["unreadable"].items()}
        widths = metadata["widths"]
        # copy-on-write ("c"), because torch warns about read-only memory
        stored = np.memmap(target / "features.bin", np.float32, "c", shape=(len(indices), sum(widths)))
        return as_features(torch.from_numpy(stored), widths, indices, dataset, has_quadrants)


def checksum(folder: Path) -> str:
    """Return a hash of the stored features and indices in a folder."""
    digests = []
    for name in ("features.bin", "indices.npy"):
        with (folder / name).open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return " ".join(digests)


def digest(tensor: Tensor) -> bytes:
    """Return a hash of the contents of a tensor."""
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.blake2b(flat.numpy().data, digest_size=16).digest()


def weights_digest(encoder: Encoder) -> str:
    """Return a hash of all parameters and buffers of an encoder."""
    state = [name.encode() + digest(tensor) for name, tensor in encoder.state_dict().items()]
    return hashlib.blake2b(b"".join(state), digest_size=16).hexdigest()


def extract(
    encoder: Encoder,
    dataset: ImageDataset,
    indices: Tensor,
    *,
    last4: bool = True,
    quadrants: Pooling | None = None,
    label: str | None = None,
    workers: int = 0,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Features:
    """Return the features of the images at `indices`, skipping unreadable images.

    `last4` also returns the last four layers, if the encoder has at least four, and `quadrants` the last layer pooled
    in quadrants. `label` is the title of the progress bar, `workers` is the number of processes that decode images, and
    `precision` is that of the forward pass. Raises `InputError` if no image is readable, or if the features contain NaN
    or infinite values.
    """
    options: dict[str, Any] = {"label": label, "workers": workers, "precision": precision}
    batches = list(encode(encoder, dataset, indices, last4=last4, quadrants=quadrants, **options))
    widths = [part.shape[-1] for part in batches[0].parts]
    parts = torch.cat([torch.cat(batch.parts, -1) for batch in batches])
    used = torch.cat([batch.indices for batch in batches])
    return as_features(parts, widths, used, dataset, quadrants is not None)


def as_features(
    parts: Tensor, widths: list[int], indices: Tensor, dataset: ImageDataset, has_quadrants: bool = False
) -> Features:
    """Build `Features` from one or four layers, first to last, and quadrants, if any, concatenated."""
    pooled = None
    if has_quadrants:
        *widths, width = widths
        parts, pooled = parts[:, :-width], parts[:, -width:]
    labels = None if dataset.labels is None else dataset.labels[indices]
    last4 = parts if len(widths) == 4 else None
    source = f"{dataset.name} {dataset.signature}"
    return Features(parts[:, -widths[-1] :], labels, indices, source, last4=last4, quadrants=pooled)


class Pooling(Protocol):
    """Pools tokens (B, N, D) to features, such as `QuadrantPooling`."""

    @property
    def key(self) -> str:
        """Identifies what the features depend on, besides the encoder."""

    def __call__(self, tokens: Tokens) -> Tensor:
        """Pool tokens."""


class Encoded(NamedTuple):
    """Features of a batch of images."""

    indices: Tensor  # (B,): positions of the readable images
    parts: list[Tensor]  # one or four layers (B, D), averaged over tokens, and quadrants, if any


def encode(encoder: Encoder, dataset: ImageDataset, indices: Tensor, **options: Any) -> Iterator[Encoded]:
    """Yield batches of features; see `encode_readable`. Raises `InputError` if no image is readable."""
    is_empty = True
    for encoded in encode_readable(encoder, dataset, indices, **options):
        is_empty = False
        yield encoded
    if is_empty:
        raise InputError(
            f"none of the {len(indices):,} images of {dataset.name} can be read; choose a different source"
        )


@torch.no_grad()
def encode_readable(
    encoder: Encoder,
    dataset: ImageDataset,
    indices: Tensor,
    *,
    last4: bool,
    quadrants: Pooling | None,
    label: str | None,
    workers: int,
    precision: Literal["fp32", "bf16"],
) -> Iterator[Encoded]:
    """Yield batches of features, without those batches in which no image is readable.

    Raises `InputError` if features are NaN or infinite.
    """
    layers = (-4, -3, -2, -1) if last4 and encoder.backbone.num_layers >= 4 else (-1,)
    decoded = read_ahead(dataset, indices.split(BATCH_SIZE), workers)
    total = -(-len(indices) // BATCH_SIZE)
    disable = True if label is None else None  # None shows it in a terminal only
    for batch in tqdm(decoded, desc=label, total=total, unit="batch", delay=3, leave=False, disable=disable):
        if not batch.readable.any():
            continue
        images = resize(batch.pixels[batch.readable].to(encoder.device), encoder.size)
        autocast = torch.autocast(encoder.device.type, torch.bfloat16, enabled=precision == "bf16")
        with eval_mode(encoder), autocast:
            tokens = encoder(images, layers=layers)
        pooled = [encoder.backbone.pool(layer).float().cpu() for layer in tokens.layers]
        if quadrants is not None:
            pooled.append(quadrants(tokens).cpu())
        if not all(bool(part.isfinite().all()) for part in pooled):
            raise InputError(
                f"the features of {dataset.name} are NaN or infinite, so the weights have probably diverged; "
                "evaluate an earlier checkpoint, or retrain with a lower --optim.lr"
            )
        yield Encoded(batch.indices[batch.readable], pooled)


def pixel_features(dataset: ImageDataset, indices: Tensor) -> Features:
    """Return raw pixels, resized to at most 32x32, as baseline features."""
    pixels, used = [], []
    for batch_indices, images in small_images(dataset, indices):
        pixels.append(images.flatten(1))
        used.append(batch_indices)
    return as_features(torch.cat(pixels), [pixels[0].shape[1]], torch.cat(used), dataset)


def small_images(dataset: ImageDataset, indices: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the indices (B,) of readable images, and the images (B, C, H, W) in [0, 1], resized to at most 32x32."""
    for batch_indices in indices.split(BATCH_SIZE):
        decoded = dataset.read(batch_indices)
        images = as_float(decoded.pixels[decoded.readable])
        is_small = images.shape[-2] * images.shape[-1] <= MAX_PIXEL_SIDE**2
        yield (
            batch_indices[decoded.readable],
            images if is_small else resize(images, (MAX_PIXEL_SIDE, MAX_PIXEL_SIDE)),
        )
