"""First layers that are computed from training images instead of being learned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.backbones.base import Encoder

__all__ = ["FittedLayer", "WhiteningFilters", "copy_fitted_layers", "fit_layers", "has_fitted_layers"]

MAX_PATCHES = 200_000  # maximum number of patches from which the covariance is estimated


class FittedLayer(nn.Module):
    """Base class for layers whose weights are computed from training images and then stay fixed.

    The weights are buffers, so they are part of checkpoints. `train` calls `fit` before the first step.
    """

    def fit(self, images: Tensor) -> None:
        """Compute the weights from images (N, C, H, W), which are normalized in an encoder and else in [0, 1]."""
        raise NotImplementedError


class WhiteningFilters(FittedLayer):
    """Convolution with the whitening filters of patches and with their negatives, followed by ReLU.

    The filters are the eigenvectors of the covariance of patches, divided by the square roots of the regularized
    eigenvalues, as in the first layer of airbench (Jordan 2024, arXiv 2404.00498). Their outputs are decorrelated and,
    except for those of nearly constant directions, have unit variance. The output has `2 · C · kernel²` channels.
    """

    filters: Tensor

    def __init__(self, channels: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        count = channels * kernel * kernel
        self.out_channels = 2 * count
        self.register_buffer("filters", torch.eye(count).view(count, channels, kernel, kernel).repeat(2, 1, 1, 1))

    def fit(self, images: Tensor) -> None:
        """Compute the filters from normalized images (N, C, H, W)."""
        count, channels, kernel, _ = self.filters.shape
        # about as many patches of each image; every second position is enough, because neighbors are alike
        patches = torch.cat([unfold(chunk, kernel) for chunk in images.split(100)])
        patches = patches[:: -(-len(patches) // MAX_PATCHES)].double()
        covariance = patches.T @ patches / len(patches)  # not centered: the mean color is a signal, too
        variances, axes = torch.linalg.eigh(covariance)
        regularized = (variances + 0.01 * variances.mean()).clamp(min=1e-6)
        filters = (axes / regularized.sqrt()).T.flip(0).view(count // 2, channels, kernel, -1)
        self.filters.copy_(torch.cat([filters, -filters]))

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images (B, C, H, W) to (B, 2 · C · kernel², H / stride, W / stride)."""
        return F.conv2d(images, self.filters.to(images.dtype), stride=self.stride, padding=self.padding).relu()


def unfold(images: Tensor, kernel: int) -> Tensor:
    """Return the patches (P, C · kernel²) at every second position of images (B, C, H, W)."""
    return F.unfold(images, kernel, stride=2).mT.flatten(0, 1)


def has_fitted_layers(model: nn.Module) -> bool:
    """Return whether a model has fitted layers."""
    return any(isinstance(module, FittedLayer) for module in model.modules())


@torch.no_grad()
def fit_layers(model: nn.Module, images: Tensor) -> None:
    """Fit the fitted layers of a model to images (N, C, H, W) in [0, 1], normalized for layers of an encoder."""
    fitted: set[nn.Module] = set()
    for module in model.modules():  # an encoder comes before its layers
        if isinstance(module, Encoder) and has_fitted_layers(module):
            normalized = module.prepare(images.to(module.device))
            layers = [layer for layer in module.modules() if isinstance(layer, FittedLayer)]
            for layer in layers:
                layer.fit(normalized)
            fitted.update(layers)
        elif isinstance(module, FittedLayer) and module not in fitted:
            module.fit(images.to(next(module.buffers()).device))


@torch.no_grad()
def copy_fitted_layers(encoder: nn.Module, source: nn.Module) -> None:
    """Copy the fitted layers of `source` to an encoder of the same architecture."""
    for layer, fitted in zip(encoder.modules(), source.modules(), strict=True):
        if isinstance(fitted, FittedLayer):
            layer.load_state_dict(fitted.state_dict())
