"""What the ViT and the Energy Transformer share: pixels to a grid of tokens with positions, then a trunk."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from jepa.backbones.base import Backbone, Tokens, Trunk, sincos_positions, take
from jepa.config import InputError

__all__ = ["PatchBackbone"]


class PatchBackbone(Backbone):
    """A stem, positions (sin-cos ones) and a trunk over the grid of patches; only tokens in `keep` enter the trunk."""

    maskable = True

    def __init__(
        self, trunk: Trunk, stem: str, patch: int, dim: int, depth: int, channels: int, image_size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.dim, self.stride, self.num_layers = dim, patch, depth
        self.trained_grid = (image_size[0] // patch, image_size[1] // patch)
        self.stem = make_stem(stem, channels, dim, patch)
        self.trunk = trunk
        self._positions: dict[tuple[tuple[int, int], torch.device], Tensor] = {}

    def forward(
        self,
        images: Tensor,
        keep: Tensor | None = None,
        valid: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Tokens:
        """Encode images (B, C, H, W) whose sides the patch divides; see `Backbone.forward`."""
        x, grid = self.embed(images)
        if keep is not None:
            x = take(x, keep)
        if not layers:
            return Tokens(self.trunk(x, valid), grid, valid)
        every = self.trunk.layers(x, valid)
        return Tokens(every[-1], grid, valid, [every[layer] for layer in layers])

    def attention(self, images: Tensor) -> Tensor:
        """Return the attention weights of normalised images, (L, B, H, N, N): layer, image, head, query, key."""
        return self.trunk.attentions(self.embed(images)[0])

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Turn images (B, C, H, W) into tokens with positions (B, N, D), and give their grid."""
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise InputError(
                f"an image of {height}x{width} pixels is not divided by patches of {self.stride}; resize it, as "
                "Encoder.embed and Encoder.prepare do"
            )
        patches = self.stem(images)
        grid = (patches.shape[-2], patches.shape[-1])
        return rearrange(patches, "b d h w -> b (h w) d") + self.positions(grid, images.device), grid

    def positions(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """Return the positions (N, D) of a grid, made once for each grid and device."""
        key = (grid, device)
        if key not in self._positions:
            self._positions[key] = sincos_positions(self.dim, grid, self.trained_grid).to(device)
        return self._positions[key]


def make_stem(kind: str, channels: int, dim: int, patch: int) -> nn.Sequential:
    """Build the layers from pixels (B, C, H, W) to a map of tokens (B, D, H/patch, W/patch)."""
    if kind == "linear":
        layers: list[nn.Module] = [nn.Conv2d(channels, dim, patch, patch)]
    else:
        kernel, padding = (3, 1) if kind == "conv" else (2, 0)
        halvings = int(math.log2(patch))
        widths = [max(dim >> (halvings - index), 16) for index in range(1, halvings + 1)]
        layers = []
        for before, after in zip([channels, *widths], widths, strict=False):
            layers += [nn.Conv2d(before, after, kernel, 2, padding), nn.GELU()]
        layers.append(nn.Conv2d(widths[-1], dim, 1))
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            # several layers need the scale of their fan-in, or their output is lost beside the positions
            fan_in = math.prod(layer.weight.shape[1:])
            nn.init.trunc_normal_(layer.weight, std=0.02 if kind == "linear" else math.sqrt(2 / fan_in))
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
