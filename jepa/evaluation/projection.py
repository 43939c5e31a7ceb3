"""Features in the plane: UMAP, or their two principal axes where umap-learn is not installed."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.evaluation.features import Features

__all__ = ["Projection", "principal_axes", "project"]

SHOWN = 5000  # images
NEIGHBOURS = 15


@dataclass(frozen=True)
class Projection:
    """Places of images in the plane."""

    places: Tensor  # (M, 2)
    labels: Tensor | None  # (M,)
    method: str  # UMAP or PCA


def project(features: Features) -> Projection:
    """Place up to 5,000 images, spread over the split, in the plane.

    UMAP (McInnes et al. 2018, 1802.03426) by cosine of centred features, which is how kNN compares them, with a fixed
    seed. The principal axes stand in for it without umap-learn, or where there are few images.
    """
    rows = torch.arange(len(features.x))[:: -(-len(features.x) // SHOWN)]
    x = features.x[rows] - features.x.mean(0)
    labels = None if features.labels is None else features.labels[rows]
    if find_spec("umap") is None or len(rows) <= NEIGHBOURS or not bool(x.any()):
        return Projection(x @ principal_axes(x, 2), labels, "PCA")
    unit = F.normalize(x, dim=-1)
    found = [(part @ unit.T).topk(NEIGHBOURS) for part in unit.split(1000)]
    cosine, nearest = torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap-learn's about TensorFlow, which it can use, and about its own seed
        from umap.umap_ import UMAP

        # its own search for neighbours takes ten times as long
        known = (nearest.numpy(), (1 - cosine).clamp(min=0).numpy())
        places = UMAP(n_neighbors=NEIGHBOURS, precomputed_knn=known, random_state=0).fit_transform(x.numpy())
    return Projection(torch.as_tensor(places), labels, "UMAP")


def principal_axes(x: Tensor, count: int) -> Tensor:
    """Return the first principal axes (D, count) of features (N, D); where D is less, zeros fill them up."""
    _, axes = torch.linalg.eigh(torch.cov(x.double().T).reshape(x.shape[1], -1))
    return torch.nn.functional.pad(axes.flip(1)[:, :count], (0, max(0, count - x.shape[1]))).float()
