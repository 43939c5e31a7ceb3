"""Decode images ahead of time in worker processes, in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jepa.config.errors import InputError, stop_signals
from jepa.data.dataset import DecodedBatch, ImageDataset, cores

__all__ = ["auto_workers", "read_ahead"]

CHUNK_IMAGES = 32  # number of images that a worker decodes at a time; bounds shared memory and startup latency
CHUNKS_AHEAD = 4  # maximum number of decoded chunks queued per worker
MAX_WORKERS = 16  # maximum default number of decoding processes


def auto_workers(device: torch.device) -> int:
    """Return the default number of decoding processes per training process.

    On a GPU, the cores are divided among the training processes of the machine. On the CPU, the default is 0: decoding
    and training both use all cores, and alternating is faster than running both concurrently.
    """
    if device.type == "cpu":
        return 0
    return max(1, min(MAX_WORKERS, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def read_ahead(dataset: ImageDataset, batches: Iterable[Tensor], workers: int) -> Iterator[DecodedBatch]:
    """Yield the decoded images of each batch of indices (B,), in order.

    Images are decoded in the calling process if `workers` is 0 or all images are cached. Raises `InputError` if a
    worker ends, for example because it is killed for lack of memory.
    """
    if workers == 0 or (dataset.cache is not None and dataset.cache.complete):
        yield from map(dataset.read, batches)
        return
    num_chunks: deque[int] = deque()  # number of chunks of each batch in progress

    def split_batches() -> Iterator[list[int]]:
        for batch in batches:
            chunks = batch.split(CHUNK_IMAGES)
            num_chunks.append(len(chunks))
            yield from (chunk.tolist() for chunk in chunks)

    loader: DataLoader[DecodedBatch] = DataLoader(
        _DecodeChunk(dataset),
        batch_size=None,
        sampler=split_batches(),
        num_workers=workers,
        prefetch_factor=CHUNKS_AHEAD,
        collate_fn=_identity,
        worker_init_fn=_start_worker,
        multiprocessing_context="fork" if "fork" in multiprocessing.get_all_start_methods() else None,
    )
    with unchanged_child_handler():
        decoded = received(iter(loader))
    while (first := next(decoded, None)) is not None:
        chunks = [first, *islice(decoded, num_chunks.popleft() - 1)]
        unreadable = {index: reason for chunk in chunks for index, reason in chunk.unreadable.items()}
        dataset.unreadable |= unreadable
        pixels, indices = torch.cat([chunk.pixels for chunk in chunks]), torch.cat([chunk.indices for chunk in chunks])
        yield DecodedBatch(pixels, indices, unreadable)


def received(chunks: Iterator[DecodedBatch]) -> Iterator[DecodedBatch]:
    """Yield the chunks that workers send. Errors of a dataset in a worker are raised as they are."""
    try:
        yield from chunks
    except (RuntimeError, EOFError, ConnectionError) as error:
        in_worker = str(error).startswith("Caught ")
        # a worker that ends while it sends a chunk breaks the connection before DataLoader notices its end
        if in_worker or (isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker")):
            raise
        reason = str(error) or type(error).__name__
        raise InputError(
            f"a process that decodes images has ended, perhaps for lack of memory ({reason}); "
            "free some memory, or train with fewer --data.workers"
        ) from error


class _DecodeChunk(Dataset[DecodedBatch]):
    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, indices: list[int]) -> DecodedBatch:
        return self.dataset.read(torch.tensor(indices), threads=False)


def _identity(chunk: Any) -> Any:
    return chunk


@contextmanager
def unchanged_child_handler() -> Iterator[None]:
    """Restore the handler of SIGCHLD after the block.

    That of DataLoader raises an error when a worker ends, in the middle of a training step. Without it, DataLoader
    finds out when it waits for a batch, between two steps.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)


def _start_worker(worker_id: int) -> None:
    """Ignore signals that are sent to every process of the group, such as Ctrl-C; the training process handles them.

    SIGTERM ends a worker, because DataLoader sends it. The training process then stops as well, if it was meant.
    """
    for number in stop_signals():
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
