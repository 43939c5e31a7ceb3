"""What needs no network: principal axes of pixels, and k-means of patches (Coates, Lee & Ng 2011).

Coates' features, one layer without a gradient, are the embarrassment that small self-supervised networks must beat.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from jepa.data import Images
from jepa.evaluation.features import BATCH, Features, as_features, small_images

__all__ = ["PatchDictionary", "principal_features"]

SIDE, CENTROIDS, ROUNDS = 6, 800, 20  # of patches; the paper has 6 pixels and up to 4,000 centroids
SAMPLED = 200_000  # patches that the dictionary is learned from
AT_ONCE = 10  # images whose patches are encoded: 450 a second on two cores, 270 by the hundred


def principal_features(train: Features, test: Features, count: int) -> tuple[Features, Features]:
    """Bring features to their first principal axes, fitted on train."""
    mean = train.x.mean(0)
    gram = torch.zeros(train.x.shape[1], train.x.shape[1])
    for part in train.x.split(10_000):
        gram += (part - mean).T @ (part - mean)
    _, axes = torch.linalg.eigh(gram.double())
    kept = axes.flip(1)[:, :count].float()
    return replace(train, x=(train.x - mean) @ kept), replace(test, x=(test.x - mean) @ kept)


class PatchDictionary:
    """Centroids of whitened patches, learned from images; features are how near each quadrant's patches are to each."""

    def __init__(self, images: Images, index: Tensor) -> None:
        generator = torch.Generator().manual_seed(0)
        taken = index[torch.linspace(0, len(index) - 1, min(len(index), 10_000)).round().long()]
        each = -(-SAMPLED // len(taken))
        parts = []
        for _, batch in small_images(images, taken):
            patches = contrast(F.unfold(batch, SIDE)).mT  # (B, P, D)
            places = torch.randint(patches.shape[1], (len(patches), each), generator=generator)
            parts.append(patches.gather(1, places[..., None].expand(-1, -1, patches.shape[-1])).flatten(0, 1))
        patches = torch.cat(parts)
        self.mean = patches.mean(0)
        values, axes = torch.linalg.eigh(torch.cov(patches.T))
        self.whitening = axes * (values + 0.1).rsqrt() @ axes.T  # ZCA; 0.1 of patches of unit variance, as the paper
        self.centroids = kmeans((patches - self.mean) @ self.whitening, CENTROIDS, generator)

    def features(self, images: Images, index: Tensor) -> Features:
        """Encode the images at `index`: the triangle activation of section 3.2.2, summed over quadrants."""
        rows, parts = [], []
        found = small_images(images, index)
        for row, batch in tqdm(found, desc="k-means of patches", total=-(-len(index) // BATCH), delay=3, leave=False):
            rows.append(row)
            parts += [self.encode(part) for part in batch.split(AT_ONCE)]
        return as_features(torch.cat(parts), [parts[0].shape[1]], torch.cat(rows), images)

    def encode(self, images: Tensor) -> Tensor:
        """Turn images (B, C, H, W) into features (B, 4 · centroids)."""
        patches = (contrast(F.unfold(images, SIDE)).mT - self.mean) @ self.whitening
        distance = torch.cdist(patches, self.centroids)
        near = (distance.mean(-1, keepdim=True) - distance).clamp(min=0)
        grid = near.mT.unflatten(-1, (images.shape[-2] - SIDE + 1, images.shape[-1] - SIDE + 1))
        return F.adaptive_avg_pool2d(grid, 2).flatten(1)


def contrast(patches: Tensor) -> Tensor:
    """Bring patches (B, D, P) to mean 0 and deviation 1 each; 10 of 255 levels keep flat ones flat."""
    centred = patches - patches.mean(1, keepdim=True)
    return centred / (centred.var(1, keepdim=True) + 10 / 255**2).sqrt()


def kmeans(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Find centroids (count, D) of points (N, D) by Lloyd's rounds; one that is left empty keeps its place."""
    centroids = x[torch.randperm(len(x), generator=generator)[:count]].clone()
    for _ in range(ROUNDS):
        nearest = torch.cat([torch.cdist(part, centroids).argmin(1) for part in x.split(10_000)])
        sizes = torch.bincount(nearest, minlength=len(centroids))
        sums = torch.zeros_like(centroids).index_add_(0, nearest, x)
        centroids = torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp(min=1), centroids)
    return centroids
