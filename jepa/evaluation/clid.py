"""Cluster learnability and intrinsic dimension, the two measures of CLID (Lu et al. 2022, arXiv 2206.01251)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.data import evenly_spaced
from jepa.evaluation.collapse import check_features
from jepa.evaluation.pixel_baselines import kmeans

__all__ = ["cluster_learnability", "intrinsic_dimension"]

MAX_POINTS = 2_000
MAX_CLUSTERS = 100
POINTS_PER_CLUSTER = 20  # on average, at least
DUPLICATE = 1e-13  # squared distance, relative to the largest squared radius, of points that count as equal
BLOCK_SIZE = 1_000  # number of points whose distances to all are computed at a time


def cluster_learnability(x: Tensor) -> float:
    """Return how well the k-means clusters of features (N, D) are predicted by the nearest neighbor, from 0 to 1.

    Each of up to 2,000 points gets the cluster of the nearest of the points before it, as if they arrived one after the
    other (prequential evaluation). Features are centered and normalized, as for kNN. There are 100 clusters, or one
    for each 20 points if these are fewer. Features without clusters, such as noise of many dimensions, are hard to
    learn; collapsed ones are easy, so the measure says nothing without the intrinsic dimension.
    """
    x = check_features(x)[evenly_spaced(len(x), MAX_POINTS)].float()
    x = F.normalize(x - x.mean(0), dim=-1)
    generator = torch.Generator().manual_seed(0)
    x = x[torch.randperm(len(x), generator=generator)]  # files are often sorted by class
    centroids = kmeans(x, max(1, min(MAX_CLUSTERS, len(x) // POINTS_PER_CLUSTER)), generator)
    clusters = torch.cdist(x, centroids).argmin(1)
    correct = 0
    for start in range(0, len(x), BLOCK_SIZE):
        block = x[start : start + BLOCK_SIZE]
        before = torch.ones(len(block), start + len(block), dtype=torch.bool).tril(start - 1)
        nearest = torch.cdist(block, x[: start + len(block)]).masked_fill(~before, torch.inf).argmin(1)
        first = 1 if start == 0 else 0  # there is nothing before the first point
        found = clusters[nearest] == clusters[start : start + len(block)]
        correct += int(found[first:].sum())
    return correct / (len(x) - 1)


def intrinsic_dimension(x: Tensor) -> float | None:
    """Return the intrinsic dimension of features (N, D), estimated from the two nearest neighbors of each point.

    It is the maximum-likelihood estimate of TwoNN (Facco et al. 2017, arXiv 1803.06992), of up to 2,000 points; those
    that are equal to another one are left out. Boundaries and noise bias it more than the correlation dimension of
    `jepa.evaluation.correlation_dimension`, but it needs no scaling region, so checkpoints can be compared. Returns
    None if fewer than three points are distinct.
    """
    x = check_features(x)[evenly_spaced(len(x), MAX_POINTS)].double()
    if len(x) < 3:
        return None
    x = x - x.mean(0)
    nearest = torch.cat([torch.cdist(block, x).topk(3, largest=False).values for block in x.split(BLOCK_SIZE)])
    distinct = nearest[:, 1].square() > DUPLICATE * x.square().sum(1).max()
    ratios = (nearest[distinct, 2] / nearest[distinct, 1]).log()
    if len(ratios) < 3 or ratios.sum() <= 0:
        return None
    return float((len(ratios) - 1) / ratios.sum())
