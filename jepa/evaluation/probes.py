"""Probes of frozen features: weighted k nearest neighbours and logistic regression, fitted on train, scored on test."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["knn", "linear_probe"]

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


@torch.no_grad()
def knn(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 20, temperature: float = 0.07
) -> float:
    """Accuracy in percent of weighted kNN (Wu et al. 2018; k of DINO) on features (N, D).

    Features are centred on the train mean and L2-normalised; the k nearest by cosine vote with exp(cosine / T).
    """
    mean = train.mean(0)
    bank = F.normalize(train - mean, dim=-1)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    hits = 0
    for queries, labels in zip(test.split(1000), test_labels.split(1000), strict=True):
        similarity, nearest = (F.normalize(queries - mean, dim=-1) @ bank.T).topk(min(k, len(bank)), dim=-1)
        votes = torch.zeros(len(queries), classes).scatter_add_(
            1, train_labels[nearest], (similarity / temperature).exp()
        )
        hits += int((votes.argmax(-1) == labels).sum())
    return 100 * hits / len(test)


def linear_probe(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> tuple[float, float]:
    """Accuracy in percent of a linear probe on features (N, D), and the penalty it chose.

    Features are standardised on train; the L2 penalty is chosen on a tenth of train, then the probe is fitted on all of
    it (LBFGS, full batch).
    """
    mean, std = train.mean(0), train.std(0).clamp(min=1e-6)
    train, test = (train - mean) / std, (test - mean) / std
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    held, rest = order[: len(train) // 10], order[len(train) // 10 :]
    fit_x, fit_y = train[rest], train_labels[rest]
    held_x, held_y = train[held], train_labels[held]
    best = (-1.0, PENALTIES[0])
    weights = torch.zeros(train.shape[1] + 1, classes)
    chosen = weights
    for penalty in PENALTIES:  # from strong to weak, each starting from the last
        weights = fit_logistic(fit_x, fit_y, weights, penalty)
        score = accuracy(held_x, held_y, weights)
        if score > best[0]:
            best, chosen = (score, penalty), weights
    weights = fit_logistic(train, train_labels, chosen, best[1])
    return accuracy(test, test_labels, weights), best[1]


def fit_logistic(x: Tensor, y: Tensor, start: Tensor, penalty: float) -> Tensor:
    """Minimise mean cross-entropy + penalty/2 · |W|² from `start`; returns weights (D + 1, classes), bias last."""
    with torch.enable_grad():
        weights = start.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weights], max_iter=100, history_size=10, tolerance_change=1e-7, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            logits = torch.addmm(weights[-1], x, weights[:-1])
            loss = F.cross_entropy(logits, y) + penalty / 2 * weights[:-1].square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    return weights.detach()


def accuracy(x: Tensor, y: Tensor, weights: Tensor) -> float:
    """Percentage of rows whose largest logit is at their label."""
    return 100 * float(((x @ weights[:-1] + weights[-1]).argmax(-1) == y).float().mean())
