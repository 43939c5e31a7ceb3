"""Measures without labels that correlate with the accuracy of probes in published studies."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from jepa.backbones import Encoder, eval_mode
from jepa.config import CropConfig
from jepa.evaluation.clid import cluster_learnability, intrinsic_dimension
from jepa.evaluation.collapse import check_features, feature_std, rankme
from jepa.evaluation.features import Subset, read_evenly
from jepa.evaluation.pca import principal_axes
from jepa.rng import Rng
from jepa.transforms.crop import crop

__all__ = ["alpha_req", "label_free_scores", "lidar", "view_features"]

FIRST_AXIS, LAST_AXIS = 3, 100  # of the power law; the first axes do not follow it, and the last ones are noise
RIDGE = 1e-4  # added to the covariance within images, as in the paper (delta)
ROUNDING = 1e-10  # of a covariance, relative to its trace
SMOOTHING = 1e-8  # added to the normalized eigenvalues, as in the paper (epsilon)
NUM_IMAGES, NUM_VIEWS = 500, 6
VIEWS = CropConfig(kind="random", scale=(0.3, 1.0))
BATCH_SIZE = 50


def label_free_scores(
    encoder: Encoder, x: Tensor, subset: Subset, precision: Literal["fp32", "bf16"] = "fp32"
) -> dict[str, float]:
    """Return all measures that need no labels, of features (N, D) of the images of `subset` and of views of these.

    `precision` is that of the forward pass of the views. α-ReQ and the intrinsic dimension are omitted if features have
    collapsed so far that they are not defined.
    """
    scores = {
        "feature_std": float(feature_std(x)),
        "rankme": rankme(x),
        "lidar": lidar(view_features(encoder, subset, precision)),
        "alpha_req": alpha_req(x),
        "cluster_learnability": cluster_learnability(x),
        "intrinsic_dimension": intrinsic_dimension(x),
    }
    return {name: value for name, value in scores.items() if value is not None}


def alpha_req(x: Tensor) -> float | None:
    """Return the exponent α of the power law j^-α of the variances of features (N, D) along their principal axes.

    α-ReQ (Agrawal et al. 2022, arXiv 2202.05808): features generalize best if α is near 1; a larger α means that few
    axes hold most of the variance, a smaller one that there is noise on all. It is fitted by least squares to the
    logarithms of axes 3 to 100. Returns None if there are fewer than three of them with variance.
    """
    variances = principal_axes(check_features(x))[0][FIRST_AXIS - 1 : LAST_AXIS]
    variances = variances[variances > 1e-12 * variances.max()]
    if len(variances) < 3:
        return None
    axes = torch.arange(FIRST_AXIS, FIRST_AXIS + len(variances), dtype=torch.float64).log()
    centered = axes - axes.mean()
    return -float((centered * variances.log()).sum() / centered.square().sum())


def lidar(x: Tensor) -> float:
    """Return LiDAR, the effective rank of what tells images apart, of features (n, q, D) of q views of n images.

    It is the exponential of the entropy of the normalized eigenvalues of Σw^(-1/2) Σb Σw^(-1/2), where Σb is the
    covariance between the means of the images and Σw that within them (Thilak et al. 2023, arXiv 2312.04000, section
    4.2). Unlike RankMe, it does not count axes on which views of an image differ as much as images do.
    """
    means = x.double().mean(1)
    between = means - means.mean(0)
    within = (x.double() - means[:, None]).flatten(0, 1)
    covariance = within.T @ within / len(within)
    # more than in the paper only if features are so large that rounding errors exceed it
    ridge = max(RIDGE, ROUNDING * float(covariance.trace()))
    covariance += ridge * torch.eye(x.shape[-1], dtype=torch.float64)
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), between.T, upper=False)
    eigenvalues = torch.linalg.svdvals(whitened).square() / len(means)
    fractions = eigenvalues / eigenvalues.sum().clamp(min=1e-300) + SMOOTHING
    return float(torch.exp(-(fractions * fractions.log()).sum()))


@torch.no_grad()
def view_features(encoder: Encoder, subset: Subset, precision: Literal["fp32", "bf16"] = "fp32") -> Tensor:
    """Return the average tokens (n, q, D) of 6 random crops of up to 500 images, on the CPU."""
    result = []
    for i, (batch, _) in enumerate(read_evenly(subset, NUM_IMAGES, BATCH_SIZE)):
        pixels = batch.to(encoder.device)
        rng = Rng(0, i, torch.arange(len(pixels), device=encoder.device))
        autocast = torch.autocast(encoder.device.type, torch.bfloat16, enabled=precision == "bf16")
        with eval_mode(encoder), autocast:
            views = [crop(pixels, VIEWS, encoder.size, rng, view=view) for view in range(NUM_VIEWS)]
            result.append(torch.stack([encoder.backbone.pool(encoder(view).x) for view in views], 1).float().cpu())
    return torch.cat(result)
