"""Multinomial logistic regression, fitted by L-BFGS on features in memory or in a memory-mapped file.

Weights are (classes, D + 1), bias last; this layout multiplies several times faster than its transpose.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["accuracy", "feature_statistics", "fit_in_chunks", "fit_in_memory", "fit_logistic"]

PENALTIES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
MIN_HELD_OUT = 1000  # minimum number of features to select a penalty on, over all folds
MAX_FOLDS = 5  # maximum number of folds, each of a tenth of the features
CURVATURE = 0.1  # typical p (1 - p) of a class; scales the preconditioner without changing the solution
MIN_RELATIVE_STD = 1e-5  # standard deviation, relative to the mean, below which float32 features are constant
CHUNK_SIZE = 10_000  # number of features processed at a time, to bound memory


def accuracy(x: Tensor, labels: Tensor, weights: Tensor) -> float:
    """Return the percentage of features (N, D) whose largest logit is that of their label."""
    correct = sum(
        int((logits(chunk, weights).argmax(-1) == chunk_labels).sum())
        for chunk, chunk_labels in zip(x.split(CHUNK_SIZE), labels.split(CHUNK_SIZE), strict=True)
    )
    return 100 * correct / len(x)


def logits(x: Tensor, weights: Tensor) -> Tensor:
    """Return the logits (N, classes) of features (N, D)."""
    return F.linear(x, weights[:, :-1], weights[:, -1])


def fit_in_memory(x: Tensor, labels: Tensor, classes: int, penalty: float | None = None) -> tuple[Tensor, float]:
    """Select an L2 penalty on held-out features unless it is given, then fit all features (N, D).

    Returns the weights and the penalty. Features are standardized for the fit; the returned weights apply to the
    original features. The penalty is selected by k-fold cross-validation with up to five tenths, until 1,000 features
    are held out.
    """
    standardization = feature_statistics(x)
    x = standardization(x)
    wide = x.shape[1] > len(x)
    if wide:  # the optimal weights lie in the span of the features, of dimension at most N
        basis = torch.linalg.qr(x.T).Q
        x = x @ basis
    start = x.new_zeros(classes, x.shape[1] + 1)
    if penalty is None:
        penalty, start = choose_penalty(x, labels, classes)
    weights = fit_logistic(x, labels, start, penalty)
    if wide:
        weights = torch.cat([weights[:, :-1] @ basis.T, weights[:, -1:]], -1)
    return standardization.to_original(weights), penalty


class Fold(NamedTuple):
    """A split of the features into a training part and a held-out part."""

    x: Tensor
    labels: Tensor
    held_out_x: Tensor
    held_out_labels: Tensor
    moments: Tensor  # second moments of x


def choose_penalty(x: Tensor, labels: Tensor, classes: int) -> tuple[float, Tensor]:
    """Return the penalty with the best held-out accuracy, and initial weights for the final fit.

    Penalties are tried in decreasing order, each fit warm-started from the previous one, until the accuracy is half a
    point below the best. Ties go to the larger penalty.
    """
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    tenths = order.tensor_split(min(10, len(x)))
    num_folds = min(MAX_FOLDS, len(tenths), math.ceil(MIN_HELD_OUT / len(tenths[0])))
    folds = []
    for i in range(num_folds):
        rest, held_out = torch.cat([*tenths[:i], *tenths[i + 1 :]]), tenths[i]
        folds.append(Fold(x[rest], labels[rest], x[held_out], labels[held_out], second_moments([x[rest]])))
    weights = [x.new_zeros(classes, x.shape[1] + 1) for _ in folds]
    best_score, best_penalty, start = -1.0, PENALTIES[0], weights[0]
    for penalty in PENALTIES:
        weights = [
            fit_logistic(fold.x, fold.labels, previous, penalty, moments=fold.moments)
            for fold, previous in zip(folds, weights, strict=True)
        ]
        score = sum(
            accuracy(fold.held_out_x, fold.held_out_labels, fitted) for fold, fitted in zip(folds, weights, strict=True)
        )
        if score > best_score:
            best_score, best_penalty, start = score, penalty, weights[0]
        if score < best_score - 0.5 * num_folds:
            break
    return best_penalty, start


@dataclass(frozen=True)
class Preconditioner:
    """A change of variables that gives the loss a similar curvature in all directions.

    The Hessian of the loss is bounded by c·X'X/N + penalty·I (Böhning 1992). `factor` is the Cholesky factor of a
    matrix of this form, with c = `CURVATURE`.
    """

    factor: Tensor  # (D, D)
    inverse: Tensor  # (D, D)

    @classmethod
    def from_moments(cls, moments: Tensor, penalty: float) -> Preconditioner:
        """Build the preconditioner from the second moments (D, D) of the features."""
        curvature = CURVATURE * moments
        curvature.diagonal().add_(penalty + 1e-6 * float(curvature.diagonal().mean()))
        factor = torch.linalg.cholesky(curvature)
        return cls(factor, torch.linalg.solve_triangular(factor, torch.eye(len(factor)), upper=False))

    def to_variables(self, weights: Tensor) -> Tensor:
        """Convert weights (classes, D + 1) to the optimized variables."""
        return torch.cat([weights[:, :-1] @ self.factor, weights[:, -1:] * CURVATURE**0.5], -1)

    def to_weights(self, variables: Tensor) -> Tensor:
        """Convert the optimized variables to weights."""
        return torch.cat([variables[:, :-1] @ self.inverse, variables[:, -1:] / CURVATURE**0.5], -1)

    def gradient(self, kernel: Tensor, bias: Tensor) -> Tensor:
        """Convert the gradient with respect to the weights to that with respect to the variables."""
        return torch.cat([kernel @ self.inverse.T, bias / CURVATURE**0.5], -1)


@dataclass(frozen=True)
class Standardization:
    """Mean and standard deviation (D,) of features."""

    mean: Tensor
    std: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Standardize features (N, D)."""
        return (x - self.mean) / self.std

    def to_original(self, weights: Tensor) -> Tensor:
        """Convert weights (classes, D + 1) for standardized features to weights for the original ones."""
        kernel = weights[:, :-1] / self.std
        return torch.cat([kernel, weights[:, -1:] - kernel @ self.mean[:, None]], -1)

    def from_original(self, weights: Tensor) -> Tensor:
        """Convert weights (classes, D + 1) for the original features to weights for standardized ones."""
        return torch.cat([weights[:, :-1] * self.std, weights[:, -1:] + weights[:, :-1] @ self.mean[:, None]], -1)


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


@torch.no_grad()
def fit_logistic(
    x: Tensor,
    labels: Tensor,
    start: Tensor,
    penalty: float,
    *,
    moments: Tensor | None = None,
    standardization: Standardization | None = None,
) -> Tensor:
    """Minimize mean cross-entropy + penalty/2 · |W|² from `start` (classes, D + 1) by preconditioned L-BFGS.

    The bias is not penalized. `moments` are the second moments of x (N, D), computed if not given. Features are read
    in chunks, which are standardized if `standardization` is given.
    """

    def chunks() -> Iterator[tuple[Tensor, Tensor]]:
        for chunk, chunk_labels in zip(x.split(CHUNK_SIZE), labels.split(CHUNK_SIZE), strict=True):
            yield chunk if standardization is None else standardization(chunk), chunk_labels

    if moments is None:
        moments = second_moments(chunk for chunk, _ in chunks())
    preconditioner = Preconditioner.from_moments(moments, penalty)
    variables = preconditioner.to_variables(start)
    optimizer = torch.optim.LBFGS(
        [variables], max_iter=100, history_size=10, tolerance_change=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        weights = preconditioner.to_weights(variables)
        kernel = weights[:, :-1]
        loss = penalty / 2 * kernel.square().sum()
        kernel_gradient, bias_gradient = penalty * kernel, torch.zeros_like(weights[:, -1:])
        for chunk, chunk_labels in chunks():
            log_p = logits(chunk, weights).log_softmax(-1)
            loss -= log_p.gather(1, chunk_labels[:, None]).sum() / len(x)
            residual = log_p.exp_()
            residual[torch.arange(len(chunk)), chunk_labels] -= 1
            residual /= len(x)
            kernel_gradient += residual.T @ chunk
            bias_gradient += residual.sum(0)[:, None]
        variables.grad = preconditioner.gradient(kernel_gradient, bias_gradient)
        return loss

    optimizer.step(closure)
    return preconditioner.to_weights(variables)


def second_moments(chunks: Iterable[Tensor]) -> Tensor:
    """Return the second moments (D, D) of features, given in chunks (N, D)."""
    total, count = torch.zeros(()), 0
    for chunk in chunks:
        total, count = total + chunk.T @ chunk, count + len(chunk)
    return total / count


def feature_statistics(x: Tensor) -> Standardization:
    """Return the mean and the standard deviation of features (N, D).

    The standard deviation of features that are constant up to rounding is infinite, so that they have no effect.
    """
    mean = x.mean(0)
    square = sum((chunk - mean).square().sum(0) for chunk in x.split(CHUNK_SIZE))
    assert isinstance(square, Tensor)
    std = (square / max(len(x) - 1, 1)).sqrt()
    return Standardization(mean, torch.where(std > MIN_RELATIVE_STD * mean.abs(), std, torch.inf))
