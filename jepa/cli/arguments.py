"""What the commands share: their arguments, how they are called, and how they print."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jepa.config.command_line import call
from jepa.config.user_code import load_code
from jepa.files import printable

__all__ = ["Code", "CodeArguments", "RunFolder", "call_command", "description", "show"]


@dataclass(frozen=True)
class CodeArguments:
    """The user code that a run was trained with."""

    code: Path | None = None
    """Python file that defines components of the experiment. The file is executed."""
    allow_changed_code: bool = False
    """Allow a file that has changed since training."""

    def load(self) -> None:
        """Execute the file, if there is one."""
        if self.code is not None:
            load_code(self.code, self.allow_changed_code)


Code = Annotated[CodeArguments, tyro.conf.arg(name="")]
RunFolder = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]


def show(text: str) -> None:
    """Print lines that may contain names of files and classes."""
    print(printable(text, keep="\n"))


def call_command(command: Callable[..., int], described_by: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Call a command with the values that the arguments give to its parameters."""
    _, usage = description(described_by)
    return call(command, arguments, f"jepa {described_by.__name__.rstrip('_')}", usage)


def description(command: Callable[[list[str]], int]) -> tuple[str, str]:
    """Return what a command does, and its usage."""
    what, _, usage = " ".join((inspect.getdoc(command) or "").split()).partition(": ")
    return what, usage.removesuffix(".")
