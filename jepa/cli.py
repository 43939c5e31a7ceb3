"""The `jepa` command: one short function for each sub-command, with heavy imports inside it."""

from __future__ import annotations

import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import tyro

from jepa.config import RECIPES, InputError, suggest
from jepa.config.arguments import expand_home, parse_train_arguments
from jepa.config.auto import DataSummary
from jepa.config.command_line import call
from jepa.config.errors import exit_with
from jepa.config.recipes import documentation
from jepa.config.user_code import load_code
from jepa.files import printable
from jepa.threads import adapt_threads
from jepa.version import __version__

__all__ = ["main"]

WIDTH = 80  # of the output, in characters


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


def train(arguments: list[str]) -> int:
    """Train an experiment and save it to a run folder: jepa train [RECIPE] [--data SOURCE] [--steps N] [--resume]."""

    def summarize(source: str, device: str, runs: Path) -> tuple[DataSummary, str]:
        from jepa.data.inspect import summarize_source  # imports torch, which --help does without

        return summarize_source(source, device, runs)

    given = parse_train_arguments(arguments, summarize)

    from jepa.train import run_training

    return run_training(given, arguments)


def show(text: str) -> None:
    """Print lines that may contain names of files and classes."""
    print(printable(text, keep="\n"))


def evaluate(arguments: list[str]) -> int:
    """Evaluate a run, print its scores and write a report: jepa evaluate RUN [--data SOURCE] [--full] [--json]."""

    def command(
        run: RunFolder,
        data: str | None = None,
        checkpoint: str = "last",
        out: Path | None = None,
        full: bool = False,
        json: bool = False,
        *,
        code: Code,
    ) -> int:
        """Score the frozen encoders of a run, the untrained encoder and raw pixels.

        Writes evaluation.json and report.html, one self-contained page.

        Args:
            run: The run folder.
            data: Evaluate on this source instead of the one that the run was trained on.
            checkpoint: last, best (the one with the highest online kNN, which was chosen with labels), or step-N, which
                --keep-every has kept.
            out: Folder to write to instead of the run folder, which then need not be writable.
            full: Also score PCA of pixels, k-means of patches, and a supervised network of the same architecture and
                number of steps, which takes about as long as the run; and decode the predictions of an
                I-JEPA by convolutions.
            json: Print only evaluation.json to standard output.
            code: Code of the experiment.
        """
        from jepa.evaluate import evaluate_run
        from jepa.evaluation_run import EvaluationRun
        from jepa.report.html import write_report
        from jepa.report.text import as_text

        code.load()
        opened = EvaluationRun.open(run, data, out=out, checkpoint=checkpoint)
        result = evaluate_run(opened, full)
        page = write_report(opened, result)
        text = f"{as_text(result, opened.output.path)}\n\nReport: {page}"
        show((opened.output.path / "evaluation.json").read_text(encoding="utf-8").rstrip() if json else text)
        return 0

    return _call(command, evaluate, arguments)


def plot(arguments: list[str]) -> int:
    """Draw figures of a run: jepa plot RUN [FIGURE] [--out FILE] [--patch ROW COLUMN]."""

    def command(
        run: RunFolder,
        figure: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="FIGURE")] = None,
        out: Path | None = None,
        patch: tuple[int, int] | None = None,
        foreground: bool = False,
        data: str | None = None,
        *,
        code: Code,
    ) -> int:
        """Draw one figure of a run, or all applicable ones, into its `figures` folder.

        Args:
            run: The run folder.
            figure: overview, features, similarity, predictions, errors, neighbors, classes, curves, umap, attention,
                dimension, spectrum, checkpoints, masks or saccades; all by default.
            out: File to write the figure to instead: .png, .pdf or .svg.
            patch: Row and column, from 0, of the patch whose attention or similarity is drawn; the central one by
                default.
            foreground: Color only the patches of objects in the figure 'features', as far as its first axis shows them.
            data: Use the images of this source instead of the one that the run was trained on.
            code: Code of the experiment.
        """
        from jepa.report.figures import draw_into

        code.load()
        for path in draw_into(run, figure, out, patch, data, foreground=foreground):
            show(str(path))
        return 0

    return _call(command, plot, arguments)


def compare(arguments: list[str]) -> int:
    """Compare evaluated runs, grouped by seed: jepa compare RUN RUN ... [--figure FILE]."""

    def command(
        runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")],
        figure: Path | None = None,
    ) -> int:
        """Print and draw the scores of runs that 'jepa evaluate' has evaluated.

        Runs that differ only in the seed share a row: mean and standard deviation.

        Args:
            runs: The run folders.
            figure: File to write the figure to: .png, .pdf or .svg. An existing file is replaced. By default,
                runs/compare.png or the next free name: runs/compare-2.png.
        """
        from jepa.report.compare import compare as compare_runs

        show(compare_runs(runs, figure))
        return 0

    return _call(command, compare, arguments)


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

    return _call(command, recipes, arguments)


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

    return _call(command, data, arguments)


def _call(command: Callable[..., int], described_by: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Call a command with the values that the arguments give to its parameters."""
    _, usage = _description(described_by)
    return call(command, arguments, f"jepa {described_by.__name__}", usage)


def _description(command: Callable[[list[str]], int]) -> tuple[str, str]:
    """Return what a command does, and its usage."""
    what, _, usage = " ".join((inspect.getdoc(command) or "").split()).partition(": ")
    return what, usage.removesuffix(".")


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "evaluate": evaluate,
    "plot": plot,
    "compare": compare,
    "data": data,
    "recipes": recipes,
}


USE_TORCH = ("train", "evaluate", "plot")  # commands whose speed depends on the threads of torch


def _help() -> str:
    lines = [
        "usage: jepa COMMAND ...",
        "",
        "Train and evaluate Joint-Embedding Predictive Architectures on images.",
        "",
    ]
    for name, command in COMMANDS.items():
        what, usage = _description(command)
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
