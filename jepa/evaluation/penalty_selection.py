"""Logistic regression with an L2 penalty that is selected on held-out features."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from jepa.evaluation.logistic_regression import (
    Preconditioner,
    Standardization,
    feature_statistics,
    fit_folds,
    fit_logistic,
    is_correct,
    principal_axes,
    second_moments,
)

__all__ = ["fit_draws", "fit_in_chunks", "fit_in_memory"]

PENALTIES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
MIN_HELD_OUT = 1000  # minimum number of features to select a penalty on, over all folds
MAX_FOLDS = 5  # maximum number of folds, each of a tenth of the features
SELECTION_TOLERANCE = 1e-4  # change of the loss at which the fits that select the penalty stop
MAX_AXES_POINTS = 10_000  # maximum number of features that determine the axes; any axes give the same optimum
MAX_DECREASE = 0.005  # decrease of the held-out accuracy at which the selection ends


def fit_in_memory(x: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, float]:
    """Select an L2 penalty on held-out features, then fit all features (N, D); return the weights and the penalty."""
    weights, penalty = fit_draws([(x, labels)], classes)
    return weights[0], penalty


def fit_draws(draws: Iterable[tuple[Tensor, Tensor]], classes: int) -> tuple[list[Tensor], float]:
    """Fit each draw of features (N, D) and labels (N,) with a common L2 penalty; return the weights and the penalty.

    All draws have the same size. The penalty is selected by cross-validation with tenths, until 1,000 features are held
    out: one tenth of as many draws as needed, then up to five tenths of each. If N >= D, all draws are rotated to the
    axes of the first one: these only precondition the fit.
    """
    remaining = iter(draws)
    first = RotatedFeatures.rotate(*next(remaining))
    axes = first.axes if len(first.axes) == first.axes.shape[1] else None
    rotated = (RotatedFeatures.rotate(*draw, axes) for draw in remaining)
    num_folds = math.ceil(MIN_HELD_OUT / math.ceil(len(first.x) / 10))
    selection = [first, *itertools.islice(rotated, num_folds - 1)]
    penalty, starts = choose_penalty(selection, classes, min(MAX_FOLDS, math.ceil(num_folds / len(selection))))
    zero = torch.zeros_like(starts[0])
    weights = [
        draw.to_original(fit_logistic(draw.x, draw.labels, start, penalty, preconditioner=draw.preconditioner))
        for draw, start in zip(
            itertools.chain(selection, rotated), itertools.chain(starts, itertools.repeat(zero)), strict=False
        )
    ]
    return weights, penalty


def fit_in_chunks(x: Tensor, labels: Tensor, classes: int, subset_size: int) -> tuple[Tensor, float]:
    """Fit all features (N, D) of a memory-mapped file; return weights and penalty.

    `fit_in_memory` selects the penalty on a random subset and gives the initial weights. The penalty is scaled by
    `subset_size` / N, because the loss is averaged over features. Then the features are read in chunks, in order.
    """
    subset = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:subset_size].sort().values
    weights, penalty = fit_in_memory(x[subset], labels[subset], classes)
    penalty *= len(subset) / len(x)
    standardization = feature_statistics(x)
    start = standardization.from_original(weights)
    weights = fit_logistic(x, labels, start, penalty, standardization=standardization)
    return standardization.to_original(weights), penalty


class RotatedFeatures(NamedTuple):
    """Standardized features along their principal axes, of which there are R = min(N, D)."""

    x: Tensor  # (N, R)
    labels: Tensor  # (N,)
    standardization: Standardization
    axes: Tensor  # (D, R)

    @classmethod
    def rotate(cls, x: Tensor, labels: Tensor, axes: Tensor | None = None) -> RotatedFeatures:
        """Standardize features (N, D) and rotate them to the given orthonormal axes, by default their principal axes.

        If N < D, these span the features, and the optimal weights lie in this span.
        """
        standardization = feature_statistics(x)
        x = standardization(x)
        if axes is None and x.shape[1] > len(x):
            basis = torch.linalg.qr(x.T).Q
            axes = basis @ principal_axes(second_moments([x @ basis]))[1]
        elif axes is None:
            axes = principal_axes(second_moments([x[:: math.ceil(len(x) / MAX_AXES_POINTS)]]))[1]
        return cls(x @ axes, labels, standardization, axes)

    @property
    def preconditioner(self) -> Preconditioner:
        """The preconditioner of these features."""
        return Preconditioner(self.x.square().mean(0))

    def to_original(self, weights: Tensor) -> Tensor:
        """Convert weights (classes, R + 1) to weights (classes, D + 1) for the original features."""
        return self.standardization.to_original(torch.cat([weights[:, :-1] @ self.axes.T, weights[:, -1:]], -1))


def choose_penalty(draws: list[RotatedFeatures], classes: int, num_folds: int) -> tuple[float, list[Tensor]]:
    """Return the penalty with the best held-out accuracy, and initial weights for the final fit of each draw.

    Penalties are tried in decreasing order, each fit warm-started from the previous one, until the accuracy is half a
    point below the best. Ties go to the larger penalty; if there are several draws and fewer than 1,000 held-out
    features in all of them, differences within one standard error are ties. The folds of a draw are fitted at once, to
    a tolerance of `SELECTION_TOLERANCE`.
    """
    is_held_out = held_out_folds(len(draws[0].x), num_folds)
    row_weights = (~is_held_out).float() / (~is_held_out).sum(1, keepdim=True)
    weights = [draw.x.new_zeros(len(is_held_out), classes, draw.x.shape[1] + 1) for draw in draws]
    correct: list[Tensor] = []  # for each penalty, whether each held-out feature is classified correctly
    starts: list[list[Tensor]] = []
    best = 0
    for penalty in PENALTIES:
        weights = [
            fit_folds(
                draw.x,
                draw.labels,
                start,
                penalty,
                row_weights=row_weights,
                preconditioner=draw.preconditioner,
                tolerance=SELECTION_TOLERANCE,
            )
            for draw, start in zip(draws, weights, strict=True)
        ]
        starts.append([fitted.mean(0) for fitted in weights])
        folds = [
            is_correct(draw.x[held_out], draw.labels[held_out], fold)
            for draw, fitted in zip(draws, weights, strict=True)
            for held_out, fold in zip(is_held_out, fitted, strict=True)
        ]
        correct.append(torch.cat(folds).double())
        best = max(best, len(correct) - 1, key=lambda i: float(correct[i].mean()))
        if correct[-1].mean() < correct[best].mean() - MAX_DECREASE:
            break
    if len(draws) > 1 and len(correct[0]) < MIN_HELD_OUT:
        best = next(i for i in range(best + 1) if is_tie(correct[best] - correct[i]))
    return PENALTIES[best], starts[best]


def is_tie(difference: Tensor) -> bool:
    """Return whether the mean of differences (N,) is at most its standard error."""
    return float(difference.mean()) <= float(difference.std()) / math.sqrt(len(difference))


def held_out_folds(count: int, num_folds: int) -> Tensor:
    """Return which of `count` features each fold holds out, (folds, count): a random tenth, without overlap."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    tenths = order.tensor_split(min(10, count))[:num_folds]
    is_held_out = torch.zeros(len(tenths), count, dtype=torch.bool)
    for fold, tenth in zip(is_held_out, tenths, strict=True):
        fold[tenth] = True
    return is_held_out
