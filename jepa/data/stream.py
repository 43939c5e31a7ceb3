"""Read many images in order, decoded by processes ahead of their use."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jepa.data.images import Images, Read, cores

__all__ = ["auto_workers", "stream"]

CHUNK = 32  # images that a worker decodes at a time: bounds the shared memory in flight and the first wait
AHEAD = 4  # chunks that wait for each worker
MAX_WORKERS = 16


def auto_workers(device: torch.device) -> int:
    """Choose how many processes decode for this one.

    On a GPU the cores are free: they are shared out over the machine's training processes. On the CPU there are none,
    because decoding and training in turn, each on all cores, is faster than both at once.
    """
    if device.type == "cpu":
        return 0
    return max(1, min(MAX_WORKERS, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def stream(images: Images, groups: Iterable[Tensor], workers: int) -> Iterator[Read]:
    """Read group after group of rows, in order; with `workers` 0, or where all is decoded already, in this process."""
    if workers == 0 or (images.cache is not None and images.cache.complete):
        yield from map(images.read, groups)
        return
    sizes: deque[int] = deque()

    def chunks() -> Iterator[list[int]]:
        for group in groups:
            parts = group.split(CHUNK)
            sizes.append(len(parts))
            yield from (part.tolist() for part in parts)

    loader: DataLoader[Read] = DataLoader(
        _Decoder(images),
        batch_size=None,
        sampler=chunks(),
        num_workers=workers,
        prefetch_factor=AHEAD,
        collate_fn=_unchanged,
        worker_init_fn=_start_worker,
        multiprocessing_context="fork" if "fork" in multiprocessing.get_all_start_methods() else None,
    )
    read = iter(loader)
    while (first := next(read, None)) is not None:
        parts = [first, *islice(read, sizes.popleft() - 1)]
        unreadable = {row: reason for part in parts for row, reason in part.unreadable.items()}
        images.unreadable |= unreadable
        yield Read(torch.cat([part.pixels for part in parts]), torch.cat([part.rows for part in parts]), unreadable)


class _Decoder(Dataset[Read]):
    def __init__(self, images: Images) -> None:
        self.images = images

    def __getitem__(self, rows: list[int]) -> Read:
        return self.images.read(torch.tensor(rows), threads=False)


def _unchanged(chunk: Any) -> Any:
    return chunk


def _start_worker(number: int) -> None:
    """Leave signals to the training process: Ctrl-C reaches all of a terminal's processes at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
