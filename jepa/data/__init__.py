"""Data sources, image decoding, and batches in an order that is a pure function of the step."""

from jepa.data.dataset import DECODER, DecodedBatch, ImageDataset, cores, open_dataset, progress
from jepa.data.index import EncodedImages, SplitIndex, evenly_spaced
from jepa.data.loader import Batch, BrokenFileLog, Loader, split_holdout, step_order
from jepa.data.sources.base import CACHE, Source, open_source
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
    "cores",
    "evenly_spaced",
    "open_dataset",
    "open_source",
    "progress",
    "read_ahead",
    "split_holdout",
    "step_order",
]
