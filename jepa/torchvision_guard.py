"""Lets torchvision, and so timm, be imported where its wheel and torch's do not match.

The package index serves torchvision linked to CUDA. Beside a CPU-only torch its extension does not load and
`import torchvision` dies with "operator torchvision::nms does not exist". Declaring the two operators that its Python
code refers to is enough for everything but `torchvision.io` and `torchvision.ops`, which this project does not use.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import torch

__all__ = ["guard", "is_mismatched"]

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: torch.library.Library | None = None  # the declarations live as long as this object


def is_mismatched(torch_cuda: str | None, torchvision_version: str | None) -> bool:
    """Say whether a torchvision linked to CUDA sits beside a torch without it."""
    return torch_cuda is None and torchvision_version is not None and "+cu" in torchvision_version


def installed_version() -> str | None:
    """Read torchvision's full version without importing it; None where it is not installed."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    version_file = Path(spec.origin).with_name("version.py")
    match = re.search(r"__version__ = ['\"](.+?)['\"]", version_file.read_text()) if version_file.exists() else None
    return match.group(1) if match else None


def guard() -> bool:
    """Declare the missing operators once, where they are missing; call before the first import of torchvision or timm.

    Returns whether the guard is in place.
    """
    global _library
    if _library is None and is_mismatched(torch.version.cuda, installed_version()):
        _library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _library.define(name + _SIGNATURE)
    return _library is not None
