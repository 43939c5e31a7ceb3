"""The shape of a cloud of features: the signs of collapse that need no labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.config import InputError

__all__ = ["numbers", "rankme", "spectrum", "spread"]


def numbers(x: Tensor) -> Tensor:
    """Return features (N, D), two or more. Raises `InputError` where they are not that, or not all numbers."""
    if x.ndim != 2 or len(x) < 2:
        raise InputError(f"features of shape {tuple(x.shape)} are given; it takes (N, D) of two images or more")
    if not bool(x.isfinite().all()):
        raise InputError(
            "these features hold NaN or infinite values; judge an earlier checkpoint, or leave those rows out"
        )
    return x


def rankme(x: Tensor) -> float:
    """Effective rank of features (N, D), N >= D: exp of the entropy of the normalised singular values.

    Garrido et al. 2023 (2210.02885), equation 1. From 1 (collapsed) to D.
    """
    singular = torch.linalg.svdvals(numbers(x).double())
    share = singular / singular.sum() + 1e-12
    return float(torch.exp(-(share * share.log()).sum()))


def spectrum(x: Tensor) -> Tensor:
    """Shares (D,) of the variance of features (N, D) along their principal axes, falling; all 0 where there is none.

    The eigenvalues of the covariance over their sum (Jing et al. 2022, 2110.09348, look at them for collapse).
    """
    values = torch.linalg.eigvalsh(torch.cov(numbers(x).double().T).reshape(x.shape[1], -1)).flip(0).clamp(min=0)
    shares: Tensor = values / values.sum().clamp(min=1e-300)
    return shares


def spread(x: Tensor) -> float:
    """Mean standard deviation of a dimension after L2 normalisation of features (N, D); 1/sqrt(D) is isotropic."""
    return float(F.normalize(x, dim=-1).std(0).mean())
