"""How a run was made: its settings, the machine it was evaluated on, and the size of its networks."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from jepa.config.base import BackboneConfig, ObjectiveConfig
from jepa.data.dataset import cores
from jepa.evaluation_run import EvaluationRun

__all__ = ["changed_settings", "describe_machine", "describe_parameters"]


def changed_settings(config: Any, default: Any = None, prefix: str = "") -> dict[str, Any]:
    """Return the settings of a config that differ from the defaults, by their flag names.

    `default` is an instance of the config; if it is of a different class, or None, the settings are compared with the
    defaults of their own class.
    """
    changed: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        standard = getattr(default, field.name) if type(default) is type(config) else default_value(field)
        if is_dataclass(value):
            if isinstance(value, BackboneConfig | ObjectiveConfig) and type(value) is not type(standard):
                changed[prefix + field.name] = value.kind
            changed |= changed_settings(value, standard, f"{prefix}{field.name}.")
        elif value != standard:
            changed[prefix + field.name] = value
    return changed


def default_value(field: Field[Any]) -> Any:
    """Return the default of a field, or MISSING."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def describe_machine(device: torch.device) -> str:
    """Return the processor, its cores available to this process, the GPU if it is used, and the version of PyTorch."""
    model = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):  # Linux only
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    gpu = [torch.cuda.get_device_name(device)] if device.type == "cuda" else []
    count = cores()
    shared = f" of {os.cpu_count()}" if os.cpu_count() != count else ""
    parts = [*gpu, model, f"{count}{shared} core{'s' * (count > 1)}", f"PyTorch {torch.__version__}"]
    return ", ".join(part for part in parts if part)


def describe_parameters(run: EvaluationRun) -> str:
    """Return the numbers of parameters of the encoder, and of everything that was trained."""
    encoder = sum(parameter.numel() for parameter in run.encoders["trained"].parameters())
    trained = sum(parameter.numel() for parameter in run.objective.parameters() if parameter.requires_grad)
    return f"{encoder / 1e6:.2f} M parameters in the encoder, {trained / 1e6:.2f} M trained"
