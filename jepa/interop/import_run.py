"""Import weights of other libraries as a run folder, which all commands accept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jepa.checkpoints import to_tensors
from jepa.config import Config, InputError
from jepa.interop.load import read_pretrained
from jepa.runs import Run

__all__ = ["import_run"]


def import_run(path: str, out: Path, source: str | None = None, num_heads: int | None = None) -> tuple[Run, Config]:
    """Write a run folder with the weights of a file or folder of another library; return it and its config.

    `source` is the value of `--data` that evaluations of the run use by default; see `read_pretrained` for the rest.
    Raises `InputError` if the weights cannot be read, or if the folder is in use.
    """
    run = Run(out)
    run.check_unused()
    pretrained = read_pretrained(path, num_heads)
    if (Path(path).expanduser() / "checkpoints").is_dir():
        raise InputError(f"{path} is a run folder already; evaluate or export it, or start from it with --init")
    data = pretrained.config.data
    if source is not None:
        data = dataclasses.replace(data, source=source)
    config = dataclasses.replace(pretrained.config, name=run.path.resolve().name, data=data)
    with run.lock():
        Run.create(run.path, config)
        run.save("last", to_tensors(pretrained.objective), step=config.steps, seconds=0.0, origin=str(path))
    return run, config
