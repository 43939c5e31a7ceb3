"""Multinomial logistic regression, fitted by L-BFGS on features in memory or in a memory-mapped file.

Weights are (classes, D + 1), bias last; this layout multiplies several times faster than its transpose.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Preconditioner",
    "Standardization",
    "accuracy",
    "feature_statistics",
    "fit_folds",
    "fit_logistic",
    "is_correct",
    "predict",
    "principal_axes",
    "second_moments",
]

TOLERANCE = 1e-6  # change of the loss at which a fit stops
CURVATURE = 0.1  # typical p (1 - p) of a class; scales the preconditioner without changing the solution
MIN_RELATIVE_STD = 1e-5  # standard deviation, relative to the mean, below which float32 features are constant
CHUNK_SIZE = 10_000  # number of features processed at a time, to bound memory


def accuracy(x: Tensor, labels: Tensor, weights: Tensor) -> float:
    """Return the percentage of features (N, D) whose largest logit is that of their label."""
    return 100 * int(is_correct(x, labels, weights).sum()) / len(x)


def is_correct(x: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return whether the largest logit of each feature (N, D) is that of its label."""
    return predict(x, weights) == labels


def predict(x: Tensor, weights: Tensor) -> Tensor:
    """Return the class (N,) of the largest logit of each feature (N, D)."""
    return torch.cat([logits(chunk, weights).argmax(-1) for chunk in x.split(CHUNK_SIZE)])


def logits(x: Tensor, weights: Tensor) -> Tensor:
    """Return the logits (N, classes) of features (N, D)."""
    return F.linear(x, weights[:, :-1], weights[:, -1])


@dataclass(frozen=True)
class Preconditioner:
    """A change of variables that gives the loss a similar curvature in all directions.

    The Hessian of the loss is bounded by c·X'X/N + penalty·I (Böhning 1992). Along the principal axes of the features,
    this is diagonal, so one eigendecomposition serves all penalties; the variables are the weights along these axes,
    multiplied by the square roots of the diagonal, with c = `CURVATURE`.
    """

    variances: Tensor  # (D,): second moments of the features along their principal axes
    axes: Tensor | None = None  # (D, D); None if the features are given along their axes

    def scale(self, penalty: float) -> Tensor:
        """Return the ratio (D + 1,) of weights to variables, bias last."""
        curvature = torch.cat([CURVATURE * self.variances, self.variances.new_full((1,), CURVATURE)])
        curvature[:-1] += penalty + 1e-6 * float(curvature[:-1].mean())
        return curvature.rsqrt()

    def to_axes(self, weights: Tensor) -> Tensor:
        """Rotate weights (..., D + 1) to the principal axes."""
        return weights if self.axes is None else torch.cat([weights[..., :-1] @ self.axes, weights[..., -1:]], -1)

    def from_axes(self, weights: Tensor) -> Tensor:
        """Rotate weights (..., D + 1) back from the principal axes."""
        return weights if self.axes is None else torch.cat([weights[..., :-1] @ self.axes.T, weights[..., -1:]], -1)


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


def fit_logistic(
    x: Tensor,
    labels: Tensor,
    start: Tensor,
    penalty: float,
    *,
    preconditioner: Preconditioner | None = None,
    standardization: Standardization | None = None,
) -> Tensor:
    """Minimize mean cross-entropy + penalty/2 · |W|² from `start` (classes, D + 1) by preconditioned L-BFGS.

    The bias is not penalized. Features (N, D) are read in chunks, which are standardized if `standardization` is given.
    """
    if preconditioner is None:
        chunks = x.split(CHUNK_SIZE) if standardization is None else map(standardization, x.split(CHUNK_SIZE))
        preconditioner = Preconditioner(*principal_axes(second_moments(chunks)))
    row_weights = torch.full((1, len(x)), 1 / len(x))
    fitted = fit_folds(
        x,
        labels,
        start[None],
        penalty,
        row_weights=row_weights,
        preconditioner=preconditioner,
        standardization=standardization,
    )
    return fitted[0]


@torch.no_grad()
def fit_folds(
    x: Tensor,
    labels: Tensor,
    start: Tensor,
    penalty: float,
    *,
    row_weights: Tensor,
    preconditioner: Preconditioner,
    tolerance: float = TOLERANCE,
    standardization: Standardization | None = None,
) -> Tensor:
    """Fit several logistic regressions to the same features (N, D) at once; see `fit_logistic`.

    In fold f, the cross-entropy of feature n has the weight `row_weights` (folds, N), 0 if it is held out. `start` and
    the result are (folds, classes, D + 1). L-BFGS stops when the loss changes by less than `tolerance`.
    """
    folds, classes, _ = start.shape
    scale = preconditioner.scale(penalty)
    variables = preconditioner.to_axes(start) / scale
    optimizer = torch.optim.LBFGS(
        [variables], max_iter=100, history_size=10, tolerance_change=tolerance, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        weights = preconditioner.from_axes(variables * scale)
        kernel = weights[..., :-1]
        loss = penalty / 2 * kernel.square().sum()
        gradient = torch.cat([penalty * kernel, torch.zeros_like(weights[..., -1:])], -1)
        flat = weights.flatten(0, 1)
        for chunk, chunk_labels, chunk_weights in zip(
            x.split(CHUNK_SIZE), labels.split(CHUNK_SIZE), row_weights.T.split(CHUNK_SIZE), strict=True
        ):
            chunk = chunk if standardization is None else standardization(chunk)
            log_p = logits(chunk, flat).view(-1, folds, classes).log_softmax(-1)
            index = chunk_labels[:, None, None].expand(-1, folds, 1)
            loss -= (log_p.gather(2, index)[..., 0] * chunk_weights).sum()
            residual = log_p.exp_().scatter_add_(2, index, -torch.ones_like(log_p[..., :1])) * chunk_weights[..., None]
            gradient[..., :-1] += (residual.flatten(1).T @ chunk).view(folds, classes, -1)
            gradient[..., -1] += residual.sum(0)
        variables.grad = preconditioner.to_axes(gradient) * scale
        return loss

    optimizer.step(closure)
    return preconditioner.from_axes(variables * scale)


def principal_axes(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return the second moments (D,) along the principal axes, and the axes (D, D), of second moments (D, D)."""
    variances, axes = torch.linalg.eigh(moments)
    return variances.clamp(min=0), axes


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
