"""Workaround that makes torchvision (and therefore timm) importable if its wheel does not match the torch wheel.

The torchvision wheels on PyPI are built for CUDA. With a CPU-only torch, their extension cannot be loaded, and
`import torchvision` raises "operator torchvision::nms does not exist". Declaring the two operators that its Python code
uses is enough, except for `torchvision.io` and `torchvision.ops`, which this project does not use.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import torch

__all__ = ["guard", "is_mismatched"]

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: torch.library.Library | None = None  # keeps the operators declared


def is_mismatched(torch_cuda: str | None, torchvision_version: str | None) -> bool:
    """Return whether torchvision was built with CUDA and torch without."""
    return torch_cuda is None and torchvision_version is not None and "+cu" in torchvision_version


def installed_version() -> str | None:
    """Return the full version of torchvision without importing it. Returns None if it is not installed."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    version_file = Path(spec.origin).with_name("version.py")
    match = (
        re.search(r"__version__ = ['\"](.+?)['\"]", version_file.read_text(encoding="utf-8"))
        if version_file.exists()
        else None
    )
    return match.group(1) if match else None


def guard() -> bool:
    """Return whether the wheels are mismatched; if so, declare the missing operators.

    Must be called before torchvision or timm is first imported. Further calls have no effect.
    """
    global _library
    if _library is None and is_mismatched(torch.version.cuda, installed_version()):
        _library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _library.define(name + _SIGNATURE)
    return _library is not None
