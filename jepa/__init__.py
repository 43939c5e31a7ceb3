"""image-jepa: train, evaluate, inspect and ship Joint-Embedding Predictive Architectures on your own images."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jepa.version import __version__

if TYPE_CHECKING:
    from jepa.interop import Model, Movement, predict

__all__ = ["Model", "Movement", "__version__", "load", "predict"]


def load(
    path: str,
    encoder: str | None = None,
    *,
    device: str = "auto",
    code: str | None = None,
    num_heads: int | None = None,
) -> Model:
    """Load a trained model in evaluation mode, with its preprocessing and its predictor.

    Args:
        path: a run folder (`runs/demo`) or one of its checkpoints; a checkpoint of the official I-JEPA code (.pth.tar);
            a folder of `IJepaModel` of transformers, of a Vision Transformer or ConvNet of timm, or of
            `jepa export --format safetensors`; or hf:OWNER/NAME.
        encoder: `target` (the default) or `context`, or `encoder` for a method without a teacher.
        device: `cpu`, `cuda`, `cuda:1` or `mps`; by default, a GPU if there is one.
        code: the Python file that defines the parts of the experiment, if it was trained with one. The file is run.
        num_heads: the number of heads in a checkpoint of the official code whose size is not a published one.

    `model.embed(images)` returns one vector (B, D) for each image, `model.tokens(images)` one for each patch, and
    `jepa.predict` uses the predictor; see `Model`. Raises `InputError` if the weights cannot be read, or if a key is
    missing or unexpected.
    """
    from jepa.config import load_code
    from jepa.interop import load_model  # torch is imported on the first load, not with the package

    if code is not None:
        load_code(code)
    return load_model(path, encoder, device, num_heads)


def __getattr__(name: str) -> Any:
    if name in ("Model", "Movement", "predict"):
        return getattr(importlib.import_module("jepa.interop"), name)
    raise AttributeError(f"module 'jepa' has no attribute '{name}'")
