"""Checkpoints: the state of an objective and its optimizer in a safetensors file, with a checksum."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from jepa.config import InputError
from jepa.files import atomic_write
from jepa.objectives import Objective

__all__ = ["is_finite", "load_tensors", "read_checkpoint", "to_tensors", "write_checkpoint"]

METADATA_KEYS = {"3": "metadata", "2": "metadata", "1": "facts"}  # in the header of a checkpoint, by its format
FORMAT = next(iter(METADATA_KEYS))  # 1 is version 0.1.0; 1 and 2 have no checksum
OPTIMIZER_TENSOR = re.compile(r"optimizer\.(\d+)\.(\w+)")
ADAMW_STATE, MUON_STATE = {"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"}


def write_checkpoint(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a checkpoint. It replaces an earlier one only after it has been read back and verified.

    `metadata` are JSON values that are stored in its header. Raises `OSError` or `SafetensorError` if the disk is full,
    and `InputError` if the disk returns something else than what was written.
    """
    text = json.dumps(metadata)
    header = {"format": FORMAT, METADATA_KEYS[FORMAT]: text, "checksum": checksum(tensors, FORMAT + text)}
    with atomic_write(path) as temporary:
        mode = temporary.stat().st_mode
        save_file(tensors, temporary, header)
        temporary.chmod(mode)  # safetensors creates private files, which other users cannot read
        read_checkpoint(temporary)


def checksum(tensors: dict[str, Tensor], text: str) -> str:
    """Return a hash of the names, types, shapes and CRC-32 of tensors, and of a text."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        content = zlib.crc32(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} {content}\n".encode())
    return digest.hexdigest()


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the metadata of a checkpoint.

    Raises `InputError` if it is damaged: if it differs in any bit from what was written, or its weights are not finite.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error)) from error
    key = METADATA_KEYS.get(header.get("format", ""))
    if key is None:
        raise InputError(
            f"{path} is not an image-jepa checkpoint, or was written by a newer version: its format is "
            f"{header.get('format')!r:.40}, but {', '.join(sorted(METADATA_KEYS))} are supported"
        )
    text = header.get(key, "")
    has_checksum = header["format"] == FORMAT or "checksum" in header
    if has_checksum and header.get("checksum") != checksum(tensors, header["format"] + text):
        raise _damaged(path, "its content does not match its checksum")
    try:
        metadata = json.loads(text)
        int(metadata["step"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, "its header has no valid metadata") from error
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise _damaged(path, f"{name} contains NaN or infinite values")
    return tensors, metadata


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a checkpoint without reading its tensors. Raises `InputError` if they are damaged."""
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
        metadata: dict[str, Any] = json.loads(header[METADATA_KEYS[header["format"]]])
    except (OSError, SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise _damaged(path, "its header has no valid metadata") from error
    return metadata


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor has no NaN or infinite values."""
    if not tensor.is_floating_point() or bool(tensor.sum().isfinite()):  # the sum is fast, but may overflow
        return True
    return bool(tensor.isfinite().all())


def _damaged(path: Path, reason: str) -> InputError:
    others = [other.name for other in sorted(path.parent.glob("[!.]*.safetensors")) if other != path]
    rest = f"; use {' or '.join(others)} in the same folder instead" if others else "; restore it from a copy"
    return InputError(f"the checkpoint {path} is damaged: {reason}{rest}, or train the run again in another folder")


def to_tensors(objective: Objective, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
    """Return the state of an objective, and of an optimizer, as tensors on the CPU."""
    tensors = {f"model.{name}": tensor.detach() for name, tensor in objective.state_dict().items()}
    if optimizer is not None:
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if isinstance(value, Tensor):  # Muon's state also has a flag, which it derives from the shape
                    tensors[f"optimizer.{index}.{name}"] = value
    return {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}


def load_tensors(
    tensors: dict[str, Tensor], objective: Objective, optimizer: torch.optim.Optimizer | None = None, *, where: Path
) -> None:
    """Load the tensors of a checkpoint, which `where` names, into an objective and an optimizer.

    Raises `InputError` if the names or shapes differ from those of the objective, or if a state of the optimizer is
    missing.
    """
    model = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    own = objective.state_dict()
    different = [name for name, tensor in model.items() if name in own and own[name].shape != tensor.shape]
    if not different:
        missing, unexpected = objective.load_state_dict(model, strict=False)
        different = [*missing, *unexpected]
    if different:
        name = different[0]
        shapes = [list(part[name].shape) if name in part else "missing" for part in (model, own)]
        raise InputError(
            f"the checkpoint {where} does not match this architecture: {name} is {shapes[0]} there and {shapes[1]} "
            "in this config; resume with the run's own config, or start a new run"
        )
    if optimizer is not None:
        load_optimizer(tensors, optimizer, where)


def load_optimizer(tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer, where: Path) -> None:
    """Load the state of an optimizer from the tensors of a checkpoint. Raises `InputError` if it is incomplete."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {index: {} for index in range(len(parameters))}
    for name, tensor in tensors.items():
        if found := OPTIMIZER_TENSOR.fullmatch(name):
            state.setdefault(int(found[1]), {})[found[2]] = tensor
    for index, moments in state.items():
        complete = index < len(parameters) and (moments.keys() >= ADAMW_STATE or moments.keys() >= MUON_STATE)
        if not complete or any(moment.shape not in (parameters[index].shape, ()) for moment in moments.values()):
            raise InputError(
                f"the checkpoint {where} has no complete state of the optimizer for parameter {index} of "
                f"{len(parameters)}; resume from a complete checkpoint, or start a new run"
            )
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, moments in optimizer.state.items():
        for key, moment in moments.items():
            if moment.shape == parameter.shape:  # fused optimizers require the memory layout of the parameter
                moments[key] = torch.empty_like(parameter).copy_(moment)
