"""The scored images in the plane, coloured by class, trained beside untrained."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jepa.evaluation import Projection, project
from jepa.figures.style import CLASSES, COLORS, PALE, canvas, titles
from jepa.subject import Subject

__all__ = ["umap"]


LONGEST = 18  # letters of a class name


def umap(subject: Subject) -> Figure:
    """Draw UMAP (or PCA, without umap-learn) of the features of up to 5,000 scored images."""
    figure = canvas(4.2)
    names, classes = titles(subject.encoders), subject.test[0].classes
    shown: list[int] = []
    for axes, name in zip(figure.subplots(1, 2), ("trained", "untrained"), strict=True):
        found = project(subject.features(name))
        shown = draw_places(axes, found)
        axes.set_title(f"{names[name]}, {found.method}")
    handles = [
        Line2D([], [], color=color, marker="o", linestyle="", label=short(classes[label]))
        for label, color in zip(shown, CLASSES, strict=False)
    ]
    if len(classes) > len(shown) > 0:
        handles.append(
            Line2D([], [], color=PALE, marker="o", linestyle="", label=f"{len(classes) - len(shown)} others")
        )
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=6, handletextpad=0.1, columnspacing=1.2)
    return figure


def short(name: str) -> str:
    """Shorten a name for a legend."""
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def draw_places(axes: Axes, found: Projection) -> list[int]:
    """Scatter images, the ten most frequent classes in colour; returns those."""
    places, order = found.places.numpy(), np.random.default_rng(0).permutation(len(found.places))
    colors = np.full(len(places), PALE if found.labels is not None else COLORS["trained"], dtype=object)
    shown: list[int] = []
    if found.labels is not None:
        labels = found.labels.numpy()
        shown = sorted(np.bincount(labels).argsort(kind="stable")[::-1][: len(CLASSES)].tolist())
        shown = [label for label in shown if (labels == label).any()]
        for label, color in zip(shown, CLASSES, strict=False):
            colors[labels == label] = color
    x, y = places[order].T
    axes.scatter(x, y, c=colors[order].tolist(), s=max(3, min(40, 4000 / len(places))), linewidths=0, alpha=0.8)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return shown
