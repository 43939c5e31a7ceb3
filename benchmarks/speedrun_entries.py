"""Entries of the speedrun: the command line of `benchmarks/speedrun.py`."""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from speedrun_records import BUDGETS, TRACKS, budget_list, track_list

from jepa.config import InputError, recipe, require
from jepa.config.arguments import CODE_FILE

__all__ = ["K_MEANS", "RECORDS", "ROOT", "Entry", "build_parser", "parse_entry"]

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "experiments" / "speedrun"
K_MEANS = "k-means"  # the entry without a network
CONTROLLED_FLAGS = frozenset(
    ("--data", "--data.source", "--run", "--config", "--resume", "--device", "--eval-every", "--seed", "--help", "-h")
)
"""Flags of `jepa train` that the speedrun sets."""


@dataclass(frozen=True)
class Entry:
    """What is trained, and for which budget and track."""

    name: str
    text: str  # a recipe, FILE.py, FILE.py:RECIPE, or k-means
    code: Path | None  # the file with the entry's own components
    flags: tuple[str, ...]  # of `jepa train`
    minutes: int
    track: str
    labels: bool  # whether it is a reference that uses labels
    seeds: tuple[int, ...]
    source: str
    record: Path  # JSON file of the results
    keep: Path | None  # folder that keeps the runs

    @property
    def device(self) -> str:
        """The device of the budget."""
        return BUDGETS[self.minutes]

    @property
    def train_arguments(self) -> list[str]:
        """The arguments of `jepa train` that the author chose, with the absolute path of the file."""
        return [self._with_code(argument, str(self.code)) for argument in (self.text, *self.flags)]

    @property
    def command(self) -> str:
        """The command that repeats the entry, without paths of this machine."""
        code = self.code and (self.code.relative_to(ROOT) if self.code.is_relative_to(ROOT) else self.code.name)
        text, *flags = (self._with_code(argument, str(code)) for argument in (self.text, *self.flags))
        parts = ["python", "benchmarks/speedrun.py", text, "--minutes", self.minutes, "--track", self.track]
        parts += ["--seeds", *self.seeds, *(["--labels"] if self.labels else [])]
        parts += ["--name", self.name] if self.name != default_name(self.text) else []
        parts += ["--data", "PATH"] if os.sep in self.source or Path(self.source).exists() else []
        return shlex.join(map(str, [*parts, *(["--", *flags] if flags else [])]))

    def _with_code(self, argument: str, code: str) -> str:
        """Replace the path of the file in an argument."""
        given = code_path(self.text, self.flags)
        return argument.replace(given, code, 1) if given and given in argument else argument


def default_name(text: str) -> str:
    """Return the name of an entry: its recipe, or its file without the extension."""
    is_file = CODE_FILE.fullmatch(text)
    return (is_file[2] or Path(is_file[1]).stem) if is_file else text


def code_path(text: str, flags: Sequence[str]) -> str:
    """Return the path of the entry's file as it was given, or an empty string."""
    is_file = CODE_FILE.fullmatch(text)
    values = [value for flag, value in itertools.pairwise(flags) if flag == "--code"]
    values += [flag.removeprefix("--code=") for flag in flags if flag.startswith("--code=")]
    return is_file[1] if is_file else next(iter(values), "")


class Parser(argparse.ArgumentParser):
    """Raises `InputError` instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        """Report invalid arguments."""
        raise InputError(f"{message}; see python benchmarks/speedrun.py --help")


def build_parser(description: str | None) -> Parser:
    """Build the parser of the arguments before `--`."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entry", nargs="?", help=f"a recipe, FILE.py[:RECIPE], or {K_MEANS}")
    parser.add_argument("--minutes", type=int, default=10, help=f"the budget: {budget_list()}")
    parser.add_argument("--track", help=f"{track_list()}; by default movements for recipes, and any for files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", default="cifar10", help="CIFAR-10 with its labels: cifar10, or a local source")
    parser.add_argument("--labels", action="store_true", help="record a reference that is trained with labels")
    parser.add_argument("--name", help="name of the entry; its recipe or file by default")
    parser.add_argument("--record", type=Path, help="JSON file of the results")
    parser.add_argument("--keep", type=Path, help="folder that keeps the runs instead of a temporary one")
    parser.add_argument("--table", action="store_true", help="rewrite the tables of LEADERBOARD.md and exit")
    parser.add_argument("--curve", action="store_true", help="draw docs/figures/speedrun.png and exit")
    return parser


def parse_entry(arguments: argparse.Namespace, flags: Sequence[str]) -> Entry:
    """Return the entry that the command line describes. Raises `InputError` if an argument is invalid."""
    text = arguments.entry
    require(text is not None, f"no entry is given; pass a recipe, FILE.py, or {K_MEANS}")
    minutes, is_file = arguments.minutes, bool(CODE_FILE.fullmatch(text))
    track = arguments.track or ("any" if is_file else "movements")
    name = arguments.name or default_name(text)
    require(minutes in BUDGETS, f"--minutes must be {budget_list()}, got {minutes}")
    require(track in TRACKS, f"--track must be {track_list()}, got '{track}'")
    require(
        bool(re.fullmatch(r"[\w.-]+", name)), f"--name must consist of letters, digits, '.', '-' and '_', got '{name}'"
    )
    require(len(set(arguments.seeds)) == len(arguments.seeds), f"--seeds must differ, got {arguments.seeds}")
    for flag in flags:
        key = flag.partition("=")[0].replace("_", "-")
        require(key not in CONTROLLED_FLAGS, f"{key} is set by the speedrun and must not follow '--'; remove it")
    if text == K_MEANS:
        require(not flags and not arguments.labels, f"{K_MEANS} has neither flags after '--' nor labels; remove them")
        require(BUDGETS[minutes] == "cpu", f"{K_MEANS} runs on the CPU; choose --minutes 2")
    elif not is_file:
        recipe(text)
    given = code_path(text, flags)
    code = Path(given).absolute() if given else None
    require(code is None or code.is_file(), f"the file {given} does not exist; give the path of a .py file")
    record = arguments.record or RECORDS / f"{name}-{BUDGETS[minutes]}-{minutes}.json"
    require(not record.exists(), f"the record {record} already exists; remove it, or choose another --record or --name")
    return Entry(
        name=name,
        text=text,
        code=code,
        flags=tuple(flags),
        minutes=minutes,
        track=track,
        labels=arguments.labels,
        seeds=tuple(arguments.seeds),
        source=arguments.data,
        record=record,
        keep=arguments.keep,
    )
