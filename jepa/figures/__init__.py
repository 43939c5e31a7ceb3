"""Figures of a run, the work behind `jepa plot`. A new one is a function from a `Subject`, and a line here."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from jepa.config import InputError, require, suggest
from jepa.figures.attention import attention, film
from jepa.figures.curves import curves
from jepa.figures.geometry import dimension, spectrum
from jepa.figures.masks import masks
from jepa.figures.projection import umap
from jepa.figures.saccades import saccades
from jepa.figures.style import STYLE
from jepa.subject import Subject

__all__ = ["FIGURES", "draw", "draw_into", "film", "save", "writable"]

FIGURES: dict[str, Callable[[Subject], Figure]] = {
    "masks": masks,
    "curves": curves,
    "attention": attention,
    "dimension": dimension,
    "umap": umap,
    "spectrum": spectrum,
    "saccades": saccades,
}


def draw(name: str, subject: Subject, patch: tuple[int, int] | None = None) -> Figure:
    """Draw a figure of a run in the one style; `patch` is the query of `attention`, row and column.

    Raises `InputError` where the run has nothing for it to show.
    """
    with matplotlib.rc_context(STYLE):
        return attention(subject, patch) if name == "attention" else FIGURES[name](subject)


def save(figure: Figure, target: Path | io.BytesIO) -> None:
    """Write a figure; letters that the font has not are drawn as boxes without a warning each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(target)


def writable(path: Path) -> None:
    """Refuse a file that matplotlib cannot write. Raises `InputError`."""
    require(
        path.suffix in (".png", ".pdf", ".svg"), f"{path} is no figure; it takes a name that ends in .png, .pdf or .svg"
    )


def draw_into(
    run: Path, name: str | None, out: Path | None, patch: tuple[int, int] | None, source: str | None
) -> Iterator[Path]:
    """Draw one figure of a run folder, or each that it has, into its folder `figures` or to `out`; yield the files.

    Raises `InputError` where the one has nothing to show.
    """
    if name is not None and name not in FIGURES:
        raise InputError(f"there is no figure '{name}'{suggest(name, FIGURES)} ({', '.join(FIGURES)})")
    if out is not None:
        require(name is not None, f"--out is {out}, which takes one figure; say which: {', '.join(FIGURES)}")
        writable(out)
    require(patch is None or name == "attention", f"--patch is {patch}, which only the figure attention has")
    subject = Subject.open(run, source)
    for each in [name] if name else FIGURES:
        target = out or subject.run.path / "figures" / f"{each}.png"
        try:
            figure = draw(each, subject, patch)
        except InputError:
            if name:
                raise
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        save(figure, target)
        yield target
