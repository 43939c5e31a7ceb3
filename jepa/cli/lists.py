"""Commands that describe sources of images and recipes."""

from __future__ import annotations

import re
import shutil
import textwrap
from pathlib import Path
from typing import Annotated

import tyro

from jepa.cli.arguments import Code, call_command, show
from jepa.config import RECIPES
from jepa.config.recipes import documentation

__all__ = ["data", "recipes"]

WIDTH = 80  # of the output, in characters


def recipes(arguments: list[str]) -> int:
    """List the recipes with their command, time and measured result: jepa recipes."""

    def command() -> int:
        """List the recipes with their command, time and measured result."""
        columns = min(WIDTH, shutil.get_terminal_size().columns)
        for name, make in RECIPES.items():
            print(name)
            for key, value in documentation(make).items():
                title = "    " if key == "what" else f"    {key + ':':<9} "
                width = columns if key != "command" else len(title + value)  # a command stays one line to copy
                wrapper = textwrap.TextWrapper(width, title, " " * len(title), break_on_hyphens=False)
                print(wrapper.fill(value))
            print()
        return 0

    return call_command(command, recipes, arguments)


def data(arguments: list[str]) -> int:
    """Inspect a source of images and draw a contact sheet: jepa data SOURCE [--all] [--sheet FILE]."""

    def command(
        source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")],
        all: bool = False,
        sheet: Path | None = None,
        *,
        code: Code,
    ) -> int:
        """Count files, classes and duplicates; inspect 2,000 images of each split.

        Args:
            source: Any value of --data: a folder of images, a table of paths, parquet files, hf:OWNER/NAME, cifar10, ….
            all: Inspect all images, and compare all of them with each other.
            sheet: File to write the contact sheet to; runs/contact-sheet-NAME.jpg by default.
            code: Code that defines the source.
        """
        from jepa.data.describe import inspect_source

        code.load()
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(source).resolve().name) if source != "sample" else source
        show(inspect_source(source, sheet or Path("runs") / f"contact-sheet-{name}.jpg", all))
        return 0

    return call_command(command, data, arguments)
