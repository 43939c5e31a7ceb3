"""The Vision Transformer of I-JEPA: fixed sin-cos positions, no class token, pre-norm blocks.

The blocks are timm's; stems, initialisation and the handling of kept and padded tokens are here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from jepa.backbones.base import Backbone, Tokens, Trunk, sincos_positions, take
from jepa.config import ViTConfig
from jepa.torchvision_guard import guard

guard()
from timm.models.vision_transformer import Attention, Block  # noqa: E402  (needs the guard before it)

__all__ = ["ViT", "ViTTrunk"]


class ViTTrunk(Trunk):
    """A stack of pre-norm transformer blocks and a final LayerNorm."""

    def __init__(self, dim: int, depth: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        blocks = [Block(dim, heads, mlp_ratio, qkv_bias=True, norm_layer=norm) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm(dim)
        self.apply(init_weights)
        with torch.no_grad():  # output projections shrink with depth, as in the paper's ViT
            for index, block in enumerate(blocks):
                block.attn.proj.weight.div_(math.sqrt(2 * (index + 1)))
                block.mlp.fc2.weight.div_(math.sqrt(2 * (index + 1)))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, D) to normalised tokens; tokens that are not `valid` (B, N) are never attended to."""
        mask = self._prepare(x, valid)
        for block in self.blocks:
            x = block(x, attn_mask=mask)
        return self.norm(x)  # type: ignore[no-any-return]

    def layers(self, x: Tensor, valid: Tensor | None = None) -> list[Tensor]:
        """Return the output of every block under the final norm."""
        mask = self._prepare(x, valid)
        outputs = []
        for block in self.blocks:
            x = block(x, attn_mask=mask)
            outputs.append(self.norm(x))
        return outputs

    def _prepare(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        """Choose the attention kernel for the device, and shape `valid` to a mask of the keys (B, 1, 1, N)."""
        for module in self.modules():
            if isinstance(module, Attention):
                # measured on two cores at 64 tokens: plain matmuls take 14.7 ms where the fused kernel takes 19.7 ms
                module.fused_attn = x.is_cuda
        return None if valid is None else valid[:, None, None, :]


class ViT(Backbone):
    """A Vision Transformer over a grid of patches; only the tokens in `keep` enter the blocks."""

    maskable = True

    def __init__(self, config: ViTConfig, channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        dim, depth, heads, mlp_ratio = config.dimensions
        self.dim, self.stride, self.num_layers = dim, config.patch, depth
        self.trained_grid = (image_size[0] // config.patch, image_size[1] // config.patch)
        self.stem = make_stem(config.stem, channels, dim, config.patch)
        self.trunk = ViTTrunk(dim, depth, heads, mlp_ratio)
        self._positions: dict[tuple[tuple[int, int], torch.device], Tensor] = {}

    def forward(
        self,
        images: Tensor,
        keep: Tensor | None = None,
        valid: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Tokens:
        """Encode images (B, C, H, W) whose sides the patch divides; see `Backbone.forward`."""
        patches = self.stem(images)
        grid = (patches.shape[-2], patches.shape[-1])
        x = rearrange(patches, "b d h w -> b (h w) d") + self.positions(grid, images.device)
        if keep is not None:
            x = take(x, keep)
        if not layers:
            return Tokens(self.trunk(x, valid), grid, valid)
        every = self.trunk.layers(x, valid)
        return Tokens(every[-1], grid, valid, [every[layer] for layer in layers])

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


def init_weights(module: nn.Module) -> None:
    """Initialise a linear layer as the published code: truncated normal of 0.02, no bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
