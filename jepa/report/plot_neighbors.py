"""The nearest training images of test images, in feature space and in pixel space."""

from __future__ import annotations

from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from jepa.data import evenly_spaced
from jepa.evaluation.features import Features, Subset, pixel_features
from jepa.evaluation.knn import HEADLINE_K
from jepa.evaluation.neighbors import nearest
from jepa.evaluation_run import EvaluationRun
from jepa.report.names import shorten_names
from jepa.report.style import BLUE, GRAY, RED, literal, new_figure, show_image

__all__ = ["neighbors"]

NUM_QUERIES, NUM_NEIGHBORS = 5, 8
MAX_QUERIES, MAX_BANK = 2000, 10_000  # number of test images among which queries are chosen, and of training images
MAX_NAME = 12  # characters of a class name


class Neighbors(NamedTuple):
    """The nearest training images of test images."""

    similarity: Tensor  # (Q, k)
    images: Tensor  # (Q, k), positions in the training split
    labels: Tensor | None  # (Q, k)


def neighbors(run: EvaluationRun) -> Figure:
    """Draw test images with their nearest training images by features and by pixels.

    With labels, images that their nearest neighbors classify wrongly come first; without, those whose nearest neighbor
    is farthest. Frames are blue around images of the same class and red around others.
    """
    bank = run.extract("trained", run.encoders["trained"], run.train)
    test = run.features("trained")
    queries = evenly_spaced(len(test.x), MAX_QUERIES)
    kept = evenly_spaced(len(bank.x), MAX_BANK)
    by_features = find(test, bank, queries, kept, max(HEADLINE_K, NUM_NEIGHBORS))
    guesses = vote(by_features)
    if guesses is None or test.labels is None:
        order = by_features.similarity[:, 0].argsort()
    else:
        actual = test.labels[queries]
        order = ((guesses != actual) & (actual >= 0)).float().argsort(descending=True, stable=True)
    chosen = order[: min(NUM_QUERIES, len(order))]
    pixel_bank = pixel_features(run.train.dataset, bank.indices[kept])
    pixel_queries = pixel_features(run.test.dataset, test.indices[queries[chosen]])
    every = torch.arange(len(chosen))
    by_pixels = find(pixel_queries, pixel_bank, every, torch.arange(len(pixel_bank.x)), NUM_NEIGHBORS)
    figure = new_figure(2 * len(chosen) * 0.86 + 0.3)
    grid = figure.subplots(2 * len(chosen), NUM_NEIGHBORS + 1, squeeze=False)
    names = shorten_names(list(run.train.dataset.classes), MAX_NAME)
    for row, query in enumerate(chosen.tolist()):
        label = None if test.labels is None else int(test.labels[queries[query]])
        image = run.test.dataset.read(test.indices[queries[query]][None]).pixels[0]
        title = "" if label is None or label < 0 or not names else literal(names[label])
        if guesses is not None and label is not None and title and int(guesses[query]) != label:
            title += f" → {literal(names[int(guesses[query])])}"
        for line, (kind, found, position) in enumerate((("features", by_features, query), ("pixels", by_pixels, row))):
            axes_row = grid[2 * row + line]
            axes_row[0].set_axis_off()
            if line == 0:
                show_image(axes_row[0], image)
                axes_row[0].set_title(title, fontsize=8)
            axes_row[1].annotate(
                kind, (-0.08, 0.5), xycoords="axes fraction", rotation=90, ha="right", va="center", fontsize=7
            )
            show_neighbors(axes_row[1:], run.train, found, position, label)
    return figure


def label_row(axes: Axes, text: str) -> None:
    """Write a text to the left of a row of images."""
    axes.annotate(text, (-0.08, 0.5), xycoords="axes fraction", rotation=90, ha="right", va="center", fontsize=7)


def find(queries: Features, bank: Features, chosen: Tensor, kept: Tensor, count: int) -> Neighbors:
    """Return the nearest of the features at `kept` to those at `chosen`."""
    similarity, positions = nearest(queries.x[chosen], bank.x[kept], count)
    positions = kept[positions]
    return Neighbors(similarity, bank.indices[positions], None if bank.labels is None else bank.labels[positions])


def vote(found: Neighbors) -> Tensor | None:
    """Return the most frequent class (Q,) among the neighbors, or None without labels."""
    if found.labels is None or int(found.labels.max()) < 0:
        return None
    return found.labels.mode(1).values


def show_neighbors(axes_row: list[Axes], train: Subset, found: Neighbors, query: int, label: int | None) -> None:
    """Show the nearest training images of one image, with a frame in the color of agreement."""
    for axes, neighbor in zip(axes_row, range(NUM_NEIGHBORS), strict=True):
        axes.set_axis_off()
        if neighbor >= found.images.shape[1]:
            continue
        show_image(axes, train.dataset.read(found.images[query, neighbor][None]).pixels[0])
        axes.set_axis_on()
        axes.set(xticks=[], yticks=[])
        color = GRAY
        if label is not None and label >= 0 and found.labels is not None:
            color = BLUE if int(found.labels[query, neighbor]) == label else RED
        for spine in axes.spines.values():
            spine.set(visible=True, color=color, linewidth=2)
