"""A run folder: config.json, metrics.jsonl, checkpoints/ and evaluation.json, which all other tools read.

All files are written atomically except metrics.jsonl, which grows line by line, so a run stays readable if it is
killed at any moment. A run has one writer at a time, which holds its lock.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from jepa.backbones import Encoder, copy_fitted_layers
from jepa.checkpoints import load_tensors, read_checkpoint, write_checkpoint
from jepa.config import CodeConfig, Config, InputError, suggest
from jepa.config.hints import command
from jepa.config.serialization import flat, from_dict, read_config, to_dict
from jepa.config.user_code import changes_allowed, loaded_code
from jepa.files import Locked, atomic_write, lock, remove_leftovers
from jepa.objectives import Objective, build_objective

__all__ = ["ADJUSTABLE", "Run", "changed_setting", "fresh_objective", "load_encoder", "load_objective"]

ADJUSTABLE = frozenset(
    {"name", "steps", "device", "precision", "compile", "accumulate", "log_every", "eval_every", "save_every"}
    | {"keep_every", "labels_seen"}
    | {"data.source", "data.cache_gb", "data.workers", "data.max_broken"}
)
"""Settings that may change when a run is resumed; any other change would make it a different run."""
KEPT = re.compile(r"step-(\d+)")  # names of checkpoints that `keep_every` keeps
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
            run._remove_leftovers()
        return run

    def _remove_leftovers(self) -> None:
        """Remove temporary files of killed processes: ours, and those of safetensors."""
        for name in ("last", "best", *map(self.kept_name, self.kept_steps())):
            remove_leftovers(self.checkpoint(name))
        for leftover in self.checkpoint().parent.glob(".tmp*"):
            leftover.unlink(missing_ok=True)

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
            near = suggest(run.path.name, (other.parent.name for other in run.path.parent.glob("*/config.json")))
            raise InputError(f"there is no run folder {path}{near or '; pass the folder that was given as --run'}")
        if not run.exists:
            raise InputError(
                f"{path} is not a run folder: it has no config.json; pass the folder that was given as --run"
            )
        return run

    def check_unused(self) -> None:
        """Raise `InputError` if the folder holds a run with a checkpoint, or anything that is not a run."""
        path = self.path
        if self.exists and not self.is_unfinished_start:
            raise InputError(
                f"the run {path} already exists: '{command('evaluate', path)}' evaluates it, '--resume' continues it, "
                f"'--run DIR' trains into another folder, and '{shlex.join(['rm', '-r', str(path)])}' removes it"
            )
        if self.exists:
            return
        if path.exists() and (not path.is_dir() or any(not entry.name.startswith(".") for entry in path.iterdir())):
            raise InputError(f"{path} exists and is not a run folder; choose a different folder with --run DIR")

    @property
    def is_unfinished_start(self) -> bool:
        """Whether the run ended before its first checkpoint, so that training starts again at the first step.

        What there is of it, such as a `best` checkpoint, is kept under another name.
        """
        return not self.checkpoint().is_file() and self._last_logged_step() <= self.config.save_every

    def _last_logged_step(self) -> int:
        return max((record["step"] for record in self.metrics()), default=0)

    def require_checkpoint_of_metrics(self) -> None:
        """Raise `InputError` if the last checkpoint is missing although the run has reached it."""
        if not self.checkpoint().is_file() and not self.is_unfinished_start:
            raise InputError(
                f"{self.checkpoint()} is missing, although the run had reached step {self._last_logged_step():,}; "
                "restore it from a copy, or train into another folder with --run DIR"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run as the only process that trains it, during a `with` block.

        Creates the folder if it is missing, and removes it at the end if nothing was written to it. Raises `InputError`
        if another process holds the run.
        """
        is_new = not self.path.exists()
        if not is_new and not self.path.is_dir():
            raise InputError(f"{self.path} is a file, not a run folder; choose a folder with --run DIR")
        with self.writing():
            self.path.mkdir(parents=True, exist_ok=True)
        try:
            with lock(self.path / ".training.lock"):
                yield
        except Locked as holder:
            raise InputError(
                f"{self.path} is being trained by {holder}; wait until it ends or stop it, or use another folder with "
                "--run DIR"
            ) from holder
        finally:
            if is_new:
                with suppress(OSError):  # it is not empty
                    self.path.rmdir()

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return (self.path / "config.json").is_file()

    @property
    def config(self) -> Config:
        """The config that the run was started with. Raises `InputError` if it needs code that is not loaded."""
        return read_config(self.path / "config.json")

    def checkpoint(self, name: str = "last") -> Path:
        """Return the path of a checkpoint: `last`, `best`, or `step-N` of a kept one."""
        return self.path / "checkpoints" / f"{name}.safetensors"

    @staticmethod
    def kept_name(step: int) -> str:
        """Return the name of the checkpoint that `keep_every` keeps of a step."""
        return f"step-{step}"

    def kept_steps(self) -> list[int]:
        """Return the steps of which a checkpoint was kept, in increasing order."""
        names = (KEPT.fullmatch(path.stem) for path in self.checkpoint().parent.glob("step-*.safetensors"))
        return sorted(int(name[1]) for name in names if name)

    def save(self, name: str, tensors: dict[str, Tensor], **metadata: Any) -> None:
        """Write a checkpoint. `metadata` are JSON values that are stored in its header.

        They are completed by the size and the hash of metrics.jsonl, which `metrics_changed` compares.
        """
        with self.writing():
            write_checkpoint(self.checkpoint(name), tensors, metadata | {"metrics": self._metrics_hash()})

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
        with self.writing(), self._metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    @property
    def _metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def metrics(self) -> list[dict[str, Any]]:
        """Read the records of metrics.jsonl; incomplete and damaged lines are skipped."""
        return [record for _, record in self._metrics_lines()]

    def _metrics_lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Yield each valid line of metrics.jsonl and its record."""
        path = self._metrics_file
        for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if line.endswith(b"\n") and is_record(record):
                yield line, {OLD_METRICS.get(name, name): value for name, value in record.items()}

    def _metrics_hash(self, size: int | None = None) -> tuple[int, str]:
        """Return the size of metrics.jsonl, or of its first `size` bytes, and a hash of them."""
        content = self._metrics_file.read_bytes()[:size] if self._metrics_file.is_file() else b""
        return len(content), hashlib.sha256(content).hexdigest()

    def metrics_changed(self, metadata: dict[str, Any]) -> bool:
        """Return whether metrics.jsonl has changed since a checkpoint with these metadata was saved."""
        size, digest = metadata.get("metrics") or self._metrics_hash()
        return self._metrics_hash(size) != (size, digest)

    def forget_after(self, step: int) -> None:
        """Remove the metrics of steps after `step`, which a resumed run repeats."""
        kept = b"".join(line for line, record in self._metrics_lines() if record["step"] <= step)
        with self.writing(), atomic_write(self._metrics_file) as temporary:
            temporary.write_bytes(kept)

    def set_aside(self) -> list[Path]:
        """Rename the metrics, scores and other checkpoints, if any, before training starts again at the first step.

        Returns their new paths.
        """
        files = [self._metrics_file, self.path / "evaluation.json", self.path / "report.html", self.checkpoint("best")]
        files += [self.checkpoint(self.kept_name(step)) for step in self.kept_steps()]
        renamed = []
        for file in filter(Path.exists, files):
            paths = (file.with_stem(f"{file.stem}-{number}") for number in count(1))
            renamed.append(next(path for path in paths if not path.exists()))
            with self.writing():
                file.rename(renamed[-1])
        return renamed

    def warning(self) -> str | None:
        """Return the last warning of the run, that it has collapsed or diverged, unless a later evaluation had none."""
        text = None
        for record in self.metrics():
            if "warning" in record or "rankme" in record:
                text = record.get("warning")
        return text

    def forget_checkpoints_after(self, step: int) -> None:
        """Remove the best and kept checkpoints of later steps than `step`, which a resumed run repeats."""
        with suppress(InputError):  # there is none, or it is damaged
            if self.load("best")[1]["step"] > step:
                self.checkpoint("best").unlink()
        for kept in self.kept_steps():
            if kept > step:
                self.checkpoint(self.kept_name(kept)).unlink()

    def write_json(self, name: str, values: Any) -> None:
        """Write a JSON file of the run folder."""
        self.write_text(name, json.dumps(values, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the run folder."""
        with self.writing(), atomic_write(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Convert the errors of a full or read-only disk to `InputError`."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            last = self.checkpoint()
            rest = f"; {last} is unchanged: free disk space and continue with --resume" if last.is_file() else ""
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise InputError(f"{self.path} cannot be written: {reason}{rest}") from error


def is_record(value: Any) -> bool:
    """Return whether a JSON value is a record of metrics.jsonl: a step, and numbers and texts by name."""
    return (
        isinstance(value, dict)
        and type(value.get("step")) is int
        and all(isinstance(item, int | float | str) for item in value.values())
    )


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
    `InputError` if the checkpoint is missing, damaged, or was trained with a different config.
    """
    config = run.config
    tensors, metadata = run.load(checkpoint)
    if "config" in metadata and (name := changed_setting(from_dict(Config, metadata["config"]), config)):
        now, before = (flat(part).get(name) for part in (config, metadata["config"]))
        raise InputError(
            f"{run.path / 'config.json'} has {name} = {now}, but the checkpoint was trained with {before}; restore the "
            "setting"
        )
    objective = fresh_objective(config)
    untrained = copy.deepcopy(objective.main_encoder)
    load_tensors(tensors, objective, where=run.checkpoint(checkpoint))
    copy_fitted_layers(untrained, objective.main_encoder)
    return objective, untrained, metadata


def changed_setting(before: Config, now: Config) -> str | None:
    """Return the name of the first setting that differs and makes it a different run, or None.

    A different version of the user code does not count if the user has allowed it.
    """
    old, new = flat(before), flat(now)
    for name in [*old, *new]:
        allowed = name.startswith("code") and now.code is not None and changes_allowed(now.code)
        if name not in ADJUSTABLE and old.get(name) != new.get(name) and not allowed:
            return name
    return None


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
