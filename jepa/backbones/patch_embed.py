"""Backbones on a grid of patches: patch embedding, position embeddings and a trunk.

Shapes: B images, C channels, N tokens in the grid, D width, L layers, H heads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from jepa.backbones.base import Backbone, Tokens, Trunk, sincos_positions, take
from jepa.backbones.whitening import WhiteningFilters
from jepa.config import InputError

__all__ = ["PatchBackbone"]


class PatchBackbone(Backbone):
    """A patch-embedding stem, position embeddings and a trunk.

    Only the tokens in `keep` are processed by the trunk. `learned_positions` is the standard deviation of the initial
    values of learned position embeddings; by default, they are fixed sines and cosines.
    """

    def __init__(
        self,
        trunk: Trunk,
        *,
        stem: str,
        patch_size: int,
        dim: int,
        num_layers: int,
        channels: int,
        image_size: tuple[int, int],
        learned_positions: float | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.stride, self.num_layers = dim, patch_size, num_layers
        self.trained_grid = (image_size[0] // patch_size, image_size[1] // patch_size)
        self.stem = build_stem(stem, channels, dim, patch_size)
        self.trunk = trunk
        self.learned = None  # learned position embeddings (N, D) on the training grid
        if learned_positions is not None:
            self.learned = nn.Parameter(torch.empty(self.trained_grid[0] * self.trained_grid[1], dim))
            nn.init.normal_(self.learned, std=learned_positions)
        self._sincos_cache: dict[tuple[tuple[int, int], torch.device], Tensor] = {}

    def forward(
        self,
        images: Tensor,
        keep: Tensor | None = None,
        valid: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Tokens:
        """Encode normalized images (B, C, H, W); see `Backbone.forward`.

        Raises `InputError` if the image size is not divisible by the patch size.
        """
        x, grid = self.embed_patches(images)
        if keep is not None:
            x = take(x, keep)
        if not layers:
            return Tokens(self.trunk(x, valid), grid, valid)
        outputs = self.trunk.layers(x, valid)
        return Tokens(outputs[-1], grid, valid, [outputs[layer] for layer in layers])

    def attention(self, images: Tensor) -> Tensor:
        """Return the attention weights (L, B, H, N, N) of normalized images, indexed by query, then key."""
        return self.trunk.attentions(self.embed_patches(images)[0])

    def embed_patches(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the tokens (B, N, D) of images (B, C, H, W), with position embeddings added, and the grid."""
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise InputError(
                f"the image size {height}x{width} is not divisible by the patch size {self.stride}; resize the images, "
                "for example with Encoder.prepare"
            )
        patches = self.stem(images)
        grid = (patches.shape[-2], patches.shape[-1])
        return rearrange(patches, "b d h w -> b (h w) d") + self.positions(grid, images.device), grid

    def layer_of(self, name: str) -> int:
        """Return 0 for the stem, and then the number of the block; a trunk of shared weights is one layer."""
        found = re.match(r"trunk\.blocks\.(\d+)\.", name)
        if found:
            return int(found[1]) + 1
        shared = not hasattr(self.trunk, "blocks")
        return (1 if shared else self.num_layers) if name.startswith("trunk.") else 0

    def positions(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """Return the position embeddings (N, D) of a grid; learned ones are interpolated if necessary."""
        if self.learned is not None:
            if grid == self.trained_grid:
                return self.learned
            embeddings = rearrange(self.learned, "(h w) d -> 1 d h w", h=self.trained_grid[0])
            resized = F.interpolate(embeddings, grid, mode="bicubic", antialias=True)
            return rearrange(resized, "1 d h w -> (h w) d")
        key = (grid, device)
        if key not in self._sincos_cache:
            self._sincos_cache[key] = sincos_positions(self.dim, grid, self.trained_grid).to(device)
        return self._sincos_cache[key]


def build_stem(kind: str, channels: int, dim: int, patch_size: int) -> nn.Sequential:
    """Build the stem, which maps images (B, C, H, W) to tokens (B, D, H / patch_size, W / patch_size)."""
    if kind == "linear":
        layers: list[nn.Module] = [nn.Conv2d(channels, dim, patch_size, patch_size)]
    elif kind == "whitening":
        layers = whitening_stem(channels, dim, patch_size)
    else:
        kernel, padding = (3, 1) if kind == "conv" else (2, 0)
        num_layers = int(math.log2(patch_size))
        widths = [max(dim >> (num_layers - i), 16) for i in range(1, num_layers + 1)]
        layers = []
        for in_channels, out_channels in zip([channels, *widths], widths, strict=False):
            layers += [nn.Conv2d(in_channels, out_channels, kernel, 2, padding), nn.GELU()]
        layers.append(nn.Conv2d(widths[-1], dim, 1))
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            # with std 0.02, the output of a deep stem would be small compared with the position embeddings
            fan_in = math.prod(layer.weight.shape[1:])
            nn.init.trunc_normal_(layer.weight, std=0.02 if kind == "linear" else math.sqrt(2 / fan_in))
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def whitening_stem(channels: int, dim: int, patch_size: int) -> list[nn.Module]:
    """Build whitening filters with stride 2, followed by 2x2 convolutions with stride 2 and GELU in between."""
    filters = WhiteningFilters(channels, kernel=4, stride=2, padding=1)
    num_convs = int(math.log2(patch_size)) - 1
    widths = [filters.out_channels, *(max(dim >> (num_convs - i), 16) for i in range(1, num_convs)), dim]
    if num_convs == 0:
        return [filters, nn.Conv2d(filters.out_channels, dim, 1)]
    layers: list[nn.Module] = [filters]
    for in_channels, out_channels in pairwise(widths):
        layers += [nn.Conv2d(in_channels, out_channels, 2, 2), nn.GELU()]
    return layers[:-1]
