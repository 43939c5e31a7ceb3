"""Principal component analysis (PCA) of features."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["first_axes", "principal_axes"]

MAX_EXACT_WIDTH = 1024  # of features of which all axes are computed; for wider ones, this takes too long
EXTRA_AXES = 64  # of the subspace iteration, for accuracy
MAX_POINTS = 10_000  # to which its axes are fitted
MIN_VARIANCE = 1e-10  # along an axis, relative to the largest; rounding errors are below it
CHUNK_SIZE = 10_000  # number of features converted to float64 at a time, to bound memory


def principal_axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variances (D,) of features (N, D) along their principal axes, and the axes (D, D), in float64.

    These are the eigenvalues, in decreasing order, and the eigenvectors, one per column, of the unbiased covariance
    matrix.
    """
    dim = x.shape[1]
    total = torch.zeros(dim, dtype=torch.float64)
    for chunk in x.split(CHUNK_SIZE):
        total += chunk.double().sum(0)
    mean = total / len(x)
    covariance = torch.zeros(dim, dim, dtype=torch.float64)
    for chunk in x.split(CHUNK_SIZE):
        centered = chunk.double() - mean
        covariance += centered.T @ centered
    variances, axes = torch.linalg.eigh(covariance / max(len(x) - 1, 1))
    return variances.flip(0).clamp(min=0), axes.flip(1)


def first_axes(x: Tensor, count: int) -> Tensor:
    """Return the first principal axes (D, count) of features (N, D), or fewer if they vary along fewer axes.

    For more than 1,024 features, the axes are fitted to 10,000 evenly spaced points by subspace iteration (Halko et
    al. 2009, arXiv 0909.4061), which takes a fraction of the time of an eigendecomposition.
    """
    if x.shape[1] <= MAX_EXACT_WIDTH:
        variances, axes = principal_axes(x)
    else:
        points = x[:: -(-len(x) // MAX_POINTS)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            singular_values, axes = torch.pca_lowrank(points, min(count + EXTRA_AXES, *points.shape), niter=3)[1:]
        variances = singular_values.square()
    kept = min(count, max(1, int((variances > MIN_VARIANCE * variances[0]).sum())))
    return axes[:, :kept].float()
