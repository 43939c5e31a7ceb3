"""A run folder: config.json, metrics.jsonl, checkpoints/ and evaluation.json; all that other tools read.

Every file is written to a temporary name and renamed, but for metrics.jsonl, which grows line by line; so a run that is
killed at any moment can be read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from jepa.backbones import Encoder
from jepa.config import Config, InputError
from jepa.config_json import read_config, to_dict
from jepa.objectives import Objective, build_objective

__all__ = ["Run", "fresh_objective", "load_encoder", "pack", "unpack"]

FORMAT = "1"


class Run:
    """One run folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | Path, config: Config) -> Run:
        """Make a new run folder."""
        run = cls(path)
        with run.writing():
            run.path.mkdir(parents=True, exist_ok=True)
        run.write_json("config.json", to_dict(config))
        with run.writing():
            run.checkpoint().parent.mkdir(exist_ok=True)
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a run folder. Raises `InputError` where it is none."""
        run = cls(path)
        if not run.path.is_dir():
            raise InputError(f"there is no run folder {path}; 'jepa train --run {path}' makes one")
        if not run.exists:
            raise InputError(f"{path} is not a run folder: it has no config.json; give the folder that --run named")
        return run

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return (self.path / "config.json").is_file()

    @property
    def config(self) -> Config:
        """The config that the run was started with."""
        return read_config(self.path / "config.json")

    def checkpoint(self, name: str = "last") -> Path:
        """Path of a checkpoint, `last` or `best`."""
        return self.path / "checkpoints" / f"{name}.safetensors"

    def save(self, name: str, tensors: dict[str, Tensor], **facts: Any) -> None:
        """Write a checkpoint; `facts` are JSON values kept in its header."""
        target = self.checkpoint(name)
        header = {"format": FORMAT, "facts": json.dumps(facts)}
        with self.writing():
            self._replace(target, lambda temporary: save_file(tensors, temporary, header))

    def load(self, name: str = "last") -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read a checkpoint's tensors and facts."""
        path = self.checkpoint(name)
        if not path.is_file():
            others = ", ".join(sorted(other.name for other in path.parent.glob("*.safetensors")))
            rest = f"{others} lies there" if others else "the run ended before its first one"
            raise InputError(f"{self.path} has no checkpoint {path.name}; {rest}")
        return read_checkpoint(path)

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        with self.writing(), (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Read the lines of metrics.jsonl; a line cut short by a kill is left out."""
        path = self.path / "metrics.jsonl"
        records = []
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
        return records

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps that a resumed run will do again."""
        lines = [json.dumps(record) + "\n" for record in self.metrics() if record["step"] <= step]
        with self.writing():
            self._replace(self.path / "metrics.jsonl", lambda temporary: temporary.write_text("".join(lines)))

    def write_json(self, name: str, values: Any) -> None:
        """Write a JSON file of the run folder."""
        self.write_text(name, json.dumps(values, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the run folder."""
        with self.writing():
            self._replace(self.path / name, lambda temporary: temporary.write_text(text))

    @staticmethod
    def _replace(target: Path, write: Callable[[Path], Any]) -> None:
        """Write under a temporary name, force it to the disk, then rename it over the target."""
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            write(temporary)
            temporary.chmod(0o644)  # safetensors makes its files private, which a team on one machine cannot use
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn a full or unwritable disk into one sentence."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            kept = self.checkpoint()
            rest = f"; {kept} is as it was: free the disk and continue with --resume" if kept.is_file() else ""
            raise InputError(f"{self.path} cannot be written: {error}{rest}") from error


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and facts of a checkpoint. Raises `InputError` where it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (OSError, SafetensorError) as error:
        others = [other.name for other in path.parent.glob("*.safetensors") if other != path]
        rest = f"; {', '.join(others)} lies beside it" if others else ""
        raise InputError(f"the checkpoint {path} is damaged ({error}){rest}") from error
    if header.get("format") != FORMAT:
        raise InputError(f"{path} is no checkpoint of this program: its header has no format {FORMAT}")
    return tensors, json.loads(header["facts"])


def pack(objective: Objective, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
    """Collect everything that a run is made of as plain tensors."""
    tensors = {f"model.{name}": tensor.detach() for name, tensor in objective.state_dict().items()}
    if optimizer is not None:
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    return {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}


def unpack(
    tensors: dict[str, Tensor], objective: Objective, optimizer: torch.optim.Optimizer | None, where: Path
) -> None:
    """Put the tensors of `pack` back. Raises `InputError` where names or shapes do not fit the objective."""
    model = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    own = objective.state_dict()
    for name in [*own, *model]:
        if name not in model or name not in own or own[name].shape != model[name].shape:
            shapes = [list(part[name].shape) if name in part else "nothing" for part in (model, own)]
            raise InputError(
                f"the checkpoint {where} was made by another architecture: {name} is {shapes[0]} there and {shapes[1]} "
                "in this config; resume with the run's own config, or start a new run"
            )
    objective.load_state_dict(model)
    if optimizer is None:
        return
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, part = name.split(".")
            state.setdefault(int(index), {})[part] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def fresh_objective(config: Config) -> Objective:
    """Build the objective with the weights that a run of this config starts from. Raises `InputError`."""
    if config.data.mean is None:
        raise InputError(
            "config.json has no data.mean and data.std, which training writes into it: it is not that of a trained run"
        )
    with torch.random.fork_rng(devices=[]):  # leaves the caller's generator alone
        torch.manual_seed(config.seed)
        return build_objective(config)


def load_encoder(path: str | Path, encoder: str | None = None, checkpoint: str = "last") -> Encoder:
    """Load a trained encoder, by default the headline one, in eval mode from a run folder or one of its checkpoints."""
    given = Path(path)
    if given.suffix == ".safetensors":
        run, checkpoint = Run.open(given.parent.parent), given.stem
    else:
        run = Run.open(given)
    tensors, _ = run.load(checkpoint)
    objective = fresh_objective(run.config)
    unpack(tensors, objective, None, run.checkpoint(checkpoint))
    encoders = objective.encoders()
    encoder = encoder or next(iter(encoders))
    if encoder not in encoders:
        raise InputError(f"there is no encoder '{encoder}'; {run.path} has {', '.join(encoders)}")
    return encoders[encoder].eval()
