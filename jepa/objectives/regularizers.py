"""Terms against collapse: variance and covariance of embeddings over the global batch (VICReg, Bardes et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.distributed import all_sum, world_size
from jepa.objectives.base import full_precision

__all__ = ["covariance_matrix", "variance_covariance"]


def covariance_matrix(x: Tensor) -> Tensor:
    """Unbiased covariance (D, D) of embeddings (B, D) over the batches of all processes, in fp32 at least.

    With accumulation it is that of one part, since the others are not there at the same time.
    """
    with torch.autocast(x.device.type, enabled=False):  # bf16 would round variances to three digits
        x = full_precision(x)
        count = len(x) * world_size()
        centred = x - all_sum(x.sum(0)) / count
        return all_sum(centred.T @ centred) / (count - 1)


def variance_covariance(x: Tensor, hinge: float = 1.0, eps: float = 1e-4) -> tuple[Tensor, Tensor]:
    """Return the variance and the covariance term of embeddings (B, D), VICReg equations 1 and 3.

    Variance: mean over dimensions of max(0, hinge - sqrt(var + eps)). Covariance: the squared off-diagonal entries
    of the covariance matrix, summed, over D.
    """
    covariance = covariance_matrix(x)
    variance = covariance.diagonal()
    off_diagonal = covariance - torch.diag(variance)
    return (hinge - (variance + eps).sqrt()).clamp(min=0).mean(), off_diagonal.square().sum() / x.shape[1]
