"""The `jepa` command: one short function for each sub-command, with heavy imports inside it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from jepa.cli.arguments import description
from jepa.cli.classify import classify
from jepa.cli.embeddings import duplicates, embed, search
from jepa.cli.evaluation import compare, evaluate, plot
from jepa.cli.interop import export, import_
from jepa.cli.lists import data, recipes
from jepa.cli.training import finetune, train
from jepa.config import InputError, suggest
from jepa.config.arguments import expand_home
from jepa.config.errors import exit_with
from jepa.threads import adapt_threads
from jepa.version import __version__

__all__ = ["COMMANDS", "main"]

COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "finetune": finetune,
    "classify": classify,
    "evaluate": evaluate,
    "plot": plot,
    "compare": compare,
    "embed": embed,
    "search": search,
    "duplicates": duplicates,
    "export": export,
    "import": import_,
    "data": data,
    "recipes": recipes,
}


USE_TORCH = ("train", "finetune", "classify", "evaluate", "plot", "embed", "search", "duplicates", "export", "import")
"""Commands whose speed depends on the threads of torch."""


def _help() -> str:
    lines = [
        "usage: jepa COMMAND ...",
        "",
        "Train and evaluate Joint-Embedding Predictive Architectures on images.",
        "",
    ]
    for name, command in COMMANDS.items():
        what, usage = description(command)
        lines += [f"  {name:<10} {what}", f"  {'':<10} {usage}", ""]
    return "\n".join([*lines, "'jepa COMMAND --help' explains a command and its settings."])


def _run(name: str, arguments: list[str]) -> int:
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"image-jepa {__version__}")
        return 0
    if name not in COMMANDS:
        raise InputError(f"there is no command '{name}'{suggest(name, COMMANDS)} (commands: {', '.join(COMMANDS)})")
    if name in USE_TORCH and not {"-h", "--help"} & set(arguments):
        adapt_threads()
    return COMMANDS[name](arguments)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a sub-command and exit; errors in the arguments are printed as one sentence, with exit code 2."""
    name, *rest = expand_home(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    exit_with(lambda: _run(name, rest))
