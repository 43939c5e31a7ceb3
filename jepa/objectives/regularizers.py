"""Regularizers that prevent collapse: variance and covariance over the global batch (VICReg, Bardes et al. 2022)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.distributed import all_sum, world_size
from jepa.objectives.base import full_precision

__all__ = ["covariance_matrix", "feature_std", "variance_covariance"]


def covariance_matrix(x: Tensor) -> Tensor:
    """Return the unbiased covariance (D, D) of embeddings (B, D) over all processes, in fp32 or fp64.

    With gradient accumulation, this is the covariance over one microbatch.
    """
    with torch.autocast(x.device.type, enabled=False):  # bf16 would round variances to three digits
        x = full_precision(x)
        count = len(x) * world_size()
        centered = x - all_sum(x.sum(0)) / count
        return all_sum(centered.T @ centered) / (count - 1)


def variance_covariance(x: Tensor, hinge: float = 1.0, eps: float = 1e-4) -> tuple[Tensor, Tensor]:
    """Return the variance and covariance terms of embeddings (B, D), equations 1 and 3 of VICReg.

    The variance term is the mean over dimensions of max(0, hinge - sqrt(var + eps)). The covariance term is the sum of
    the squared off-diagonal entries of the covariance matrix, divided by D.
    """
    covariance = covariance_matrix(x)
    variance = covariance.diagonal()
    off_diagonal = covariance - torch.diag(variance)
    return (hinge - (variance + eps).sqrt()).clamp(min=0).mean(), off_diagonal.square().sum() / x.shape[1]


def feature_std(x: Tensor) -> Tensor:
    """Return the standard deviation of L2-normalized features (N, D), averaged over dimensions.

    It is 0 for collapsed features and 1 / sqrt(D) for isotropic ones.
    """
    return F.normalize(x, dim=-1).std(0, correction=0).mean()
