"""Load batches to the device in an order that is a pure function of the step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from jepa.config import InputError
from jepa.data.dataset import DecodedBatch, ImageDataset
from jepa.data.workers import auto_workers, read_ahead

__all__ = ["Batch", "BrokenFileLog", "Loader", "max_unreadable", "split_holdout", "step_order"]

MAX_HELD_OUT_IMAGES = 2000  # maximum number of held-out images
MAX_UNREADABLE_OF_FEW = 10  # number of unreadable images that never stop a run, unless they are a quarter of the images
MAX_PRINTED = 5  # maximum number of unreadable files printed; all are listed in the run folder
PREFETCHED_BATCHES = 2  # number of batches queued in pinned memory for a GPU


@dataclass(frozen=True)
class Batch:
    """A batch of images on the device, as passed to `Objective.sample`."""

    images: Tensor  # (B, C, H, W) uint8
    labels: Tensor | None  # (B,), -1 for unlabeled images; None unless the objective uses labels
    positions: Tensor  # (B,) positions in the global batch


def split_holdout(count: int, fraction: float) -> tuple[Tensor, Tensor]:
    """Randomly split the indices 0 … count - 1 into training and held-out indices.

    Both are sorted and independent of the seed. A fraction of the images is held out, but at most 2,000.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(20230119))
    held_out = min(MAX_HELD_OUT_IMAGES, round(fraction * count))
    return order[held_out:].sort().values, order[:held_out].sort().values


def step_order(step: int, batch_size: int, count: int, seed: int) -> Tensor:
    """Return the image indices (batch_size,) of the batch at a step, out of 0 … count - 1.

    Each epoch is a permutation of all images. Batches may span two epochs; no image is dropped.
    """
    pieces, start, end = [], step * batch_size, (step + 1) * batch_size
    while start < end:
        epoch, offset = divmod(start, count)
        piece = _epoch_order(epoch, count, seed)[offset : offset + end - start]
        pieces.append(piece)
        start += len(piece)
    return torch.cat(pieces)


@lru_cache(maxsize=2)
def _epoch_order(epoch: int, count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))


def max_unreadable(count: int, fraction: float) -> int:
    """Return how many of `count` images may be unreadable: the fraction, or a few images of a small dataset.

    A few are ten, or a quarter of fewer than 40 images. If the fraction is 0, one image may be unreadable.
    """
    few = min(MAX_UNREADABLE_OF_FEW, max(1, count // 4))
    return max(int(fraction * count), few) if fraction > 0 else 1


class BrokenFileLog:
    """List unreadable files in the text file `path`, and stop the run if there are too many.

    `limit` is the maximum fraction of unreadable images, as for `max_unreadable`. `log` prints a line.
    """

    def __init__(self, path: Path, dataset: ImageDataset, limit: float, log: Callable[[str], None]) -> None:
        self.path, self.dataset, self.limit, self.log = path, dataset, limit, log
        lines = path.read_text(encoding="utf-8", errors="backslashreplace").splitlines() if path.is_file() else []
        self.lines = dict.fromkeys(lines)  # an ordered set
        self.indices: set[int] = set()

    def add(self, unreadable: dict[int, str]) -> None:
        """Add unreadable images, given as reasons by index. Raises `InputError` if there are more than the limit."""
        for index in sorted(unreadable.keys() - self.indices):
            self.indices.add(index)
            line = f"{self.dataset.files.name(index)}: {unreadable[index]}"
            if line not in self.lines:
                self.lines[line] = None
                if len(self.indices) <= MAX_PRINTED:
                    more = "; further ones are only listed there" if len(self.indices) == MAX_PRINTED else ""
                    self.log(f"skipped an unreadable image, listed in {self.path}: {line}{more}")
                with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(line + "\n")
        if len(self.indices) > max_unreadable(len(self.dataset), self.limit):
            raise InputError(
                f"{len(self.indices)} of {len(self.dataset):,} images of {self.dataset.name} cannot be read, "
                f"for example {'; '.join(list(self.lines)[:3])}; repair or remove the files listed in {self.path}, or "
                "raise --data.max-broken"
            )


@dataclass(frozen=True, kw_only=True)
class Loader:
    """Load the batches of one rank, divided into microbatches.

    `indices` (N,) are the sorted indices of the training images. With `labels`, batches contain the labels of the
    images, and an image more than once if there are fewer than the batch size. `workers` is the number of decoding
    processes, or None for the device's default. Raises `InputError` if there are fewer images than the batch size and
    no `labels`, or if the batch size is not a multiple of processes times microbatches.
    """

    dataset: ImageDataset
    indices: Tensor
    batch_size: int
    seed: int
    device: torch.device
    num_microbatches: int = 1
    rank: int = 0
    world_size: int = 1
    workers: int | None = None
    labels: bool = False

    def __post_init__(self) -> None:
        count = len(self.indices)
        if count < self.batch_size and not self.labels:
            raise InputError(
                f"batch_size must be at most the number of training images ({count} in {self.dataset.name}), "
                f"got {self.batch_size}; choose --batch-size {count} or less"
            )
        if self.batch_size % (self.world_size * self.num_microbatches):
            raise InputError(
                f"batch_size must be a multiple of {self.world_size} processes x {self.num_microbatches} microbatches, "
                f"got {self.batch_size}"
            )

    def steps(self, steps: range, broken_files: BrokenFileLog | None = None) -> Iterator[list[Batch]]:
        """Yield the microbatches of each step.

        Unreadable images are added to `broken_files` and replaced by the next readable image.
        """
        workers = auto_workers(self.device) if self.workers is None else self.workers
        decoded = read_ahead(self.dataset, map(self._indices_of_step, steps), workers)
        batches = (self._build_batch(batch, broken_files) for batch in decoded)
        yield from map(self._microbatches, _prefetch(batches) if self.device.type == "cuda" else batches)

    def _positions(self) -> Tensor:
        """Return the positions of this rank's images in the global batch."""
        local_size = self.batch_size // self.world_size
        return torch.arange(self.rank * local_size, (self.rank + 1) * local_size)

    def _indices_of_step(self, step: int) -> Tensor:
        return self.indices[step_order(step, self.batch_size, len(self.indices), self.seed)[self._positions()]]

    def _build_batch(self, decoded: DecodedBatch, broken_files: BrokenFileLog | None) -> Batch:
        pixels, indices = decoded.pixels, decoded.indices
        if decoded.unreadable:
            if broken_files is not None:
                broken_files.add(decoded.unreadable)
            pixels, indices = pixels.clone(), indices.clone()
            for position in (~decoded.readable).nonzero().flatten().tolist():
                pixels[position], indices[position] = self._next_readable(int(indices[position]))
        labels = self.dataset.labels[indices] if self.labels and self.dataset.labels is not None else None
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        return Batch(pixels, labels, self._positions())

    def _next_readable(self, index: int) -> tuple[Tensor, int]:
        """Return the next readable image (C, H, W) and its index, wrapping around at the end."""
        start = int(torch.searchsorted(self.indices, index))
        for offset in range(1, len(self.indices)):
            candidate = self.indices[(start + offset) % len(self.indices)]
            decoded = self.dataset.read(candidate[None])
            if not decoded.unreadable:
                return decoded.pixels[0], int(candidate)
        raise InputError(f"no images of {self.dataset.name} can be read; run 'jepa data SOURCE' for the reasons")

    def _microbatches(self, batch: Batch) -> list[Batch]:
        """Move a batch to the device and divide it into microbatches."""

        def chunks(tensor: Tensor) -> tuple[Tensor, ...]:
            return tensor.to(self.device, non_blocking=True).chunk(self.num_microbatches)

        images, positions = chunks(batch.images), chunks(batch.positions)
        labels = chunks(batch.labels) if batch.labels is not None else [None] * len(images)
        return [Batch(*microbatch) for microbatch in zip(images, labels, positions, strict=True)]


def _prefetch(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Prepare a few batches ahead in a background thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        waiting: deque[Future[Batch | None]] = deque(
            pool.submit(next, batches, None) for _ in range(PREFETCHED_BATCHES)
        )
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, batches, None))
            yield batch
