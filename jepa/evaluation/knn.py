"""Weighted k-nearest-neighbor classification of frozen features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.config import InputError
from jepa.evaluation.features import Features
from jepa.evaluation.labels import check_labels, num_classes, percent_correct

__all__ = ["HEADLINE_K", "NEIGHBORS", "knn", "nearest", "predict_knn"]

NEIGHBORS = (1, 2, 5, 10, 20, 50, 100, 200)  # numbers of neighbors in the report
HEADLINE_K = 20  # number of neighbors for the headline accuracy, as in DINO
BLOCK_SIZE = 64  # number of columns in a block; see `largest`
MIN_BLOCKS = 10  # minimum number of blocks for each value; with fewer, it is faster to sort all columns
BATCH_SIZE = 1000  # number of test features compared with the training features at a time


def nearest(bank: Tensor, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the cosine similarities (Q, count) and positions of the features of a bank (N, D) nearest to queries.

    Features are centered on the mean of the bank.
    """
    mean = bank.mean(0)
    unit = F.normalize(bank - mean, dim=-1)
    found = [largest(F.normalize(x - mean, dim=-1) @ unit.T, count) for x in queries.split(BATCH_SIZE)]
    values, indices = zip(*found, strict=True)
    return torch.cat(values), torch.cat(indices)


def largest(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest values (Q, count) of each row of a matrix (Q, N), in decreasing order, and their positions.

    They are in the blocks of columns with the largest maxima, so only these few are sorted. This takes a quarter of the
    time of `topk` for 20 of 50,000 columns.
    """
    num_blocks = x.shape[1] // BLOCK_SIZE
    if num_blocks < MIN_BLOCKS * count:
        top = x.topk(count, dim=-1)
        return top.values, top.indices
    blocks, rest = x[:, : num_blocks * BLOCK_SIZE].unflatten(1, (-1, BLOCK_SIZE)), x[:, num_blocks * BLOCK_SIZE :]
    chosen = blocks.amax(-1).topk(count, dim=-1).indices
    columns = (chosen[..., None] * BLOCK_SIZE + torch.arange(BLOCK_SIZE, device=x.device)).flatten(1)
    last = torch.arange(x.shape[1] - rest.shape[1], x.shape[1], device=x.device).expand(len(x), -1)
    columns = torch.cat([columns, last], 1)
    top = x.gather(1, columns).topk(count, dim=-1)
    return top.values, columns.gather(1, top.indices)


def knn(
    train: Features, test: Features, neighbors: Sequence[int] = (HEADLINE_K,), temperature: float = 0.07
) -> dict[int, float]:
    """Return the accuracy, in percent, of a kNN classifier for each number of neighbors; see `predict_knn`."""
    predicted = predict_knn(train, test, neighbors, temperature)
    _, test_labels = check_labels(train, test)
    return {k: percent_correct(classes, test_labels) for k, classes in predicted.items()}


@torch.no_grad()
def predict_knn(
    train: Features, test: Features, neighbors: Sequence[int] = (HEADLINE_K,), temperature: float = 0.07
) -> dict[int, Tensor]:
    """Return the classes (N,) that a weighted kNN classifier predicts for test images, for each number of neighbors.

    Features are centered on the mean of `train` and L2-normalized. The k nearest neighbors by cosine similarity vote
    with weight exp(similarity / temperature) (Wu et al. 2018, arXiv 1805.01978). All values of k are evaluated in a
    single pass. Raises `InputError` if a k exceeds the number of training images, or if the features or labels are
    invalid.
    """
    train_labels, test_labels = check_labels(train, test)
    if not neighbors or min(neighbors) < 1 or temperature <= 0:
        raise InputError(f"neighbors and temperature must be positive, got {list(neighbors)} and {temperature}")
    if max(neighbors) > len(train.x):
        raise InputError(f"k = {max(neighbors)} exceeds the number of training images ({len(train.x)})")
    classes = num_classes(train_labels, test_labels)
    predicted: dict[int, list[Tensor]] = {k: [] for k in sorted(neighbors)}
    for similarity, positions in zip(
        *(x.split(BATCH_SIZE) for x in nearest(train.x, test.x, max(neighbors))), strict=True
    ):
        weights, neighbor_labels = (similarity / temperature).exp(), train_labels[positions]
        votes = torch.zeros(len(positions), classes)
        counted = 0
        for k, chosen in predicted.items():
            votes.scatter_add_(1, neighbor_labels[:, counted:k], weights[:, counted:k])
            chosen.append(votes.argmax(-1))
            counted = k
    return {k: torch.cat(predicted[k]) for k in neighbors}
