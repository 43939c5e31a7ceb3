"""Principal component analysis (PCA) of features."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["principal_axes"]

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
