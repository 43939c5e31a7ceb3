"""The order of images as a pure function of the step, and batches on the device."""

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
from jepa.data.images import Images, Read
from jepa.data.stream import auto_workers, stream

__all__ = ["Batch", "Faults", "Loader", "split_holdout", "step_order"]

MAX_HOLDOUT = 2000
SAID = 5  # unreadable files that are told on the screen
AHEAD = 2  # batches that wait in pinned memory for a GPU


@dataclass(frozen=True)
class Batch:
    """Images on the device, as the loop hands them to an objective."""

    images: Tensor  # (B, C, H, W) uint8
    labels: Tensor | None  # (B,), which only the supervised baseline trains on
    rows: Tensor  # (B,) position in the global batch of the step


def split_holdout(count: int, share: float) -> tuple[Tensor, Tensor]:
    """Split images 0…count-1 into those to train on and those held out for the online evaluation.

    The same for every seed; at most 2,000 are held out.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(20230119))
    held = min(MAX_HOLDOUT, round(share * count))
    return order[held:].sort().values, order[:held].sort().values


def step_order(step: int, batch_size: int, count: int, seed: int) -> Tensor:
    """Return the positions (batch_size,) of a step.

    An epoch is a permutation, and the next follows without a gap: a batch may hold the end of one and the start of the
    next, so every epoch shows every image once.
    """
    pieces, start, missing = [], step * batch_size, batch_size
    while missing:
        epoch, place = divmod(start, count)
        piece = _epoch_order(epoch, count, seed)[place : place + missing]
        pieces.append(piece)
        start, missing = start + len(piece), missing - len(piece)
    return torch.cat(pieces)


@lru_cache(maxsize=2)
def _epoch_order(epoch: int, count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))


class Faults:
    """Counts the files that cannot be read, lists them in a file, and stops where there are too many.

    `limit` is the share of the images that may be unreadable; one always may.
    """

    def __init__(self, path: Path, images: Images, limit: float, say: Callable[[str], None]) -> None:
        self.path, self.images, self.limit, self.say = path, images, limit, say
        lines = path.read_text(errors="backslashreplace").splitlines() if path.is_file() else []
        self.lines = dict.fromkeys(lines)  # a set that keeps its order
        self.rows: set[int] = set()

    def note(self, unreadable: dict[int, str]) -> None:
        """Take down files by row, with the reason. Raises `InputError` past the limit."""
        for row in sorted(unreadable.keys() - self.rows):
            self.rows.add(row)
            line = f"{self.images.files.name(row)}: {unreadable[row]}"
            if line not in self.lines:
                self.lines[line] = None
                if len(self.rows) <= SAID:
                    more = "; more are listed and not said" if len(self.rows) == SAID else ""
                    self.say(f"skipped, and listed in {self.path}: {line}{more}")
                with self.path.open("a", errors="backslashreplace") as file:
                    file.write(line + "\n")
        if len(self.rows) > max(1, int(self.limit * len(self.images))):
            raise InputError(
                f"{len(self.rows)} of {len(self.images):,} images of {self.images.name} cannot be read, "
                f"among them {'; '.join(list(self.lines)[:3])}; {self.path} lists them: mend or remove them, or give "
                "--data.max-broken a larger share"
            )


@dataclass(frozen=True)
class Loader:
    """Hands out this process's share of every step's batch, in `parts`.

    `index` (N,) are the images to train on, in ascending order; `workers` the processes that decode (None: chosen by
    the device). Raises `InputError` where the images are fewer than the batch, or processes and parts do not divide it.
    """

    images: Images
    index: Tensor
    batch_size: int
    seed: int
    device: torch.device
    parts: int = 1
    rank: int = 0
    world_size: int = 1
    workers: int | None = None

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

    def steps(self, steps: range, faults: Faults | None = None) -> Iterator[list[Batch]]:
        """Yield the parts of each step's batch.

        In the place of an image that cannot be read stands the next that can, by row; `faults` is told.
        """
        workers = auto_workers(self.device) if self.workers is None else self.workers
        found = stream(self.images, map(self._rows, steps), workers)
        batches = (self._batch(read, faults) for read in found)
        yield from map(self._move, _ahead(batches) if self.device.type == "cuda" else batches)

    def _places(self) -> Tensor:
        """Positions of this process's share in the global batch."""
        share = self.batch_size // self.world_size
        return torch.arange(self.rank * share, (self.rank + 1) * share)

    def _rows(self, step: int) -> Tensor:
        return self.index[step_order(step, self.batch_size, len(self.index), self.seed)[self._places()]]

    def _batch(self, read: Read, faults: Faults | None) -> Batch:
        pixels, rows = read.pixels, read.rows
        if read.unreadable:
            if faults is not None:
                faults.note(read.unreadable)
            pixels, rows = pixels.clone(), rows.clone()
            for place in (~read.readable).nonzero().flatten().tolist():
                pixels[place], rows[place] = self._stand_in(int(rows[place]))
        labels = None if self.images.labels is None else self.images.labels[rows]
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        return Batch(pixels, labels, self._places())

    def _stand_in(self, row: int) -> tuple[Tensor, int]:
        """Find the next image that can be read; the same one whenever it is asked."""
        start = int(torch.searchsorted(self.index, row))
        for ahead in range(1, len(self.index)):
            other = self.index[(start + ahead) % len(self.index)]
            read = self.images.read(other[None])
            if not read.unreadable:
                return read.pixels[0], int(other)
        raise InputError(f"no image of {self.images.name} can be read")

    def _move(self, batch: Batch) -> list[Batch]:
        """Bring a batch to the device and cut it into its parts."""
        images = batch.images.to(self.device, non_blocking=True)
        labels = None if batch.labels is None else batch.labels.to(self.device, non_blocking=True).chunk(self.parts)
        rows = batch.rows.to(self.device, non_blocking=True).chunk(self.parts)
        return [
            Batch(part, None if labels is None else labels[number], rows[number])
            for number, part in enumerate(images.chunk(self.parts))
        ]


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Make a few batches ahead on a thread, while the device works."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        waiting: deque[Future[Batch | None]] = deque(pool.submit(next, batches, None) for _ in range(AHEAD))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, batches, None))
            yield batch
