"""Images of a subset, evenly spaced."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from jepa.data import evenly_spaced
from jepa.evaluation.features import Subset

__all__ = ["read_evenly"]


def read_evenly(subset: Subset, count: int, batch_size: int) -> Iterator[Tensor]:
    """Yield batches of up to `count` evenly spaced images (B, C, H, W) of a subset, without unreadable ones."""
    for indices in subset.indices[evenly_spaced(len(subset.indices), count)].split(batch_size):
        decoded = subset.dataset.read(indices)
        if bool(decoded.readable.any()):
            yield decoded.pixels[decoded.readable]
