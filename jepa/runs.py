"""A run folder: config.json, metrics.jsonl, checkpoints/ and evaluation.json, which all other tools read.

All files are written atomically except metrics.jsonl, which grows line by line, so a run stays readable if it is
killed at any moment.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from jepa.backbones import Encoder, copy_fitted_layers
from jepa.config import CodeConfig, Config, InputError
from jepa.config.serialization import read_config, to_dict
from jepa.config.user_code import loaded_code
from jepa.files import atomic_write
from jepa.objectives import Objective, build_objective

__all__ = ["Run", "fresh_objective", "load_encoder", "load_objective", "load_tensors", "to_tensors"]

METADATA_KEYS = {"2": "metadata", "1": "facts"}  # in the header of a checkpoint, by its format; 1 is version 0.1.0
FORMAT = next(iter(METADATA_KEYS))
OLD_METRICS = {"spread": "feature_std"}  # names in metrics.jsonl of version 0.1.0


class Run:
    """One run folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    @classmethod
    def create(cls, path: str | Path, config: Config) -> Run:
        """Create a run folder. It keeps a copy of the user code, if there is any.

        Raises `InputError` if the folder cannot be written.
        """
        run = cls(path)
        with run.writing():
            run.path.mkdir(parents=True, exist_ok=True)
            if config.code is not None:
                run._keep_code(config.code)
        run.write_json("config.json", to_dict(config))
        with run.writing():
            run.checkpoint().parent.mkdir(exist_ok=True)
        return run

    def _keep_code(self, code: CodeConfig) -> None:
        """Copy user code into the run folder. Versions with which earlier steps were trained are kept as well."""
        copy = self.path / "code" / code.file
        copy.parent.mkdir(exist_ok=True)
        content = loaded_code(code).content
        if copy.is_file() and (old := copy.read_bytes()) != content:
            copy.rename(copy.with_stem(f"{copy.stem}-{hashlib.sha256(old).hexdigest()[:8]}"))
        with atomic_write(copy) as temporary:
            temporary.write_bytes(content)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a run folder. Raises `InputError` if `path` is not one."""
        run = cls(path)
        if not run.path.is_dir():
            raise InputError(f"there is no run folder {path}; 'jepa train --run {path}' creates one")
        if not run.exists:
            raise InputError(
                f"{path} is not a run folder: it has no config.json; pass the folder that was given as --run"
            )
        return run

    def check_unused(self) -> None:
        """Raise `InputError` if the folder holds a run or anything else."""
        path = self.path
        if self.exists:
            raise InputError(
                f"the run {path} already exists: 'jepa evaluate {path}' evaluates it, '--resume' continues it, "
                f"'--run DIR' trains into another folder, and 'rm -r {path}' removes it"
            )
        if path.exists() and (not path.is_dir() or any(not entry.name.startswith(".") for entry in path.iterdir())):
            raise InputError(f"{path} exists and is not a run folder; choose a different folder with --run DIR")

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return (self.path / "config.json").is_file()

    @property
    def config(self) -> Config:
        """The config that the run was started with. Raises `InputError` if it needs code that is not loaded."""
        return read_config(self.path / "config.json")

    def checkpoint(self, name: str = "last") -> Path:
        """Return the path of a checkpoint, `last` or `best`."""
        return self.path / "checkpoints" / f"{name}.safetensors"

    def save(self, name: str, tensors: dict[str, Tensor], **metadata: Any) -> None:
        """Write a checkpoint. `metadata` are JSON values that are stored in its header."""
        header = {"format": FORMAT, METADATA_KEYS[FORMAT]: json.dumps(metadata)}
        with self.writing(), atomic_write(self.checkpoint(name)) as temporary:
            save_file(tensors, temporary, header)
            temporary.chmod(0o644)  # safetensors creates private files, which other users cannot read

    def load(self, name: str = "last") -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read the tensors and the metadata of a checkpoint. Raises `InputError` if it is missing or damaged."""
        path = self.checkpoint(name)
        if not path.is_file():
            others = ", ".join(sorted(other.name for other in path.parent.glob("*.safetensors")))
            rest = f"it has {others}" if others else "the run ended before its first one"
            raise InputError(f"{self.path} has no checkpoint {path.name}; {rest}")
        return read_checkpoint(path)

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        with self.writing(), (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Read the records of metrics.jsonl; incomplete lines are skipped."""
        path = self.path / "metrics.jsonl"
        records = []
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            records.append({OLD_METRICS.get(name, name): value for name, value in record.items()})
        return records

    def forget_after(self, step: int) -> None:
        """Remove the metrics of steps after `step`, which a resumed run repeats."""
        lines = [json.dumps(record) + "\n" for record in self.metrics() if record["step"] <= step]
        self.write_text("metrics.jsonl", "".join(lines))

    def forget_best_after(self, step: int) -> None:
        """Remove the best checkpoint if it is of a later step than `step`, which a resumed run repeats."""
        with suppress(InputError):  # there is none, or it is damaged
            if self.load("best")[1]["step"] > step:
                self.checkpoint("best").unlink()

    def write_json(self, name: str, values: Any) -> None:
        """Write a JSON file of the run folder."""
        self.write_text(name, json.dumps(values, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the run folder."""
        with self.writing(), atomic_write(self.path / name) as temporary:
            temporary.write_text(text)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Convert the errors of a full or read-only disk to `InputError`."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            last = self.checkpoint()
            rest = f"; {last} is unchanged: free disk space and continue with --resume" if last.is_file() else ""
            raise InputError(f"{self.path} cannot be written: {error}{rest}") from error


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the metadata of a checkpoint. Raises `InputError` if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (OSError, SafetensorError) as error:
        others = [other.name for other in path.parent.glob("*.safetensors") if other != path]
        rest = f"; try {', '.join(others)} in the same folder" if others else ""
        raise InputError(f"the checkpoint {path} is damaged ({error}){rest}") from error
    if header.get("format") not in METADATA_KEYS:
        raise InputError(
            f"{path} is not an image-jepa checkpoint, or was written by a newer version: its format is "
            f"{header.get('format')}, but {' and '.join(sorted(METADATA_KEYS))} are supported"
        )
    return tensors, json.loads(header[METADATA_KEYS[header["format"]]])


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

    Raises `InputError` if the names or shapes differ from those of the objective.
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
    if optimizer is None:
        return
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, moments in optimizer.state.items():
        for key, moment in moments.items():
            if moment.shape == parameter.shape:  # fused optimizers require the memory layout of the parameter
                moments[key] = torch.empty_like(parameter).copy_(moment)


def fresh_objective(config: Config) -> Objective:
    """Build the objective of a config with the initial weights of its seed.

    Raises `InputError` if the config has no data.mean and data.std.
    """
    if config.data.mean is None:
        raise InputError(
            "the config has no data.mean or data.std, which training adds to the config.json of a run; pass the "
            "config of a trained run"
        )
    with torch.random.fork_rng(devices=[]):  # leaves the caller's generator unchanged
        torch.manual_seed(config.seed)
        return build_objective(config)


def load_objective(run: Run, checkpoint: str = "last") -> tuple[Objective, Encoder, dict[str, Any]]:
    """Load the objective of a run, its main encoder before training, and the metadata of the checkpoint.

    The untrained encoder has the initial weights of the run, and those fitted layers that the checkpoint has. Raises
    `InputError` if the checkpoint is missing, damaged, or of a different architecture.
    """
    config = run.config
    tensors, metadata = run.load(checkpoint)
    objective = fresh_objective(config)
    untrained = copy.deepcopy(objective.main_encoder)
    load_tensors(tensors, objective, where=run.checkpoint(checkpoint))
    copy_fitted_layers(untrained, objective.main_encoder)
    return objective, untrained, metadata


def load_encoder(path: str | Path, encoder: str | None = None, checkpoint: str = "last") -> Encoder:
    """Load a trained encoder, by default the main one, from a run folder or one of its checkpoints, in evaluation mode.

    Raises `InputError` if there is no such run, checkpoint or encoder.
    """
    given = Path(path).expanduser()
    if given.suffix == ".safetensors":
        run, checkpoint = Run.open(given.parent.parent), given.stem
    else:
        run = Run.open(given)
    objective, _, _ = load_objective(run, checkpoint)
    encoders = objective.encoders()
    if encoder is not None and encoder not in encoders:
        raise InputError(f"there is no encoder '{encoder}'; {run.path} has {', '.join(encoders)}")
    return (encoders[encoder] if encoder else objective.main_encoder).eval()
