"""Data sources, image decoding, and batches in an order that is a pure function of the step."""

from jepa.data.dataset import DECODER, DecodedBatch, ImageDataset, cores, open_dataset, open_splits, progress
from jepa.data.index import EncodedImages, SplitIndex, evenly_spaced
from jepa.data.loader import Batch, BrokenFileLog, Loader, max_unreadable, split_holdout, step_order
from jepa.data.sources.base import CACHE, Source, cache_beside, open_source
from jepa.data.workers import auto_workers, read_ahead

__all__ = [
    "CACHE",
    "DECODER",
    "Batch",
    "BrokenFileLog",
    "DecodedBatch",
    "EncodedImages",
    "ImageDataset",
    "Loader",
    "Source",
    "SplitIndex",
    "auto_workers",
    "cache_beside",
    "cores",
    "evenly_spaced",
    "max_unreadable",
    "open_dataset",
    "open_source",
    "open_splits",
    "progress",
    "read_ahead",
    "split_holdout",
    "step_order",
]
