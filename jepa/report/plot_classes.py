"""Accuracy of each class, and which classes are confused with each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from jepa.config import InputError
from jepa.evaluation.class_predictions import ClassPredictions, top_confusions
from jepa.evaluation.labels import standard_error
from jepa.evaluation_run import EvaluationRun
from jepa.report.names import shorten_names
from jepa.report.style import BLUE, ENCODER_COLORS, GRAY, INK, PALE, literal, new_figure

__all__ = ["classes"]

TITLES = {"knn": "kNN", "linear": "linear probe"}
MAX_ROWS = 40  # of more classes, the best and the worst ones are drawn
MAX_MATRIX, MAX_WRITTEN = 50, 12  # maximum number of classes of a confusion matrix, and of one with written numbers
NUM_PAIRS = 20
MAX_NAME = 18  # characters of a class name


def classes(run: EvaluationRun) -> Figure:
    """Draw the accuracy of each class with trained and untrained features, and the errors of the linear probe.

    Raises `InputError` without labels of at least two classes to fit on, and labeled images to score.
    """
    if not run.has_classes:
        raise InputError("accuracies of classes need labels of two or more classes, and labeled test images")
    return draw_classes({name: run.class_predictions(name) for name in ENCODER_COLORS}, run.test.dataset.classes)


def draw_classes(predictions: dict[str, ClassPredictions], names: Sequence[str]) -> Figure:
    """Draw the predictions of encoders, 'trained' and 'untrained', of classes with the given names."""
    trained = predictions["trained"]
    rows, order = min(MAX_ROWS + 1, len(trained.labels.unique())), accuracy_order(trained, len(names))
    shown = used_classes(trained)
    is_matrix = len(shown) <= MAX_MATRIX
    heights = (0.9 + 0.17 * rows, matrix_height(len(shown)) if is_matrix else 0.8 + 0.17 * NUM_PAIRS)
    figure = new_figure(sum(heights))
    top, bottom = figure.subfigures(2, 1, height_ratios=heights, squeeze=False)[:, 0]
    draw_accuracies(top, predictions, names, order)
    if is_matrix:
        draw_matrix(bottom, trained, names, shown)
    else:
        draw_pairs(bottom, trained, names)
    return figure


def accuracy_order(predictions: ClassPredictions, count: int) -> Tensor:
    """Return the classes with test images, by decreasing accuracy of the linear probe."""
    accuracy = predictions.accuracies(count)["linear"]
    order = accuracy.nan_to_num(-1).argsort(descending=True, stable=True)
    return order[accuracy[order].isfinite()]


def used_classes(predictions: ClassPredictions) -> Tensor:
    """Return the classes that test images have, or that the linear probe predicts."""
    shown: Tensor = torch.cat([predictions.labels, predictions.linear]).unique()
    return shown


def short_names(names: Sequence[str], chosen: Sequence[int]) -> list[str]:
    """Return the short names of the chosen classes."""
    return [literal(name) for name in shorten_names([names[i] for i in chosen], MAX_NAME)]


def draw_accuracies(
    part: SubFigure, predictions: dict[str, ClassPredictions], names: Sequence[str], order: Tensor
) -> None:
    """Draw the accuracy of each class of `order`, best first, by classifier: trained beside untrained."""
    half = MAX_ROWS // 2
    is_cut = len(order) > MAX_ROWS
    chosen = torch.cat([order[:half], order[-half:]]) if is_cut else order
    y = torch.arange(len(chosen)) + (torch.arange(len(chosen)) >= half) * is_cut  # with a gap between best and worst
    accuracies = {encoder: found.accuracies(len(names)) for encoder, found in predictions.items()}
    images = torch.bincount(predictions["trained"].labels, minlength=len(names))[chosen]
    classifiers = list(accuracies["trained"])
    grid = part.subplots(1, len(classifiers), squeeze=False)[0]
    for axes, classifier in zip(grid, classifiers, strict=True):
        draw_dots(axes, {encoder: found[classifier][chosen] for encoder, found in accuracies.items()}, images, y)
        axes.set(title=TITLES[classifier], xlabel="accuracy of each class, %\n○ untrained   ● trained", xlim=(-3, 103))
        axes.set_yticks(y, short_names(names, chosen.tolist()))
        axes.set_ylim(float(y[-1]) + 0.6, -0.6)
        if is_cut:
            axes.text(50, half, f"… best and worst {half} of {len(order):,} …", ha="center", va="center", color=GRAY)


def draw_dots(axes: Axes, accuracies: dict[str, Tensor], images: Tensor, y: Tensor) -> None:
    """Draw accuracies by encoder at heights `y`, with the standard errors of trained features for numbers of images."""
    trained, untrained = accuracies["trained"], accuracies["untrained"]
    errors = [standard_error(*pair) for pair in zip(trained.tolist(), images.tolist(), strict=True)]
    axes.hlines(y, untrained, trained, color=PALE, linewidth=1.2, zorder=1)
    axes.scatter(untrained, y, s=16, facecolors="white", edgecolors=GRAY, zorder=2)
    axes.errorbar(trained, y, xerr=errors, fmt="o", color=BLUE, elinewidth=0.8, zorder=3)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=PALE, linewidth=0.5)
    axes.set_axisbelow(True)


def matrix_height(count: int) -> float:
    """Return the height in inches of a confusion matrix of `count` classes."""
    return 1.1 + min(5.4, max(1.2, 0.36 * count))


def draw_matrix(part: SubFigure, predictions: ClassPredictions, names: Sequence[str], shown: Tensor) -> None:
    """Draw the confusion matrix of the linear probe for the classes `shown`, in percent of the images of each class."""
    count = len(shown)
    cells = torch.searchsorted(shown, predictions.labels) * count + torch.searchsorted(shown, predictions.linear)
    matrix = torch.bincount(cells, minlength=count**2).view(count, count)
    percent = 100 * matrix / matrix.sum(1, keepdim=True)  # NaN without test images
    axes = part.subplots()
    image = axes.imshow(percent.numpy(), cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    size = 8 if count <= 20 else 6
    axes.set_xticks(range(count), short_names(names, shown.tolist()), rotation=90, fontsize=size)
    axes.set_yticks(range(count), short_names(names, shown.tolist()), fontsize=size)
    axes.set(xlabel="predicted class", ylabel="class", title="linear probe, trained: % of the images of each class")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if count > MAX_WRITTEN:
        part.colorbar(image, ax=axes, ticks=[0, 1, 5, 20, 50, 100], shrink=0.6)
        return
    for row, column in percent.isfinite().nonzero().tolist():
        value = float(percent[row, column])
        color = "white" if value > 35 else INK
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color, fontsize=8)


def draw_pairs(part: SubFigure, predictions: ClassPredictions, names: Sequence[str]) -> None:
    """Draw the most frequent errors of the linear probe as bars."""
    pairs = top_confusions(predictions.labels, predictions.linear, NUM_PAIRS)
    axes = part.subplots()
    chosen = sorted({number for label, predicted, _ in pairs for number in (label, predicted)})
    short = dict(zip(chosen, short_names(names, chosen), strict=True))
    bars = axes.barh(range(len(pairs)), [count for _, _, count in pairs], color=BLUE, height=0.7)
    axes.bar_label(bars, fontsize=8, padding=2)
    axes.set_yticks(range(len(pairs)), [f"{short[label]} → {short[predicted]}" for label, predicted, _ in pairs])
    axes.set_ylim(max(len(pairs), 1) - 0.4, -0.6)
    axes.set(title="linear probe, trained: most frequent errors, class → predicted class", xlabel="test images")
    axes.tick_params(axis="y", length=0)
