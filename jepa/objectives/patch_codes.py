"""A teacher that is not learned: codes of whitened patches, computed from the training images.

A dictionary of random image patches, whitened, is compared with every patch of a view, as in Coates, Lee & Ng (2011)
and Thiry et al. (2021, arXiv 2101.07528). The similarities are thresholded, averaged over the quadrants of the view,
and whitened. Patches have their brightness and contrast removed, so codes contain shapes and hues, but no mean color,
by which views of an image would be recognized. As targets they cannot collapse, and they are as good at the first step
as at the last one (compare SALT, arXiv 2509.24317).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.backbones import FittedLayer

__all__ = ["CodeTeacher", "PatchCodes"]

PATCH_SIDE, STRIDE = 6, 2  # in pixels; 6 as in Coates et al.
NUM_PATCHES = 256  # number of patches in the dictionary
CODE_DIM = 256  # number of dimensions of a code
WHITENING_EPS = 0.1  # as in Coates et al., for patches of unit variance
MIN_CONTRAST = 10 / 255**2  # added to the variance of a patch, as in Coates et al.
NUM_SAMPLED_PATCHES = 50_000  # approximate number of patches from which the dictionary is computed
PROJECTION_DIM = 128  # number of dimensions in which codes are compared with their predictions
VIEW_SIDE = 32  # larger views are first resized to about this size, so that a patch is a fifth of the view


class PatchCodes(FittedLayer):
    """One whitened code for each view: the similarities of its patches to the dictionary, averaged over quadrants."""

    filters: Tensor
    offset: Tensor
    mean: Tensor
    axes: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = 4 * NUM_PATCHES
        self.register_buffer("filters", torch.zeros(NUM_PATCHES, channels, PATCH_SIDE, PATCH_SIDE))
        self.register_buffer("offset", torch.zeros(NUM_PATCHES, 1, 1))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("axes", torch.eye(width)[:, :CODE_DIM].clone())

    def fit(self, images: Tensor) -> None:
        """Compute the dictionary and the axes from images (N, C, H, W) in [0, 1]."""
        generator = torch.Generator().manual_seed(0)
        images = self._shrink(images)
        patches = sample_patches(images, generator).double()  # (P, D)
        mean = patches.mean(0)
        variances, axes = torch.linalg.eigh(torch.cov(patches.T, correction=0))
        whitening = axes * (variances.clamp(min=0) + WHITENING_EPS).rsqrt() @ axes.T
        order = torch.randperm(len(patches), generator=generator)[:NUM_PATCHES].to(images.device)
        dictionary = F.normalize((patches[order] - mean) @ whitening, dim=1) @ whitening  # (K, D), on contrasts
        offset = dictionary @ mean
        dictionary = dictionary - dictionary.mean(1, keepdim=True)  # so that the mean of a patch has no effect
        self.filters.copy_(dictionary.view_as(self.filters))
        self.offset.copy_(offset.view(-1, 1, 1))
        similarities = torch.cat([self._similarities(chunk) for chunk in images[:500].split(100)])
        std, mean = torch.std_mean(similarities, (0, 2, 3), keepdim=True)
        self.offset.add_((mean + std)[0])  # the threshold is one standard deviation above the mean
        codes = torch.cat([self._pooled(chunk) for chunk in images.split(100)]).double()
        variances, axes = torch.linalg.eigh(torch.cov(codes.T, correction=0))
        regularized = (variances + 1e-3 * variances.mean()).clamp(min=1e-8)
        self.mean.copy_(codes.mean(0))
        self.axes.copy_((axes * regularized.rsqrt()).flip(1)[:, :CODE_DIM])

    @torch.no_grad()
    def forward(self, views: Tensor) -> Tensor:
        """Map views (B, C, H, W) in [0, 1] to whitened codes (B, D)."""
        with torch.autocast(views.device.type, enabled=False):  # bf16 would round similarities to three digits
            codes: Tensor = (self._pooled(self._shrink(views.to(self.filters.dtype))) - self.mean) @ self.axes
        return codes

    def _shrink(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        factor = VIEW_SIDE / min(height, width)
        if factor >= 1:
            return images
        size = [round(height * factor), round(width * factor)]
        return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)

    def _similarities(self, images: Tensor) -> Tensor:
        """Return the similarity of each patch of images to each patch of the dictionary, minus the offset."""
        images = images.contiguous(memory_format=torch.channels_last)
        mean = F.avg_pool2d(images, PATCH_SIDE, STRIDE).mean(1, keepdim=True)
        square = F.avg_pool2d(images.square(), PATCH_SIDE, STRIDE).mean(1, keepdim=True)
        count = self.filters[0].numel()
        contrast = ((square - mean.square()).clamp(min=0) * count / (count - 1) + MIN_CONTRAST).sqrt()
        filters = self.filters.contiguous(memory_format=torch.channels_last)
        return F.conv2d(images, filters, stride=STRIDE).div_(contrast).sub_(self.offset)

    def _pooled(self, images: Tensor) -> Tensor:
        """Return the thresholded similarities, averaged over each quadrant (B, 4 · K)."""
        return F.adaptive_avg_pool2d(self._similarities(images).relu_(), 2).flatten(1)


def sample_patches(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw about as many patches from each image (N, C, H, W), and normalize their brightness and contrast: (P, D)."""
    count = -(-NUM_SAMPLED_PATCHES // len(images))
    samples = []
    for image in images:
        patches = F.unfold(image[None], PATCH_SIDE)[0].T
        samples.append(patches[torch.randint(len(patches), (count,), generator=generator).to(images.device)])
    patches = torch.cat(samples)
    patches = patches - patches.mean(1, keepdim=True)
    return patches / (patches.var(1, keepdim=True) + MIN_CONTRAST).sqrt()


class CodeTeacher(nn.Module):
    """Codes of views and a learned linear projection, which selects what can be predicted of them."""

    dim = PROJECTION_DIM

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.codes = PatchCodes(channels)
        self.projection = nn.Linear(CODE_DIM, PROJECTION_DIM)

    def forward(self, views: Tensor) -> Tensor:
        """Map views (B, C, H, W) in [0, 1] to projected codes (B, D)."""
        return self.projection(self.codes(views))  # type: ignore[no-any-return]
