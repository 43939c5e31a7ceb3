"""Figures of a run, drawn by `jepa plot`. To add one, write a function that returns a figure and register it here."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from jepa.config import InputError, require, suggest
from jepa.evaluation_run import EvaluationRun
from jepa.report.plot_attention import attention
from jepa.report.plot_checkpoints import checkpoints
from jepa.report.plot_classes import classes
from jepa.report.plot_curves import curves
from jepa.report.plot_features import dimension, spectrum, umap
from jepa.report.plot_masks import masks
from jepa.report.plot_neighbors import neighbors
from jepa.report.plot_overview import overview
from jepa.report.plot_patches import features, similarity
from jepa.report.plot_predictions import errors, predictions
from jepa.report.plot_saccades import saccades
from jepa.report.style import STYLE
from jepa.runs import Run

__all__ = ["FIGURES", "check_figure_path", "draw", "draw_into", "draw_metrics", "save"]

METRICS_FIGURES: dict[str, Callable[[Run], Figure]] = {"curves": curves}  # of metrics.jsonl alone
CHECKPOINT_FIGURES: dict[str, Callable[[EvaluationRun], Figure]] = {  # of a checkpoint and images
    "overview": overview,
    "features": features,
    "predictions": predictions,
    "errors": errors,
    "neighbors": neighbors,
    "classes": classes,
    "masks": masks,
    "attention": attention,
    "similarity": similarity,
    "dimension": dimension,
    "umap": umap,
    "spectrum": spectrum,
    "checkpoints": checkpoints,
    "saccades": saccades,
}
PATCH_FIGURES: dict[str, Callable[[EvaluationRun, tuple[int, int] | None], Figure]] = {  # of one patch
    "attention": attention,
    "similarity": similarity,
}
FIGURES = (*METRICS_FIGURES, *CHECKPOINT_FIGURES)


def draw(name: str, run: EvaluationRun, patch: tuple[int, int] | None = None, foreground: bool = False) -> Figure:
    """Draw a figure of a run.

    `patch` is the (row, column) of the query, for the figures of one patch; `foreground` is for the figure 'features'.

    Raises `InputError` if the figure does not apply to the run, or if the patch is outside the grid.
    """
    if name in METRICS_FIGURES:
        return draw_metrics(name, run.folder)
    with matplotlib.rc_context(STYLE):
        if name == "features":
            return features(run, foreground)
        return PATCH_FIGURES[name](run, patch) if name in PATCH_FIGURES else CHECKPOINT_FIGURES[name](run)


def draw_metrics(name: str, folder: Run) -> Figure:
    """Draw a figure of the metrics of a run, which needs neither a checkpoint nor the images."""
    with matplotlib.rc_context(STYLE):
        return METRICS_FIGURES[name](folder)


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
    path: Path,
    name: str | None,
    out: Path | None,
    patch: tuple[int, int] | None,
    source: str | None,
    *,
    foreground: bool = False,
) -> Iterator[Path]:
    """Draw one figure of the run in `path`, or all applicable ones, and yield the paths of the files written.

    Figures are written to the run's folder `figures`, or to `out` if only one is drawn. Raises `InputError` if the
    name, `out` or `patch` is invalid, or if a single figure does not apply to the run.
    """
    if name is not None and name not in FIGURES:
        raise InputError(f"unknown figure '{name}'{suggest(name, FIGURES)} (available: {', '.join(FIGURES)})")
    if out is not None:
        require(name is not None, f"--out requires the name of one figure: {', '.join(FIGURES)}")
        out = out.expanduser()
        check_figure_path(out)
    require(patch is None or name in PATCH_FIGURES, f"--patch applies only to {' and '.join(PATCH_FIGURES)}")
    require(not foreground or name == "features", "--foreground applies to the figure 'features' only")
    folder, names = Run.open(path), [name] if name else FIGURES
    run: EvaluationRun | None = None
    for figure_name in names:
        if figure_name in CHECKPOINT_FIGURES and run is None:
            run = EvaluationRun.open(path, source)
        target = out or folder.path / "figures" / f"{figure_name}.png"
        try:
            figure = draw(figure_name, run, patch, foreground) if run else draw_metrics(figure_name, folder)
        except InputError:
            if name:
                raise
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        save(figure, target)
        yield target
