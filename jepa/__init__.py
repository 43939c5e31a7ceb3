"""image-jepa: train, judge, look into and ship Joint-Embedding Predictive Architectures on your own images."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jepa.backbones import Encoder

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: str, encoder: str | None = None) -> Encoder:
    """Load a trained encoder from a run folder, ready to turn images into features.

    `path` is a run folder (`runs/demo`) or one of its checkpoints; `encoder` is `target` (the default) or `context`,
    and `encoder` for a method without a teacher.
    The encoder takes uint8 or [0, 1] float images (B, C, H, W) and returns `Tokens`; `encoder.embed(images)` gives one
    averaged vector (B, D) an image. Raises `InputError` where the run or the checkpoint cannot be read.
    """
    from jepa.runs import load_encoder  # torch is imported on the first load, not with the package

    return load_encoder(path, encoder)
