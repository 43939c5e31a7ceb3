"""Figures of a run, drawn by `jepa plot`. To add one, write a function of an `EvaluationRun` and register it here."""

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
    """Draw a figure of a run. `patch` is the (row, column) of the query patch, for the figure 'attention' only.

    Raises `InputError` if the figure does not apply to the run, or if the patch is outside the grid.
    """
    with matplotlib.rc_context(STYLE):
        return attention(run, patch) if name == "attention" else FIGURES[name](run)


def save(figure: Figure, target: Path | io.BytesIO) -> None:
    """Write a figure to a file. Characters missing from the font are drawn as boxes, without warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(target)


def check_figure_path(path: Path) -> None:
    """Raise `InputError` if the extension is unsupported."""
    require(
        path.suffix in (".png", ".pdf", ".svg"),
        f"cannot write a figure to {path}; use the extension .png, .pdf or .svg",
    )


def draw_into(
    path: Path, name: str | None, out: Path | None, patch: tuple[int, int] | None, source: str | None
) -> Iterator[Path]:
    """Draw one figure of the run in `path`, or all applicable ones, and yield the paths of the files written.

    Figures are written to the run's folder `figures`, or to `out` if only one is drawn. Raises `InputError` if the
    name, `out` or `patch` is invalid, or if a single figure does not apply to the run.
    """
    if name is not None and name not in FIGURES:
        raise InputError(f"unknown figure '{name}'{suggest(name, FIGURES)} (available: {', '.join(FIGURES)})")
    if out is not None:
        require(name is not None, f"--out requires the name of one figure: {', '.join(FIGURES)}")
        check_figure_path(out)
    require(patch is None or name == "attention", "--patch applies to the figure 'attention' only")
    run = EvaluationRun.open(path, source)
    for figure_name in [name] if name else FIGURES:
        target = out or run.folder.path / "figures" / f"{figure_name}.png"
        try:
            figure = draw(figure_name, run, patch)
        except InputError:
            if name:
                raise
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        save(figure, target)
        yield target
