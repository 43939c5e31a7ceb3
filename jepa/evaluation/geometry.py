"""The shape of a cloud of features: the signs of collapse that need no labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["rankme", "spread"]


def rankme(x: Tensor) -> float:
    """Effective rank of features (N, D), N >= D: exp of the entropy of the normalised singular values.

    Garrido et al. 2023 (2210.02885), equation 1. From 1 (collapsed) to D.
    """
    singular = torch.linalg.svdvals(x.double())
    share = singular / singular.sum() + 1e-12
    return float(torch.exp(-(share * share.log()).sum()))


def spread(x: Tensor) -> float:
    """Mean standard deviation of a dimension after L2 normalisation of features (N, D); 1/sqrt(D) is isotropic."""
    return float(F.normalize(x, dim=-1).std(0).mean())
