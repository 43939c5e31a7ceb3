"""Regularizers that prevent collapse, with statistics over the global batch.

Variance and covariance (VICReg, Bardes et al. 2022), correlation (after Barlow Twins, Zbontar et al. 2021), and SIGReg
(LeJEPA, Balestriero & LeCun 2025).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.distributed import all_sum, world_size
from jepa.objectives.base import full_precision

__all__ = ["correlation", "covariance_matrix", "feature_std", "sigreg", "variance_covariance"]

SIGREG_KNOTS, SIGREG_LIMIT = 17, 5.0  # trapezoidal rule on [-5, 5] (algorithm 1 of LeJEPA)


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


def correlation(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Return the sum of the squared correlations between the dimensions of embeddings (B, D), divided by D.

    It is the covariance term of standardized embeddings, and the redundancy reduction of Barlow Twins (arXiv
    2103.03230, equation 1) within one view. Unlike the covariance term, it does not depend on the scale of the
    embeddings, because `eps` is relative to the mean variance. Its expectation for independent dimensions is
    (D - 1) / (B - 1).
    """
    covariance = covariance_matrix(x)
    variance = covariance.diagonal()
    scale = (variance + eps * variance.detach().mean().clamp(min=1e-8)).rsqrt()
    correlations = covariance * scale * scale[:, None]
    off_diagonal = correlations - torch.diag(correlations.diagonal())
    return off_diagonal.square().sum() / x.shape[1]


def feature_std(x: Tensor) -> Tensor:
    """Return the standard deviation of L2-normalized features (N, D), averaged over dimensions.

    It is 0 for collapsed features and 1 / sqrt(D) for isotropic ones.
    """
    return F.normalize(x, dim=-1).std(0, correction=0).mean()


def sigreg(x: Tensor, directions: Tensor) -> Tensor:
    """Return SIGReg of embeddings (…, B, D) along unit vectors (S, D), averaged over the leading dimensions (LeJEPA).

    For each direction, it is the Epps-Pulley statistic N ∫ |φ(t) - exp(-t²/2)|² exp(-t²/2) dt of the projections of all
    N embeddings of the global batch, with their empirical characteristic function φ(t) = mean exp(i t x). Its
    expectation for standard normal embeddings is sqrt(2π) - sqrt(2π / 3) = 1.06. With gradient accumulation, N is the
    size of a microbatch times the number of processes.
    """
    with torch.autocast(x.device.type, enabled=False):  # bf16 would round the phases
        x = full_precision(x)
        num_knots = SIGREG_KNOTS // 2  # only t > 0: the integrand is even, and 0 at t = 0
        step = SIGREG_LIMIT / num_knots
        t = step * torch.arange(1, num_knots + 1, dtype=x.dtype, device=x.device)
        normal = (-t.square() / 2).exp()  # both the characteristic function and the weight
        weights = 2 * step * normal
        weights[-1] /= 2
        phases = (x @ directions.to(x.dtype).T)[..., None] * t  # (…, B, S, T)
        count = x.shape[-2] * world_size()
        cos, sin = all_sum(torch.stack([phases.cos().sum(-3), phases.sin().sum(-3)])) / count  # (…, S, T) each
        statistics: Tensor = count * ((cos - normal).square() + sin.square()) @ weights
        return statistics.mean()
