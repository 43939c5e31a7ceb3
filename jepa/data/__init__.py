"""Data: open a source, decode it, hand out batches in an order that is a pure function of the step."""

from jepa.data.files import Listing
from jepa.data.images import Images, Read, cores, progress
from jepa.data.loader import Batch, Faults, Loader, split_holdout, step_order
from jepa.data.sources import CACHE, open_dataset, open_listing
from jepa.data.stream import auto_workers, stream
from jepa.data.survey import Survey, contact_sheet, look

__all__ = [
    "CACHE",
    "Batch",
    "Faults",
    "Images",
    "Listing",
    "Loader",
    "Read",
    "Survey",
    "auto_workers",
    "contact_sheet",
    "cores",
    "look",
    "open_dataset",
    "open_listing",
    "progress",
    "split_holdout",
    "step_order",
    "stream",
]
