"""Multinomial logistic regression, fitted by L-BFGS in memory or by minibatch SGD.

Weights are (classes, D + 1), bias last; this layout multiplies several times faster than its transpose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["accuracy", "feature_statistics", "fit_by_minibatches", "fit_in_memory", "fit_logistic"]

PENALTIES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
MIN_HELD_OUT = 1000  # minimum number of features to select a penalty on, over all folds
MAX_FOLDS = 5  # maximum number of folds, each of a tenth of the features
LEARNING_RATES = (3.0, 1.0, 0.3, 0.1, 0.03)  # candidate learning rates for SGD
EPOCHS, BATCH_SIZE = 10, 1024  # settings of SGD
CURVATURE = 0.1  # typical p (1 - p) of a class; scales the preconditioner without changing the solution
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


def fit_in_memory(x: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, float]:
    """Select an L2 penalty on held-out features, then fit all features (N, D); return weights and penalty.

    Features are standardized for the fit; the returned weights apply to the original features. The penalty is selected
    by k-fold cross-validation with up to five tenths, until 1,000 features are held out.
    """
    mean, std = feature_statistics(x)
    x = (x - mean) / std
    wide = x.shape[1] > len(x)
    if wide:  # the optimal weights lie in the span of the features, of dimension at most N
        basis = torch.linalg.qr(x.T).Q
        x = x @ basis
    penalty, start = choose_penalty(x, labels, classes)
    weights = fit_logistic(x, labels, start, penalty)
    if wide:
        weights = torch.cat([weights[:, :-1] @ basis.T, weights[:, -1:]], -1)
    return unstandardize(weights, mean, std), penalty


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
    num_folds = min(MAX_FOLDS, math.ceil(MIN_HELD_OUT / max(len(tenths[0]), 1)))
    folds = []
    for i in range(num_folds):
        rest, held_out = torch.cat([*tenths[:i], *tenths[i + 1 :]]), tenths[i]
        folds.append(Fold(x[rest], labels[rest], x[held_out], labels[held_out], second_moments(x[rest])))
    weights = [x.new_zeros(classes, x.shape[1] + 1) for _ in folds]
    best_score, best_penalty, start = -1.0, PENALTIES[0], weights[0]
    for penalty in PENALTIES:
        weights = [
            fit_logistic(fold.x, fold.labels, previous, penalty, fold.moments)
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


def second_moments(x: Tensor) -> Tensor:
    """Return the second moments (D, D) of features (N, D)."""
    return x.T @ x / len(x)


@torch.no_grad()
def fit_logistic(x: Tensor, labels: Tensor, start: Tensor, penalty: float, moments: Tensor | None = None) -> Tensor:
    """Minimize mean cross-entropy + penalty/2 · |W|² from `start` (classes, D + 1) by preconditioned L-BFGS.

    The bias is not penalized. `moments` are the second moments of x (N, D), computed if not given.
    """
    preconditioner = Preconditioner.from_moments(second_moments(x) if moments is None else moments, penalty)
    one_hot = F.one_hot(labels, len(start)).float()
    variables = preconditioner.to_variables(start)
    optimizer = torch.optim.LBFGS(
        [variables], max_iter=100, history_size=10, tolerance_change=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        weights = preconditioner.to_weights(variables)
        kernel = weights[:, :-1]
        log_p = logits(x, weights).log_softmax(-1)
        loss = penalty / 2 * kernel.square().sum() - (log_p * one_hot).sum() / len(x)
        residual = log_p.exp_().sub_(one_hot).div_(len(x))
        variables.grad = preconditioner.gradient(residual.T @ x + penalty * kernel, residual.sum(0)[:, None])
        return loss

    optimizer.step(closure)
    return preconditioner.to_weights(variables)


def fit_by_minibatches(x: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, float]:
    """Select a learning rate on a held-out tenth, then fit all features; return weights and learning rate."""
    mean, std = feature_statistics(x)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held_out, rest = order.tensor_split([len(x) // 10])
    candidates = sgd(x, labels, rest, mean=mean, std=std, lrs=LEARNING_RATES, classes=classes)
    scores = [accuracy(x[held_out], labels[held_out], unstandardize(weights, mean, std)) for weights in candidates]
    best = LEARNING_RATES[scores.index(max(scores))]
    (weights,) = sgd(x, labels, order, mean=mean, std=std, lrs=(best,), classes=classes)
    return unstandardize(weights, mean, std), best


@torch.no_grad()
def sgd(
    x: Tensor, labels: Tensor, indices: Tensor, *, mean: Tensor, std: Tensor, lrs: Sequence[float], classes: int
) -> list[Tensor]:
    """Minimize the mean cross-entropy by SGD with momentum, for all learning rates at once.

    Returns one weight matrix (classes, D + 1) per rate. The features at `indices` are used, standardized by `mean` and
    `std`. Learning rates are divided by D and follow a cosine schedule to 0.
    """
    lr = torch.tensor(lrs)[:, None, None] / x.shape[1]
    weights = torch.zeros(len(lrs), classes, x.shape[1] + 1)
    momentum = torch.zeros_like(weights)
    generator = torch.Generator().manual_seed(0)
    steps = EPOCHS * math.ceil(len(indices) / BATCH_SIZE)
    step = 0
    for _ in range(EPOCHS):
        for batch in indices[torch.randperm(len(indices), generator=generator)].split(BATCH_SIZE):
            inputs = F.pad((x[batch] - mean) / std, (0, 1), value=1.0)
            residual = (inputs @ weights.mT).softmax(-1)
            residual[:, torch.arange(len(batch)), labels[batch]] -= 1
            momentum.mul_(0.9).add_(residual.mT @ inputs / len(batch))
            weights -= lr * 0.5 * (1 + math.cos(math.pi * step / steps)) * momentum
            step += 1
    return list(weights)


def feature_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation (D,) of features (N, D)."""
    mean = x.mean(0)
    square = sum((chunk - mean).square().sum(0) for chunk in x.split(CHUNK_SIZE))
    assert isinstance(square, Tensor)
    return mean, (square / max(len(x) - 1, 1)).sqrt().clamp(min=1e-6)


def unstandardize(weights: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Convert weights (classes, D + 1) for standardized features to weights for the original features."""
    kernel = weights[:, :-1] / std
    return torch.cat([kernel, weights[:, -1:] - kernel @ mean[:, None]], -1)
