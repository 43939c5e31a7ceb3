"""Masked autoencoder (He et al. 2022, arXiv 2111.06377): predict the pixels of masked patches from the visible ones.

Shapes: B images, N patches, K visible and M masked ones, D encoder width, P decoder width, C·s² pixels per patch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from jepa.backbones import Encoder, build_encoder, build_trunk, take
from jepa.config import Config, InputError, MAEConfig
from jepa.data import Batch
from jepa.objectives.base import Objective, full_precision
from jepa.objectives.mask_tokens import MaskTokenPredictor
from jepa.objectives.regularizers import feature_std
from jepa.rng import Rng
from jepa.transforms.crop import crop

__all__ = ["MAE", "Decoder", "MAEInputs", "patch_pixels"]

EPS = 1e-6  # added to the variance of the pixels of a patch


class MAEInputs(NamedTuple):
    """One view of each image, and a random division of its patches."""

    images: Tensor  # (B, C, H, W) floats in [0, 1]
    visible: Tensor  # (B, K) long, indices of patches in raster order
    masked: Tensor  # (B, M) long


class Decoder(MaskTokenPredictor):
    """A narrow network that predicts the pixels of masked patches from the tokens of the visible ones."""

    def forward(self, x: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """Predict the pixels (B, M, C·s²) of the patches `masked` (B, M) from the tokens (B, K, D) of `visible` (B, K).

        The input for each masked patch is a shared mask token plus its position embedding.
        """
        visible_tokens = self.embed(x) + self.positions[visible]
        mask_tokens = self.mask_token + self.positions[masked]
        tokens = torch.cat([visible_tokens, mask_tokens.to(visible_tokens.dtype)], 1)
        return self.project(self.trunk(tokens)[:, -masked.shape[1] :])  # type: ignore[no-any-return]


class MAE(Objective):
    """A masked autoencoder: an encoder of the visible patches, and a decoder."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert isinstance(config.objective, MAEConfig)
        self.config, self.size = config.objective, config.data.size
        self.encoder = build_encoder(config.backbone, config.data)
        self.patch = self.encoder.backbone.stride
        grid = (self.size[0] // self.patch, self.size[1] // self.patch)
        self.num_patches = grid[0] * grid[1]
        if self.num_patches < 2:
            raise InputError(
                f"a masked autoencoder needs at least 2 patches, but an image of {self.size[0]}x{self.size[1]} pixels "
                f"has one patch of {self.patch} pixels; choose a smaller --backbone.patch"
            )
        num_visible = round((1 - self.config.mask_ratio) * self.num_patches)
        self.num_visible = min(max(1, num_visible), self.num_patches - 1)
        trunk, width = build_trunk(config.backbone, self.config.decoder)
        num_pixels = config.data.channels * self.patch**2
        self.decoder = Decoder(trunk, width, dim=self.encoder.backbone.dim, out=num_pixels, grid=grid)

    def sample(self, batch: Batch, rng: Rng) -> MAEInputs:
        """Crop one view of each image, and divide its patches at random."""
        return self.mask(crop(batch.images, self.config.crop, self.size, rng), rng)

    def mask(self, images: Tensor, rng: Rng) -> MAEInputs:
        """Divide the patches of images (B, C, H, W) at random."""
        order = rng.uniform("mask", self.num_patches).argsort(-1)
        return MAEInputs(images, order[:, : self.num_visible], order[:, self.num_visible :])

    def forward(self, inputs: MAEInputs) -> dict[str, Tensor]:
        """Return "loss", the squared error averaged over the pixels of the masked patches, then over images."""
        images, visible, masked = inputs
        encoded = self.encoder(images, visible).x
        predicted = full_precision(self.decoder(encoded, visible, masked))
        loss = F.mse_loss(predicted, take(self.targets(images), masked).to(predicted.dtype))
        return {"loss": loss, "feature_std": feature_std(full_precision(encoded.detach()).mean(1))}

    def targets(self, images: Tensor) -> Tensor:
        """Return the pixels (B, N, C·s²) of the patches of images, in units of the encoder's normalization.

        With `normalize_pixels`, the pixels of each patch have mean 0 and standard deviation 1.
        """
        pixels = patch_pixels((images - self.encoder.mean) / self.encoder.std, self.patch)
        if not self.config.normalize_pixels:
            return pixels
        variance, mean = torch.var_mean(pixels, -1, keepdim=True)
        return (pixels - mean) / (variance + EPS).sqrt()

    def from_targets(self, targets: Tensor, images: Tensor) -> Tensor:
        """Return images (B, C, H, W) of `targets` (B, N, C·s²).

        With `normalize_pixels`, the mean and standard deviation of each patch are those of `images`.
        """
        if self.config.normalize_pixels:
            pixels = patch_pixels((images - self.encoder.mean) / self.encoder.std, self.patch)
            variance, mean = torch.var_mean(pixels, -1, keepdim=True)
            targets = targets * (variance + EPS).sqrt() + mean
        rows, size = self.size[0] // self.patch, self.patch
        pixels = rearrange(targets, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, p=size, q=size)
        return pixels * self.encoder.std + self.encoder.mean

    def describe(self) -> str:
        """Describe the masks in one line."""
        return f"{self.num_visible} of {self.num_patches} patches are visible, the pixels of the others are predicted"

    def encoders(self) -> dict[str, Encoder]:
        """Return the encoder."""
        return {"encoder": self.encoder}


def patch_pixels(images: Tensor, patch: int) -> Tensor:
    """Return the pixels (B, N, C·s²) of the patches of s x s pixels of images (B, C, H, W), in raster order."""
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch, q=patch)
