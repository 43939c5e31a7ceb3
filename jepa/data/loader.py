"""The order of images as a pure function of the step, and batches on the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from jepa.config import InputError
from jepa.data.images import Images

__all__ = ["Batch", "Loader", "split_holdout", "step_order"]

MAX_HOLDOUT = 2000
AHEAD = 2  # steps decoded in the background where images are not held in memory


@dataclass(frozen=True)
class Batch:
    """Images on the device, as the loop hands them to an objective."""

    images: Tensor  # (B, C, H, W) uint8
    labels: Tensor | None  # (B,), which no objective trains on
    rows: Tensor  # (B,) position in the global batch of the step


def split_holdout(count: int, share: float) -> tuple[Tensor, Tensor]:
    """Split images 0…count-1 into those to train on and those held out for the online evaluation.

    The same for every seed; at most 2,000 are held out.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(20230119))
    held = min(MAX_HOLDOUT, round(share * count))
    return order[held:].sort().values, order[:held].sort().values


def step_order(step: int, batch_size: int, count: int, seed: int) -> Tensor:
    """Return the positions (batch_size,) of a step; an epoch is a permutation less its incomplete last batch."""
    epoch, place = divmod(step, count // batch_size)
    return _epoch_order(epoch, count, seed)[place * batch_size : (place + 1) * batch_size]


@lru_cache(maxsize=2)
def _epoch_order(epoch: int, count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))


@dataclass(frozen=True)
class Loader:
    """Hands out this process's share of every step's batch, in `parts`.

    `index` (N,) are the images to train on. Raises `InputError` where they are fewer than the batch, or processes and
    parts do not divide it.
    """

    images: Images
    index: Tensor
    batch_size: int
    seed: int
    device: torch.device
    parts: int = 1
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        count, pieces = len(self.index), self.world_size * self.parts
        if count < self.batch_size:
            raise InputError(
                f"batch_size is {self.batch_size}, but {self.images.name} has {count} images to train on; "
                f"choose --batch-size {count} or less"
            )
        if self.batch_size % pieces:
            raise InputError(
                f"batch_size is {self.batch_size}, which {self.world_size} processes x {self.parts} parts do not divide"
            )

    def steps(self, steps: range) -> Iterator[list[Batch]]:
        """Yield the parts of each step's batch; what is not held in memory is decoded two steps ahead."""
        if self.images.held:
            yield from (self._move(self._load(step)) for step in steps)
            return
        yield from map(self._move, _ahead(self._load, steps))

    def _load(self, step: int) -> list[Batch]:
        share = self.batch_size // self.world_size
        mine = torch.arange(self.rank * share, (self.rank + 1) * share)
        chosen = self.index[step_order(step, self.batch_size, len(self.index), self.seed)[mine]]
        labels = self.images.labels
        return [
            Batch(self.images.batch(picked), None if labels is None else labels[picked], rows)
            for rows, picked in zip(mine.chunk(self.parts), chosen.chunk(self.parts), strict=True)
        ]

    def _move(self, parts: list[Batch]) -> list[Batch]:
        def move(x: Tensor) -> Tensor:
            if self.device.type != "cuda":
                return x.to(self.device)
            return x.pin_memory().to(self.device, non_blocking=True)

        return [
            Batch(move(part.images), None if part.labels is None else move(part.labels), move(part.rows))
            for part in parts
        ]


def _ahead(load: Callable[[int], list[Batch]], steps: range) -> Iterator[list[Batch]]:
    """Load a few steps ahead on a thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="load") as pool:
        waiting: deque[Future[list[Batch]]] = deque()
        for step in steps:
            waiting.append(pool.submit(load, step))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
