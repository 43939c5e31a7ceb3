"""Measures of collapse, which need no labels: effective rank, spectrum, standard deviation."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.config import InputError
from jepa.evaluation.pca import principal_axes
from jepa.objectives.regularizers import feature_std

__all__ = ["check_features", "feature_std", "rankme", "spectrum"]


def check_features(x: Tensor) -> Tensor:
    """Return features unchanged. Raises `InputError` unless they are finite, of shape (N, D) with N of at least 2."""
    if x.ndim != 2 or len(x) < 2:
        raise InputError(f"features have shape {tuple(x.shape)}; give features (N, D) of at least two images")
    if not bool(x.isfinite().all()):
        raise InputError("some features are NaN or infinite; evaluate an earlier checkpoint, or remove these images")
    return x


def rankme(x: Tensor) -> float:
    """Return RankMe, the effective rank of features (N, D), N >= D: from 1 (collapsed) to D.

    It is the exponential of the entropy of the normalized singular values (Garrido et al. 2023, arXiv 2210.02885,
    equation 1).
    """
    singular_values = torch.linalg.svdvals(check_features(x).double())
    shares = singular_values / singular_values.sum() + 1e-12
    return float(torch.exp(-(shares * shares.log()).sum()))


def spectrum(x: Tensor) -> Tensor:
    """Return the shares (D,) of the variance of features (N, D) along their principal axes, in decreasing order.

    They sum to 1, or are all 0 if the features have no variance. Jing et al. 2022 (arXiv 2110.09348) detect dimensional
    collapse with them.
    """
    variances, _ = principal_axes(check_features(x))
    shares: Tensor = variances / variances.sum().clamp(min=1e-300)
    return shares
