"""The nearest training images of test images, in feature space and in pixel space."""

from __future__ import annotations

from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from jepa.data import evenly_spaced
from jepa.evaluation.features import Features, Subset, pixel_features
from jepa.evaluation.knn import HEADLINE_K, nearest
from jepa.evaluation.labels import UNLABELED
from jepa.evaluation_run import EvaluationRun
from jepa.report.names import shorten_names
from jepa.report.style import BLUE, GRAY, RED, literal, new_figure, show_image

__all__ = ["neighbors"]

NUM_QUERIES, NUM_NEIGHBORS, NUM_PAIRS = 5, 8, 4
MAX_QUERIES, MAX_BANK = 2000, 10_000  # number of test images among which queries are chosen, and of training images
MAX_NAME = 12  # characters of a class name


class Neighbors(NamedTuple):
    """The nearest training images of Q test images, nearest first."""

    similarity: Tensor  # (Q, k)
    images: Tensor  # (Q, k), positions in the training split
    labels: Tensor  # (Q, k), -1 for unlabeled images


def neighbors(run: EvaluationRun) -> Figure:
    """Draw test images with their nearest training images by features and by pixels.

    With labels, images come first whose class is not the most frequent one among their 20 nearest neighbors; without,
    those whose nearest neighbor is farthest. Frames are blue around images of the same class and red around others.
    Near-duplicates across the splits are drawn below, if there are any.
    """
    train, test = run.extract("trained", run.encoders["trained"], run.train), run.features("trained")
    bank, queries = part(train, MAX_BANK), part(test, MAX_QUERIES)
    found = find(bank, queries, HEADLINE_K)
    labels, guesses = labels_of(queries), vote(found.labels)
    is_mistake = (labels != UNLABELED) & (guesses != UNLABELED) & (guesses != labels)
    order = is_mistake.int() if bool((guesses != UNLABELED).any()) else -found.similarity[:, 0]
    chosen = order.argsort(descending=True, stable=True)[:NUM_QUERIES]
    pixels = (
        pixel_features(run.train.dataset, bank.indices),
        pixel_features(run.test.dataset, queries.indices[chosen]),
    )
    rows = {"features": Neighbors(*(x[chosen] for x in found)), "pixels": find(*pixels, NUM_NEIGHBORS)}
    height, pairs = 2 * len(chosen) * 0.86 + 0.3, run.near_duplicates.pairs[:NUM_PAIRS]
    heights = (height, 1.2)[: 1 + bool(len(pairs))]
    figure = new_figure(sum(heights))
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    if len(pairs):
        draw_near_duplicates(parts[1], run, pairs)
    grid = parts[0].subplots(2 * len(chosen), NUM_NEIGHBORS + 1, squeeze=False)
    names = [literal(name) for name in shorten_names(run.test.dataset.classes, MAX_NAME)]
    for number, query in enumerate(chosen.tolist()):
        label = int(labels[query])
        show_image(grid[2 * number, 0], run.test.dataset.read(queries.indices[query][None]).pixels[0])
        title = names[label] if label != UNLABELED else ""
        grid[2 * number, 0].set_title(f"{title} → {names[guesses[query]]}" if is_mistake[query] else title, fontsize=8)
        grid[2 * number + 1, 0].set_axis_off()
        for axes_row, (space, nearby) in zip(grid[2 * number :, 1:], rows.items(), strict=False):
            label_row(axes_row[0], space)
            show_neighbors(axes_row, run.train, Neighbors(*(x[number] for x in nearby)), label)
    return figure


def draw_near_duplicates(part: SubFigure, run: EvaluationRun, pairs: Tensor) -> None:
    """Draw pairs (P, 2) of a test image and its almost identical training image, side by side."""
    part.suptitle(str(run.near_duplicates), x=0.01, ha="left", fontsize=9)
    grid = part.subplots(1, 3 * NUM_PAIRS - 1, width_ratios=([1, 1, 0.3] * NUM_PAIRS)[:-1])
    for axes in grid:
        axes.set_axis_off()
    for number, (query, copy) in enumerate(pairs):
        show_image(grid[3 * number], run.test.dataset.read(query[None]).pixels[0])
        show_image(grid[3 * number + 1], run.train.dataset.read(copy[None]).pixels[0])
        grid[3 * number].set_title("test", fontsize=8)
        grid[3 * number + 1].set_title("train", fontsize=8)


def part(features: Features, count: int) -> Features:
    """Return up to `count` evenly spaced features."""
    kept = evenly_spaced(len(features.x), count)
    labels = None if features.labels is None else features.labels[kept]
    return Features(features.x[kept], labels, features.indices[kept], features.source)


def labels_of(features: Features) -> Tensor:
    """Return the labels (N,), -1 for all images if there are none."""
    return torch.full((len(features.x),), UNLABELED) if features.labels is None else features.labels


def find(bank: Features, queries: Features, count: int) -> Neighbors:
    """Return the features of a bank that are nearest to queries."""
    similarity, positions = nearest(bank.x, queries.x, min(count, len(bank.x)))
    return Neighbors(similarity, bank.indices[positions], labels_of(bank)[positions])


def vote(labels: Tensor) -> Tensor:
    """Return the most frequent class (Q,) among the labels (Q, k) of neighbors, -1 if all are unlabeled."""
    classes = max(1, int(labels.max()) + 1)
    counts = torch.zeros(len(labels), classes + 1)  # the last column counts unlabeled neighbors
    counts.scatter_add_(1, torch.where(labels == UNLABELED, classes, labels), torch.ones(labels.shape))
    most, winner = counts[:, :classes].max(1)
    return winner.masked_fill(most == 0, UNLABELED)


def label_row(axes: Axes, text: str) -> None:
    """Write a text to the left of a row of images."""
    axes.annotate(text, (-0.08, 0.5), xycoords="axes fraction", rotation=90, ha="right", va="center", fontsize=7)


def show_neighbors(axes_row: list[Axes], train: Subset, found: Neighbors, label: int) -> None:
    """Show the nearest training images (k,) of one image, with frames in the color of agreement with its label."""
    for axes in axes_row:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes, image, neighbor in zip(axes_row, found.images, found.labels.tolist(), strict=False):
        show_image(axes, train.dataset.read(image[None]).pixels[0])
        axes.set_axis_on()
        color = GRAY if UNLABELED in (label, neighbor) else BLUE if label == neighbor else RED
        axes.spines[:].set(visible=True, color=color, linewidth=2)
