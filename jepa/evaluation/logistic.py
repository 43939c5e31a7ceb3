"""Multinomial logistic regression: by LBFGS on features in memory, by minibatches on those that do not fit.

Weights are (classes, D + 1), the bias last: with rows of features in memory a product against them is several times
faster than against their transpose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["accuracy", "fit_by_minibatches", "fit_in_memory", "fit_logistic"]

PENALTIES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
HELD_OUT = 1000  # images that a penalty is chosen on, from so many tenths of train as that takes
MAX_FOLDS = 5
RATES = (3.0, 1.0, 0.3, 0.1, 0.03)  # of minibatches, chosen like a penalty
EPOCHS, SGD_BATCH = 10, 1024
CURVATURE = 0.1  # p (1 - p) of a class, roughly: scales the preconditioner, not the solution


def accuracy(x: Tensor, y: Tensor, weights: Tensor) -> float:
    """Percentage of rows whose largest logit is at their label."""
    hits = sum(
        int((logits(part, weights).argmax(-1) == answers).sum())
        for part, answers in zip(x.split(10_000), y.split(10_000), strict=True)
    )
    return 100 * hits / len(x)


def logits(x: Tensor, weights: Tensor) -> Tensor:
    """Logits (N, classes) of features (N, D)."""
    return F.linear(x, weights[:, :-1], weights[:, -1])


def fit_in_memory(x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, float]:
    """Choose the L2 penalty on a part of the rows, fit with it on all of them; returns weights and the penalty.

    Features (N, D) are standardised for the fit. The part is a tenth, or, one after the other, as many tenths (at most
    five) as it takes to hold out 1,000 rows.
    """
    mean, std = standard(x)
    x = (x - mean) / std
    wide = x.shape[1] > len(x)
    if wide:  # the best weights lie in the space of the rows, which is smaller
        basis = torch.linalg.qr(x.T).Q
        x = x @ basis
    penalty, start = choose_penalty(x, y, classes)
    weights = fit_logistic(x, y, start, penalty)
    if wide:
        weights = torch.cat([weights[:, :-1] @ basis.T, weights[:, -1:]], -1)
    return unstandardised(weights, mean, std), penalty


def choose_penalty(x: Tensor, y: Tensor, classes: int) -> tuple[float, Tensor]:
    """Return the best of the penalties on tenths that are held out, and weights to start from.

    Penalties go from strong to weak, each fit starting from the last, until one is half a point worse than the best.
    """
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    tenths = order.tensor_split(min(10, len(x)))
    folds = min(MAX_FOLDS, math.ceil(HELD_OUT / max(len(tenths[0]), 1)))
    splits = [(torch.cat([*tenths[:fold], *tenths[fold + 1 :]]), tenths[fold]) for fold in range(folds)]
    parts = [(x[rest], y[rest], x[held], y[held], moments(x[rest])) for rest, held in splits]
    weights = [x.new_zeros(classes, x.shape[1] + 1) for _ in parts]
    best, chosen, start = -1.0, PENALTIES[0], weights[0]
    for penalty in PENALTIES:
        weights = [fit_logistic(*part[:2], last, penalty, part[4]) for part, last in zip(parts, weights, strict=True)]
        score = sum(accuracy(part[2], part[3], fitted) for part, fitted in zip(parts, weights, strict=True))
        if score > best:  # the strongest of equals
            best, chosen, start = score, penalty, weights[0]
        if score < best - 0.5 * folds:
            break
    return chosen, start


@dataclass(frozen=True)
class Preconditioner:
    """A change of variables for the weights in which the loss curves alike in all directions.

    Its Hessian is at most a multiple of X'X/N + penalty (Böhning 1992), whose Cholesky factor is taken here.
    """

    factor: Tensor  # (D, D)
    inverse: Tensor  # (D, D)

    @classmethod
    def of(cls, second: Tensor, penalty: float) -> Preconditioner:
        """Take it for features with these second moments (D, D)."""
        curvature = CURVATURE * second
        curvature.diagonal().add_(penalty + 1e-6 * float(curvature.diagonal().mean()))
        factor = torch.linalg.cholesky(curvature)
        return cls(factor, torch.linalg.solve_triangular(factor, torch.eye(len(factor)), upper=False))

    def to_variables(self, weights: Tensor) -> Tensor:
        """Turn weights (classes, D + 1) into the variables that are solved for."""
        return torch.cat([weights[:, :-1] @ self.factor, weights[:, -1:] * CURVATURE**0.5], -1)

    def to_weights(self, variables: Tensor) -> Tensor:
        """Turn variables back into weights."""
        return torch.cat([variables[:, :-1] @ self.inverse, variables[:, -1:] / CURVATURE**0.5], -1)

    def gradient(self, kernel: Tensor, bias: Tensor) -> Tensor:
        """Turn the gradient of weights into that of the variables."""
        return torch.cat([kernel @ self.inverse.T, bias / CURVATURE**0.5], -1)


def moments(x: Tensor) -> Tensor:
    """Second moments (D, D) of features (N, D)."""
    return x.T @ x / len(x)


@torch.no_grad()
def fit_logistic(x: Tensor, y: Tensor, start: Tensor, penalty: float, second: Tensor | None = None) -> Tensor:
    """Minimise mean cross-entropy + penalty/2 · |W|² from `start` (classes, D + 1), by preconditioned LBFGS.

    `second` are the second moments of x, where they are known.
    """
    change = Preconditioner.of(moments(x) if second is None else second, penalty)
    answers = F.one_hot(y, len(start)).float()
    variables = change.to_variables(start)
    optimizer = torch.optim.LBFGS(
        [variables], max_iter=100, history_size=10, tolerance_change=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        weights = change.to_weights(variables)
        kernel = weights[:, :-1]
        log_p = logits(x, weights).log_softmax(-1)
        loss = penalty / 2 * kernel.square().sum() - (log_p * answers).sum() / len(x)
        wrong = log_p.exp_().sub_(answers).div_(len(x))
        variables.grad = change.gradient(wrong.T @ x + penalty * kernel, wrong.sum(0)[:, None])
        return loss

    optimizer.step(closure)
    return change.to_weights(variables)


def fit_by_minibatches(x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, float]:
    """Fit with every rate at once, then with the one that was best on a tenth of the rows on all of them."""
    mean, std = standard(x)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held, rest = order.tensor_split([len(x) // 10])
    every = descend(x, y, rest, (mean, std), RATES, classes)
    scores = [accuracy(x[held], y[held], unstandardised(weights, mean, std)) for weights in every]
    best = RATES[scores.index(max(scores))]
    (weights,) = descend(x, y, order, (mean, std), (best,), classes)
    return unstandardised(weights, mean, std), best


@torch.no_grad()
def descend(
    x: Tensor, y: Tensor, rows: Tensor, scale: tuple[Tensor, Tensor], rates: Sequence[float], classes: int
) -> list[Tensor]:
    """Minimise mean cross-entropy by SGD with momentum for ten epochs; returns weights (classes, D + 1) a rate.

    Rates are divided by the width of the features and fall to 0 along a cosine; `rows` are those of x to fit on.
    """
    mean, std = scale
    rate = torch.tensor(rates)[:, None, None] / x.shape[1]
    weights = torch.zeros(len(rates), classes, x.shape[1] + 1)
    moving = torch.zeros_like(weights)
    generator = torch.Generator().manual_seed(0)
    steps = EPOCHS * math.ceil(len(rows) / SGD_BATCH)
    done = 0
    for _ in range(EPOCHS):
        for batch in rows[torch.randperm(len(rows), generator=generator)].split(SGD_BATCH):
            inputs = F.pad((x[batch] - mean) / std, (0, 1), value=1.0)
            wrong = (inputs @ weights.mT).softmax(-1)
            wrong[:, torch.arange(len(batch)), y[batch]] -= 1
            moving.mul_(0.9).add_(wrong.mT @ inputs / len(batch))
            weights -= rate * 0.5 * (1 + math.cos(math.pi * done / steps)) * moving
            done += 1
    return list(weights)


def standard(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of features (N, D), a part at a time."""
    mean = x.mean(0)
    square = sum((part - mean).square().sum(0) for part in x.split(10_000))
    assert isinstance(square, Tensor)
    return mean, (square / max(len(x) - 1, 1)).sqrt().clamp(min=1e-6)


def unstandardised(weights: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Turn weights (classes, D + 1) for standardised features into those for the features themselves."""
    kernel = weights[:, :-1] / std
    return torch.cat([kernel, weights[:, -1:] - kernel @ mean[:, None]], -1)
