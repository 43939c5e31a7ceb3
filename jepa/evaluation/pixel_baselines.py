"""Baselines without a network: PCA of raw pixels, and k-means of patches (Coates, Lee & Ng 2011).

The features of Coates et al., a single layer learned without gradients, are a strong baseline for small self-supervised
networks.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from jepa.data import ImageDataset, evenly_spaced
from jepa.evaluation.features import BATCH_SIZE, Features, as_features, small_images
from jepa.evaluation.pca import principal_axes

__all__ = ["PatchDictionary", "pca_features"]

PATCH_SIDE = 6  # patch size in pixels, as in the paper
NUM_CENTROIDS = 800  # number of clusters; up to 4,000 in the paper
KMEANS_ROUNDS = 20
MAX_DICTIONARY_IMAGES = 10_000
NUM_DICTIONARY_PATCHES = 200_000
ENCODE_BATCH_SIZE = 10  # number of images encoded at a time; 450 images/s on two cores, 270 with batches of 100


def pca_features(train: Features, test: Features, dim: int) -> tuple[Features, Features]:
    """Project features onto the first `dim` principal axes of `train`."""
    mean = train.x.mean(0)
    axes = principal_axes(train.x)[1][:, :dim].float()
    return replace(train, x=(train.x - mean) @ axes), replace(test, x=(test.x - mean) @ axes)


class PatchDictionary:
    """K-means centroids of whitened patches.

    The features of an image are the similarities of its patches to each centroid, averaged over each quadrant. `seed`
    determines which patches are sampled and the initial centroids.
    """

    def __init__(self, dataset: ImageDataset, indices: Tensor, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        sampled = indices[evenly_spaced(len(indices), MAX_DICTIONARY_IMAGES)]
        patches_per_image = -(-NUM_DICTIONARY_PATCHES // len(sampled))
        samples = []
        for _, images in small_images(dataset, sampled):
            patches = normalize_contrast(F.unfold(images, PATCH_SIDE)).mT  # (B, P, D)
            count = min(patches_per_image, patches.shape[1])
            positions = torch.randint(patches.shape[1], (len(patches), count), generator=generator)
            samples.append(patches.gather(1, positions[..., None].expand(-1, -1, patches.shape[-1])).flatten(0, 1))
        patches = torch.cat(samples)
        self.mean = patches.mean(0)
        variances, axes = torch.linalg.eigh(torch.cov(patches.T))
        self.whitening = axes * (variances + 0.1).rsqrt() @ axes.T  # ZCA with epsilon 0.1, as in the paper
        self.centroids = kmeans((patches - self.mean) @ self.whitening, NUM_CENTROIDS, generator)

    def features(self, dataset: ImageDataset, indices: Tensor) -> Features:
        """Return the features (N, 4 · centroids) of the images at `indices`."""
        used: list[Tensor] = []
        # one tensor for all features: small ones between freed large ones would fragment the memory, 24 GB on CIFAR-10
        features = torch.empty(len(indices), 4 * len(self.centroids))
        batches, count = small_images(dataset, indices), 0
        total = -(-len(indices) // BATCH_SIZE)
        progress = tqdm(batches, desc="k-means of patches", total=total, delay=3, leave=False, disable=None)
        for batch_indices, images in progress:
            used.append(batch_indices)
            for chunk in images.split(ENCODE_BATCH_SIZE):
                features[count : count + len(chunk)] = self.encode(chunk)
                count += len(chunk)
        return as_features(features[:count], [features.shape[1]], torch.cat(used), dataset)

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, C, H, W) as features (B, 4 · centroids) by the triangle activation (section 3.2.2)."""
        patches = (normalize_contrast(F.unfold(images, PATCH_SIDE)).mT - self.mean) @ self.whitening
        distances = torch.cdist(patches, self.centroids)
        activations = (distances.mean(-1, keepdim=True) - distances).clamp(min=0)
        height, width = images.shape[-2] - PATCH_SIDE + 1, images.shape[-1] - PATCH_SIDE + 1
        return F.adaptive_avg_pool2d(activations.mT.unflatten(-1, (height, width)), 2).flatten(1)


def normalize_contrast(patches: Tensor) -> Tensor:
    """Normalize each patch of (B, D, P) to zero mean and unit standard deviation.

    As in the paper, 10 is added to the variance of pixels from 0 to 255; here, pixels are in [0, 1].
    """
    centered = patches - patches.mean(1, keepdim=True)
    return centered / (centered.var(1, keepdim=True) + 10 / 255**2).sqrt()


def kmeans(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return centroids (count, D) of points (N, D) by Lloyd's algorithm. Empty clusters keep their centroid."""
    centroids = x[torch.randperm(len(x), generator=generator)[:count]].clone()
    for _ in range(KMEANS_ROUNDS):
        nearest = torch.cat([torch.cdist(chunk, centroids).argmin(1) for chunk in x.split(10_000)])
        sizes = torch.bincount(nearest, minlength=len(centroids))
        sums = torch.zeros_like(centroids).index_add_(0, nearest, x)
        centroids = torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp(min=1), centroids)
    return centroids
