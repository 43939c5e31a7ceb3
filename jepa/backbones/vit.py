"""The Vision Transformer of I-JEPA: sin-cos or learned positions, no class token, pre-norm blocks.

The blocks are from timm; this module adds the initialization and the masking of padding.

Shapes: B images, N tokens, D width, L layers, H heads.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from jepa.backbones.base import Trunk
from jepa.backbones.patch_embed import PatchBackbone
from jepa.config import ViTConfig
from jepa.torchvision_guard import guard

guard()
from timm.models.vision_transformer import Attention, Block  # noqa: E402  (timm imports torchvision)

__all__ = ["ViT", "ViTTrunk"]

INITIAL_STD = 0.02  # of weights and learned position embeddings


class ViTTrunk(Trunk):
    """A stack of pre-norm transformer blocks with a final LayerNorm."""

    def __init__(self, dim: int, depth: int, num_heads: int, *, mlp_ratio: float = 4.0, norm_eps: float = 1e-6) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=norm_eps)
        blocks = [Block(dim, num_heads, mlp_ratio, qkv_bias=True, norm_layer=norm) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm(dim)
        self.apply(init_weights)
        with torch.no_grad():  # rescale the output projections by depth, as in the ViT of the I-JEPA code
            for i, block in enumerate(blocks, 1):
                block.attn.proj.weight.div_(math.sqrt(2 * i))
                block.mlp.fc2.weight.div_(math.sqrt(2 * i))

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, D) to normalized tokens. Tokens with `valid` (B, N) False are never attended to."""
        mask = self._prepare(x, valid)
        for block in self.blocks:
            x = block(x, attn_mask=mask)
        return self.norm(x)  # type: ignore[no-any-return]

    def layers(self, x: Tensor, valid: Tensor | None = None) -> list[Tensor]:
        """Return the output (B, N, D) of each block, normalized by the final LayerNorm."""
        mask = self._prepare(x, valid)
        outputs = []
        for block in self.blocks:
            x = block(x, attn_mask=mask)
            outputs.append(self.norm(x))
        return outputs

    def attentions(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the attention weights (L, B, H, N, N) of all blocks, indexed by query, then key."""
        mask = self._prepare(x, valid)
        weights = []
        for block in self.blocks:
            assert isinstance(block, Block)
            weights.append(attention_weights(block.attn, block.norm1(x), mask))
            x = block(x, attn_mask=mask)
        return torch.stack(weights)

    def _prepare(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        """Select the attention kernel for the device, and return `valid` as a mask (B, 1, 1, N) over keys."""
        for block in self.blocks:
            assert isinstance(block, Block)
            # on two CPU cores with 64 tokens, plain matrix products took 14.7 ms and the fused kernel 19.7 ms
            block.attn.fused_attn = x.is_cuda
        return None if valid is None else valid[:, None, None, :]


class ViT(PatchBackbone):
    """A Vision Transformer on a grid of patches. Only the tokens in `keep` are processed by the blocks."""

    def __init__(self, config: ViTConfig, channels: int, image_size: tuple[int, int]) -> None:
        dim, depth, num_heads, mlp_ratio = config.dimensions
        super().__init__(
            ViTTrunk(dim, depth, num_heads, mlp_ratio=mlp_ratio, norm_eps=config.norm_eps),
            stem=config.stem,
            patch_size=config.patch,
            dim=dim,
            num_layers=depth,
            channels=channels,
            image_size=image_size,
            learned_positions=INITIAL_STD if config.positions == "learned" else None,
        )


def attention_weights(attention: Attention, x: Tensor, mask: Tensor | None) -> Tensor:
    """Compute softmax(q·k / sqrt(head width)), (B, H, N, N), which fused kernels do not return."""
    queries, keys, _ = rearrange(attention.qkv(x), "b n (three h z) -> three b h n z", three=3, h=attention.num_heads)
    logits: Tensor = (attention.q_norm(queries) * attention.scale) @ attention.k_norm(keys).mT
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf)
    return logits.softmax(-1)


def init_weights(module: nn.Module) -> None:
    """Initialize linear layers as in the I-JEPA code: truncated normal with std 0.02, zero bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INITIAL_STD)
        nn.init.zeros_(module.bias)
