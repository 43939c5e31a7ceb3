"""Load trained models from run folders and from the files and folders of other libraries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jepa.config import Config, InputError
from jepa.distributed import pick_device
from jepa.interop.model import Model
from jepa.objectives import Objective
from jepa.runs import Run, load_objective

__all__ = ["Pretrained", "load_model", "read_pretrained"]


@dataclass(frozen=True)
class Pretrained:
    """A trained objective and its config, read from a run folder or from weights of another library."""

    config: Config
    objective: Objective
    metadata: dict[str, Any]  # of the checkpoint: its step, and what is known of its origin
    origin: str  # what was read, for messages


def load_model(path: str | Path, encoder: str | None = None, device: str = "auto") -> Model:
    """Load a model, see `jepa.load`."""
    pretrained = read_pretrained(path)
    encoders = pretrained.objective.encoders()
    if encoder is not None and encoder not in encoders:
        raise InputError(f"there is no encoder '{encoder}'; {pretrained.origin} has {', '.join(encoders)}")
    objective = pretrained.objective.to(pick_device(device))
    chosen = objective.encoders()[encoder] if encoder else objective.main_encoder
    return Model(chosen, pretrained.config.data, objective, pretrained.origin)


def read_pretrained(path: str | Path) -> Pretrained:
    """Read a trained model from a run folder or one of its checkpoints.

    Raises `InputError` if it cannot be read, or if its weights do not match its architecture exactly.
    """
    given = Path(path).expanduser()
    if given.suffix == ".safetensors" and given.parent.name == "checkpoints":
        return _from_run(Run.open(given.parent.parent), given.stem)
    return _from_run(Run.open(given), "last")


def _from_run(run: Run, checkpoint: str) -> Pretrained:
    objective, _, metadata = load_objective(run, checkpoint)
    return Pretrained(run.config, objective, metadata, f"the run {run.path}")
