"""The `jepa` command: one short function for every sub-command, heavy imports inside it."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NoReturn

import tyro

from jepa import __version__
from jepa.config import Config, InputError, suggest, with_backbone
from jepa.config_json import read_config
from jepa.plan import plan
from jepa.recipes import RECIPES, facts, recipe

__all__ = ["main"]

PLANNED = "ijepa-folder"  # the recipe whose settings follow from the images


@dataclass(frozen=True)
class TrainArguments:
    """Train an experiment: a recipe, changed by any of its settings."""

    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")] = "demo"
    """Name of a recipe ('jepa recipes' lists them); it comes first."""
    config: Path | None = None
    """Take the settings from this JSON file (a run's config.json, say) instead of a recipe."""
    run: Path | None = None
    """Folder to train into; runs/NAME by default."""
    resume: bool = False
    """Go on with the run in that folder, from its last checkpoint."""
    backbone: str | None = None
    """Exchange the recipe's backbone for another: vit, energy, convnet. Its settings follow as --backbone.NAME."""
    # without sub-commands for the parts that have alternatives: --backbone has chosen by then
    settings: Annotated[tyro.conf.AvoidSubcommands[Config], tyro.conf.arg(name="")] = field(default_factory=Config)


def train(arguments: list[str]) -> int:
    """Train an experiment into a run folder: jepa train [RECIPE] [--data SOURCE] [--steps N] [--resume] [--help]."""
    arguments = [_spell_out(argument) for argument in arguments]
    first = _first_pass(arguments)
    given = tyro.cli(TrainArguments, args=arguments, prog="jepa train", default=first)
    if given.recipe != first.recipe:
        raise InputError(f"the recipe '{given.recipe}' must come first: jepa train {given.recipe} ...")
    config = given.settings
    path = given.run or Path("runs") / config.name
    if not (given.resume and (path / "config.json").is_file()):
        _refuse_existing(path)

    from jepa.train import Interrupted
    from jepa.train import train as train_run

    try:
        train_run(config, path, given.resume)
    except Interrupted as stop:
        print(f"jepa: {stop}", file=sys.stderr)
        return 128 + stop.signum
    if os.environ.get("RANK", "0") == "0":
        print(f"trained into {path}; judge it with: jepa evaluate {path}")
    return 0


def _spell_out(argument: str) -> str:
    """Turn `--data X` into `--data.source X`, and underscores in the name of a flag into hyphens."""
    name, equals, value = argument.partition("=")
    name = name.replace("_", "-") if name.startswith("--") else name
    return f"{'--data.source' if name == '--data' else name}{equals}{value}"


def _first_pass(arguments: Sequence[str]) -> TrainArguments:
    """Find the config that the flags then change: the recipe's, a file's, or that of the run to resume."""
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    file, run = _value_of("--config", arguments), _value_of("--run", arguments)
    if name is not None and file is not None:
        raise InputError(f"both the recipe '{name}' and --config {file} are given; leave one out")
    config = read_config(file) if file is not None else recipe(name or "demo")
    saved = Path(run or Path("runs") / (_value_of("--name", arguments) or config.name)) / "config.json"
    if "--resume" in arguments and file is None and saved.is_file():
        config = read_config(saved)
    elif name == PLANNED and not {"-h", "--help"} & set(arguments):
        config = _planned(arguments, saved.parent.parent)
    backbone = _value_of("--backbone", arguments)
    if backbone is not None:
        if backbone.startswith("--"):
            raise InputError("--backbone has no value; it takes vit, energy or convnet")
        config = with_backbone(config, backbone)
    return TrainArguments(name or "demo", Path(file) if file else None, settings=config)


def _planned(arguments: Sequence[str], runs: Path) -> Config:
    """Look at the images and the device, choose the settings, and print them with the reasons."""
    source = _value_of("--data.source", arguments)
    if source is None:
        raise InputError(f"{PLANNED} chooses its settings from your images; say which: --data PATH/TO/FOLDER")
    places = [i for i, argument in enumerate(arguments) if argument.split("=")[0] == "--data.image-size"]
    sizes = " ".join(arguments[places[-1] : places[-1] + 3]).replace("=", " ").split()[1:3] if places else []
    numbers = [int(size) for size in sizes if size.isdecimal() and int(size) > 0]

    from jepa.data import CACHE
    from jepa.describe import situation

    now, seen = situation(source, _value_of("--device", arguments) or "auto", runs / CACHE.name)
    config, choices = plan(source, now, (numbers[0], numbers[-1]) if numbers else None)
    if os.environ.get("RANK", "0") == "0":
        print(f"{PLANNED}: {seen}; chosen for that, each can be given otherwise:", file=sys.stderr)
        for choice in choices:
            setting = f"{choice.flag} {choice.value}"
            print(f"  {setting:<26} {choice.reason}", file=sys.stderr)
    return config


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """Read the value of a flag, given as `--flag value` or `--flag=value`; the last one counts."""
    found = None
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        if argument == flag:
            found = following
        elif argument.startswith(flag + "="):
            found = argument.partition("=")[2]
    return found


def _refuse_existing(path: Path) -> None:
    if (path / "config.json").is_file():
        raise InputError(
            f"the run {path} exists already: 'jepa evaluate {path}' shows what it learned, '--resume' continues it, "
            f"'--run DIR' trains into another folder, and 'rm -r {path}' makes room for a new one"
        )
    if path.exists() and (not path.is_dir() or any(not entry.name.startswith(".") for entry in path.iterdir())):
        raise InputError(f"{path} exists and is not a run folder; choose another with --run DIR")


def evaluate(arguments: list[str]) -> int:
    """Judge a run, print the table, write a page: jepa evaluate RUN [--data SOURCE] [--full] [--json]."""

    def command(
        run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")],
        data: str | None = None,
        full: bool = False,
        json: bool = False,
    ) -> int:
        """Judge the frozen encoders of a run beside the same encoder untrained and raw pixels.

        Writes evaluation.json and report.html, a page that needs nothing else, into the run folder.

        Args:
            run: The run folder.
            data: Judge on this source instead of the one it was trained on.
            full: Also score PCA of pixels, k-means of patches, and the same network trained with labels for as many
                steps, which takes as long as the run did.
            json: Print evaluation.json, which is written either way, and nothing else on standard output.
        """
        from jepa.baselines import baselines
        from jepa.evaluate import as_text, judge_subject
        from jepa.report import write_report
        from jepa.subject import Subject

        subject = Subject.open(run, data)
        result = judge_subject(subject, baselines if full else None)
        page = write_report(subject, result)
        shown = f"{as_text(result, run)}\n\nA page that shows it: {page}"
        print((run / "evaluation.json").read_text().rstrip() if json else shown)
        return 0

    return tyro.cli(command, args=arguments, prog="jepa evaluate")


def plot(arguments: list[str]) -> int:
    """Draw figures of a run: jepa plot RUN [masks|curves|attention|dimension|umap|spectrum|saccades]."""

    def command(
        run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")],
        figure: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="FIGURE")] = None,
        out: Path | None = None,
        patch: tuple[int, int] | None = None,
        data: str | None = None,
    ) -> int:
        """Draw one figure of a run, or all that it has, into its folder `figures`.

        Args:
            run: The run folder.
            figure: masks, curves, attention, dimension, umap, spectrum or saccades; all without it.
            out: Where the one figure is written instead; the ending says how: .png, .pdf, .svg.
            patch: Whose attention is drawn: row and column, from 0; the middle by default.
            data: Draw for the images of this source instead of the one it was trained on.
        """
        from jepa.figures import draw_into

        for path in draw_into(run, figure, out, patch, data):
            print(path)
        return 0

    return tyro.cli(command, args=arguments, prog="jepa plot")


def compare(arguments: list[str]) -> int:
    """Put judged runs side by side, seeds together: jepa compare RUN RUN ... [--figure FILE]."""

    def command(
        runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")],
        figure: Path = Path("compare.png"),
    ) -> int:
        """Print a table of runs that 'jepa evaluate' has judged, and draw it.

        Runs that differ by their seed alone are one row: mean and standard deviation.

        Args:
            runs: The run folders.
            figure: Where the figure is written; the ending says how: .png, .pdf, .svg.
        """
        from jepa.compare import compare as compare_runs

        print(compare_runs(runs, figure))
        print(f"\nfigure: {figure}")
        return 0

    return tyro.cli(command, args=arguments, prog="jepa compare")


def recipes(arguments: list[str]) -> int:
    """List the recipes with command, time and measured result: jepa recipes."""

    def command() -> int:
        """List the recipes with their command, time and measured result."""
        for name, make in RECIPES.items():
            print(f"{name}\n    {facts(make)['what']}")
            for key, value in facts(make).items():
                if key != "what":
                    print(f"    {key + ':':<9} {value}")
            print()
        return 0

    return tyro.cli(command, args=arguments, prog="jepa recipes")


def data(arguments: list[str]) -> int:
    """Describe a source of images and draw a contact sheet: jepa data SOURCE [--all] [--sheet FILE]."""

    def command(
        source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")],
        all: bool = False,
        sheet: Path | None = None,
    ) -> int:
        """Count the images and classes of a source, and look at 2,000 images: sizes, colours, broken files, duplicates.

        Args:
            source: What --data takes: a folder of images, a table of paths, parquet files, hf:OWNER/NAME, cifar10, ….
            all: Look at every image.
            sheet: Where the contact sheet is written; runs/contact-sheet-NAME.jpg by default.
        """
        from jepa.describe import describe

        name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(source).resolve().name) if source != "sample" else source
        print(describe(source, sheet or Path("runs") / f"contact-sheet-{name}.jpg", all))
        return 0

    return tyro.cli(command, args=arguments, prog="jepa data")


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "evaluate": evaluate,
    "plot": plot,
    "compare": compare,
    "data": data,
    "recipes": recipes,
}


def _help() -> str:
    lines = ["usage: jepa COMMAND ...", "", "Train and judge Joint-Embedding Predictive Architectures on images.", ""]
    for name, command in COMMANDS.items():
        what, _, usage = (inspect.getdoc(command) or "").partition(": ")
        lines += [f"  {name:<10} {what}", f"  {'':<10} {usage.rstrip('.')}", ""]
    return "\n".join([*lines, "'jepa COMMAND --help' explains a command and its settings."])


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a sub-command; what the user gave wrongly ends in one sentence and exit code 2."""
    command, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        if command in ("-h", "--help"):
            print(_help())
            code = 0
        elif command == "--version":
            print(f"image-jepa {__version__}")
            code = 0
        elif command not in COMMANDS:
            raise InputError(f"there is no command '{command}'{suggest(command, COMMANDS)} ({', '.join(COMMANDS)})")
        else:
            code = COMMANDS[command](rest)
    except InputError as error:
        print(f"jepa: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("jepa: interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # `jepa train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        print(f"jepa: {error.filename or 'a file'} cannot be used: {error.strerror}", file=sys.stderr)
        code = 2
    sys.exit(code)
