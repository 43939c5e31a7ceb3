"""The figures of a run, which `jepa plot` draws. A new figure is a function of an `EvaluationRun` and a line here."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from jepa.config import InputError, require, suggest
from jepa.evaluate import EvaluationRun
from jepa.report.plot_attention import attention
from jepa.report.plot_curves import curves
from jepa.report.plot_features import dimension, spectrum, umap
from jepa.report.plot_masks import masks
from jepa.report.plot_saccades import saccades
from jepa.report.style import STYLE

__all__ = ["FIGURES", "check_figure_path", "draw", "draw_into", "save"]

FIGURES: dict[str, Callable[[EvaluationRun], Figure]] = {
    "masks": masks,
    "curves": curves,
    "attention": attention,
    "dimension": dimension,
    "umap": umap,
    "spectrum": spectrum,
    "saccades": saccades,
}


def draw(name: str, run: EvaluationRun, patch: tuple[int, int] | None = None) -> Figure:
    """Draw a figure of a run. `patch` is the row and column of the query of the figure `attention`.

    Raises `InputError` if the figure does not apply to the run.
    """
    with matplotlib.rc_context(STYLE):
        return attention(run, patch) if name == "attention" else FIGURES[name](run)


def save(figure: Figure, target: Path | io.BytesIO) -> None:
    """Write a figure to a file. Characters that the font does not have are drawn as boxes, without warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(target)


def check_figure_path(path: Path) -> None:
    """Raise `InputError` if figures cannot be written in the format that a file name ends in."""
    require(
        path.suffix in (".png", ".pdf", ".svg"),
        f"the figure cannot be written to {path}; give a file name that ends in .png, .pdf or .svg",
    )


def draw_into(
    path: Path, name: str | None, out: Path | None, patch: tuple[int, int] | None, source: str | None
) -> Iterator[Path]:
    """Draw one figure of the run in `path`, or all that apply to it, and yield the files that are written.

    They are written into the folder `figures` of the run, or a single one to `out`. Raises `InputError` if a single
    figure does not apply to the run.
    """
    if name is not None and name not in FIGURES:
        raise InputError(f"there is no figure '{name}'{suggest(name, FIGURES)} ({', '.join(FIGURES)})")
    if out is not None:
        require(name is not None, f"--out {out} takes one figure; give its name: {', '.join(FIGURES)}")
        check_figure_path(out)
    require(patch is None or name == "attention", f"--patch is {patch}, which only the figure attention takes")
    run = EvaluationRun.open(path, source)
    for each in [name] if name else FIGURES:
        target = out or run.folder.path / "figures" / f"{each}.png"
        try:
            figure = draw(each, run, patch)
        except InputError:
            if name:
                raise
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        save(figure, target)
        yield target
