"""The Vision Transformer of I-JEPA: fixed sin-cos positions, no class token, pre-norm blocks.

The blocks are timm's; initialisation and the handling of padded tokens are here.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from jepa.backbones.base import Trunk
from jepa.backbones.patches import PatchBackbone
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

    def attentions(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the attention weights (L, B, H, N, N) of every block: image, head, query, key."""
        mask = self._prepare(x, valid)
        weights = []
        for block in self.blocks:
            assert isinstance(block, Block)
            weights.append(attention_weights(block.attn, block.norm1(x), mask))
            x = block(x, attn_mask=mask)
        return torch.stack(weights)

    def _prepare(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        """Choose the attention kernel for the device, and shape `valid` to a mask of the keys (B, 1, 1, N)."""
        for module in self.modules():
            if isinstance(module, Attention):
                # measured on two cores at 64 tokens: plain matmuls take 14.7 ms where the fused kernel takes 19.7 ms
                module.fused_attn = x.is_cuda
        return None if valid is None else valid[:, None, None, :]


class ViT(PatchBackbone):
    """A Vision Transformer over a grid of patches; only the tokens in `keep` enter the blocks."""

    def __init__(self, config: ViTConfig, channels: int, image_size: tuple[int, int]) -> None:
        dim, depth, heads, mlp_ratio = config.dimensions
        trunk = ViTTrunk(dim, depth, heads, mlp_ratio)
        super().__init__(trunk, config.stem, config.patch, dim, depth, channels, image_size)


def attention_weights(attention: Attention, x: Tensor, mask: Tensor | None) -> Tensor:
    """Work out softmax(q·k / sqrt(width of a head)) (B, H, N, N), which a fused kernel does not give out."""
    queries, keys, _ = rearrange(attention.qkv(x), "b n (three h z) -> three b h n z", three=3, h=attention.num_heads)
    logits: Tensor = (attention.q_norm(queries) * attention.scale) @ attention.k_norm(keys).mT
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf)
    return logits.softmax(-1)


def init_weights(module: nn.Module) -> None:
    """Initialise a linear layer as the published code: truncated normal of 0.02, no bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
