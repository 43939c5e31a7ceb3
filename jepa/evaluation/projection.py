"""Projection of features to two dimensions by UMAP, or by PCA if there are few images."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.data import evenly_spaced
from jepa.evaluation.features import Features
from jepa.evaluation.pca import principal_axes

__all__ = ["Projection", "project"]

MAX_POINTS = 5000  # maximum number of projected images
NUM_EPOCHS = 200  # the default of umap-learn for many points; for few, it is 500, which looks the same
NUM_NEIGHBORS = 15  # number of neighbors for UMAP, the default of umap-learn


@dataclass(frozen=True)
class Projection:
    """Features projected to two dimensions."""

    points: Tensor  # (M, 2)
    labels: Tensor | None  # (M,)
    method: str  # "UMAP" or "PCA"


def project(features: Features) -> Projection:
    """Project up to 5,000 features, evenly spaced over the split, to two dimensions.

    UMAP (McInnes et al. 2018, arXiv 1802.03426) is run with a fixed seed on the cosine distance of centered features,
    as in kNN. PCA is used if there are too few images.
    """
    indices = evenly_spaced(len(features.x), MAX_POINTS)
    x = features.x[indices] - features.x.mean(0)
    labels = None if features.labels is None else features.labels[indices]
    if len(indices) <= NUM_NEIGHBORS or not bool(x.any()):
        axes = principal_axes(x)[1][:, :2].float()
        return Projection(x @ F.pad(axes, (0, 2 - axes.shape[1])), labels, "PCA")
    return Projection(umap_points(x), labels, "UMAP")


def umap_points(x: Tensor) -> Tensor:
    """Project centered features (N, D) to two dimensions by UMAP."""
    unit = F.normalize(x, dim=-1)
    nearest = [(chunk @ unit.T).topk(NUM_NEIGHBORS) for chunk in unit.split(1000)]
    cosines, neighbors = torch.cat([top.values for top in nearest]), torch.cat([top.indices for top in nearest])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # numba starts one thread per core, which PyTorch would use from then on, whatever OMP_NUM_THREADS is
    os.environ.setdefault("NUMBA_NUM_THREADS", str(torch.get_num_threads()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap-learn warns about missing TensorFlow, and that a seed disables threads
        from umap.umap_ import UMAP

        # the neighbor search of umap-learn takes ten times as long
        precomputed = (neighbors.numpy(), (1 - cosines).clamp(min=0).numpy())
        model = UMAP(n_neighbors=NUM_NEIGHBORS, n_epochs=NUM_EPOCHS, precomputed_knn=precomputed, random_state=0)
        return torch.as_tensor(model.fit_transform(x.numpy()))
