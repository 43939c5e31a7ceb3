"""Read weights of other libraries: tensors by name, never code."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from jepa.checkpoints import is_finite
from jepa.config import InputError
from jepa.config.hints import shown
from jepa.files import printable

__all__ = ["check_names", "load_strictly", "read_folder_tensors", "read_json_object", "read_pickle", "strip_prefixes"]

WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")  # prefixes that DistributedDataParallel and torch.compile add
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
FILES = ("model.safetensors", "pytorch_model.bin")
MAX_NAMED = 3  # number of names in an error message


def read_pickle(path: Path) -> Any:
    """Read a file of `torch.save` on the CPU. Only tensors and plain values are read; code in it is never executed.

    Raises `InputError` if the file is damaged, or contains anything else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the version of pickle, which does not matter
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"Unsupported (?:global|class): (?:GLOBAL )?([\w.]+)|Trying to \w+ (\S+)", str(error)):
            raise InputError(
                f"{path} contains {found[1] or found[2]}, not only tensors, and code in files is never executed; save "
                "a state_dict with torch.save"
            ) from error
        raise _unreadable(path, str(error).partition("error:")[2].strip().partition("\n")[0]) from error
    except Exception as error:  # damaged files can raise almost any exception
        raise _unreadable(path, error) from error


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a file of safetensors. Raises `InputError` if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception | str) -> InputError:
    reason = printable(" ".join(str(error).split())[:200]).rstrip(".")
    details = f" ({reason})" if " " in reason else ""  # some errors are a number or a single letter
    return InputError(
        f"{path} is not a file of tensors that torch.save or safetensors has written, or it is truncated or damaged"
        f"{details}; give a run, an exported folder or a checkpoint, or download it again"
    )


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises `InputError` if it is missing or damaged."""
    try:
        values = json.loads(path.read_bytes().decode())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}; restore it from a copy") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must contain a JSON object, got {shown(values)}")
    return values


def read_folder_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the weights in a folder of transformers or timm, in one file or in several with an index.

    Raises `InputError` if there are none, or if they are damaged.
    """
    for name in INDEXES:
        if (folder / name).is_file():
            files = read_json_object(folder / name).get("weight_map")
            if not isinstance(files, dict) or not all(_is_file_name(file) for file in files.values()):
                raise InputError(f"{folder / name} must have a weight_map of file names; download the folder again")
            parts = [_read_tensors(folder / file) for file in sorted(set(files.values()))]
            tensors = {key: tensor for part in parts for key, tensor in part.items()}
            check_names(tensors, files, str(folder))
            return tensors
    for name in FILES:
        if (folder / name).is_file():
            return _read_tensors(folder / name)
    raise InputError(f"{folder} has no weights; it must contain {' or '.join(FILES)}")


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from a file of safetensors or of `torch.save`."""
    return read_safetensors(path) if path.suffix == ".safetensors" else as_tensors(read_pickle(path), str(path))


def as_tensors(values: Any, where: str) -> dict[str, Tensor]:
    """Return a state dict as tensors by name. Raises `InputError` if it is something else."""
    if not isinstance(values, Mapping) or not values or not all(isinstance(v, Tensor) for v in values.values()):
        raise InputError(f"{where} must contain tensors by name (a state_dict), got {_kind(values)}")
    return strip_prefixes({str(name): tensor for name, tensor in values.items()})


def _kind(values: Any) -> str:
    if isinstance(values, Mapping):
        other = next((name for name, value in values.items() if not isinstance(value, Tensor)), None)
        return "no tensors" if other is None else f"{type(values[other]).__name__} at {shown(str(other))}"
    return type(values).__name__


def strip_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that DistributedDataParallel (`module.`) and torch.compile (`_orig_mod.`) add to names."""
    return {WRAPPERS.sub("", name).replace("._orig_mod.", "."): tensor for name, tensor in tensors.items()}


def check_names(given: Iterable[str], expected: Iterable[str], where: str) -> None:
    """Raise `InputError` if names of tensors are missing or unexpected; `where` is what they were read from."""
    given, expected = set(given), set(expected)
    for names, text in ((expected - given, "lacks"), (given - expected, "has the unexpected")):
        if names:
            listed = ", ".join(shown(name).strip("'") for name in sorted(names)[:MAX_NAMED])
            more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
            raise InputError(
                f"{where} {text} key{'s' if len(names) > 1 else ''} {listed}{more}, so its weights do not match this "
                "architecture; give the file that was made for it"
            )


def load_strictly(
    module: nn.Module, tensors: Mapping[str, Tensor], where: str, name_of: Callable[[str], str] = str
) -> None:
    """Load tensors into a module; `name_of` returns the name in `tensors` of a name in the module.

    Raises `InputError` if a name or shape differs, or if a value is not finite.
    """
    own = {name_of(name): name for name in module.state_dict()}
    shapes = {name_of(name): tensor.shape for name, tensor in module.state_dict().items()}
    check_names(tensors, own, where)
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            raise InputError(
                f"{where} has {name} of shape {list(tensor.shape)}, but this architecture needs {list(shapes[name])}"
            )
        if not is_finite(tensor):
            raise InputError(f"{where} has NaN or infinite values in {name}; download it again")
    module.load_state_dict({own[name]: tensor for name, tensor in tensors.items()})
