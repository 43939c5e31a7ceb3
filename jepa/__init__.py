"""image-jepa: train, evaluate, inspect and ship Joint-Embedding Predictive Architectures on your own images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jepa.version import __version__

if TYPE_CHECKING:
    from jepa.backbones import Encoder

__all__ = ["__version__", "load"]


def load(path: str, encoder: str | None = None, code: str | None = None) -> Encoder:
    """Load a trained encoder in evaluation mode.

    `path` is a run folder (`runs/demo`) or one of its checkpoints. `encoder` is `target` (the default) or `context`, or
    `encoder` for a method without a teacher. `code` is the Python file that defines the parts of the experiment, if it
    was trained with one; the file is run.

    The encoder maps uint8 or [0, 1] float images (B, C, H, W) to `Tokens`; `encoder.embed(images)` returns one averaged
    vector (B, D) for each image. Raises `InputError` if the run or the checkpoint cannot be read.
    """
    from jepa.config import load_code
    from jepa.runs import load_encoder  # torch is imported on the first load, not with the package

    if code is not None:
        load_code(code)
    return load_encoder(path, encoder)
