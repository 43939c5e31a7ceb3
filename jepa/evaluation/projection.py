"""Projection of features to two dimensions by UMAP, or by PCA if there are few images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from jepa.config import InputError
from jepa.data import evenly_spaced
from jepa.evaluation.features import Features
from jepa.evaluation.pca import principal_axes
from jepa.evaluation.umap_process import UmapProcess

__all__ = ["Projection", "Projections"]

MAX_POINTS = 5000  # maximum number of projected images
NUM_NEIGHBORS = 15  # number of neighbors for UMAP, the default of umap-learn


@dataclass(frozen=True)
class Projection:
    """Features projected to two dimensions."""

    points: Tensor  # (M, 2)
    labels: Tensor | None  # (M,)
    method: str  # "UMAP" or "PCA"


class Projections:
    """Projections of up to 5,000 features of each of several encoders, evenly spaced over the split.

    UMAP (McInnes et al. 2018, arXiv 1802.03426) is run with a fixed seed on the cosine distance of centered features,
    as in kNN. PCA is used if there are too few images. UMAP starts at once, in another process.
    """

    def __init__(self, features: Sequence[Features]) -> None:
        self.chosen = [(part, evenly_spaced(len(part.x), MAX_POINTS)) for part in features]
        self.x = [part.x[indices] - part.x.mean(0) for part, indices in self.chosen]
        self.is_umap = [len(x) > NUM_NEIGHBORS and bool(x.any()) for x in self.x]
        sets = [(x.numpy(), *neighbors(x)) for x, is_umap in zip(self.x, self.is_umap, strict=True) if is_umap]
        self.error: OSError | None = None
        self.process: UmapProcess | None = None
        try:
            self.process = UmapProcess(sets) if sets else None
        except OSError as error:  # for example because the disk is full
            self.error = error

    @cached_property
    def results(self) -> list[Projection]:
        """The projection of each of the features, when UMAP has ended. Raises `InputError` if it has failed."""
        try:
            if self.error:
                raise self.error
            points = iter(self.process.result() if self.process else ())
        except OSError as error:
            raise InputError(f"UMAP has failed ({error})") from error
        projections = []
        for (part, indices), x, is_umap in zip(self.chosen, self.x, self.is_umap, strict=True):
            labels = None if part.labels is None else part.labels[indices]
            if is_umap:
                projections.append(Projection(torch.as_tensor(next(points)), labels, "UMAP"))
            else:
                axes = principal_axes(x)[1][:, :2].float()
                projections.append(Projection(x @ F.pad(axes, (0, 2 - axes.shape[1])), labels, "PCA"))
        return projections


def neighbors(x: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the positions and the cosine distances (N, 15) of the nearest of centered features (N, D)."""
    unit = F.normalize(x, dim=-1)
    nearest = [(chunk @ unit.T).topk(NUM_NEIGHBORS) for chunk in unit.split(1000)]
    cosines, positions = torch.cat([top.values for top in nearest]), torch.cat([top.indices for top in nearest])
    return positions.numpy(), (1 - cosines).clamp(min=0).numpy()
