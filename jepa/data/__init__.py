"""Data: open a source, decode it, hand out batches in an order that is a pure function of the step."""

from jepa.data.images import EncodedImages, HeldImages, Images
from jepa.data.loader import Batch, Loader, split_holdout, step_order
from jepa.data.sources import open_dataset

__all__ = [
    "Batch",
    "EncodedImages",
    "HeldImages",
    "Images",
    "Loader",
    "open_dataset",
    "split_holdout",
    "step_order",
]
