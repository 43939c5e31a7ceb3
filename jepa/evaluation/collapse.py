"""Label-free measures of collapse: effective rank, spectrum and standard deviation."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.config import InputError
from jepa.evaluation.pca import principal_axes
from jepa.objectives.regularizers import feature_std

__all__ = ["check_features", "feature_std", "rankme", "spectrum"]


def check_features(x: Tensor) -> Tensor:
    """Validate features (N, D) and return them.

    Raises `InputError` if they are not a matrix of at least two rows, or contain NaN or infinite values.
    """
    if x.ndim != 2 or len(x) < 2:
        raise InputError(f"features must have shape (N, D) for at least two images, got {tuple(x.shape)}")
    if not bool(x.isfinite().all()):
        raise InputError(
            "features contain NaN or infinite values; evaluate an earlier checkpoint or remove the affected images"
        )
    return x


def rankme(x: Tensor) -> float:
    """Return RankMe, the effective rank of features (N, D) with N >= D: from 1 (collapsed) to D.

    This is the exponential of the entropy of the normalized singular values (Garrido et al. 2023, arXiv 2210.02885,
    equation 1).
    """
    singular_values = torch.linalg.svdvals(check_features(x).double())
    if singular_values.max() == 0:
        return 1.0
    fractions = singular_values / singular_values.sum() + 1e-12
    return float(torch.exp(-(fractions * fractions.log()).sum()))


def spectrum(x: Tensor) -> Tensor:
    """Return the explained variance ratios (D,) of the principal axes of features (N, D), in decreasing order.

    They sum to 1, or are all 0 if the features have no variance. Jing et al. 2022 (arXiv 2110.09348) use the spectrum
    to detect dimensional collapse.
    """
    variances, _ = principal_axes(check_features(x))
    ratios: Tensor = variances / variances.sum().clamp(min=1e-300)
    return ratios
