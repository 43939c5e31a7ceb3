"""Attention weights of an encoder, and their entropy and rollout.

Shapes: L layers (steps of an Energy Transformer), B images, H heads, N tokens; weights are indexed by query, then key.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jepa.backbones import Encoder, eval_mode
from jepa.backbones.patch_embed import PatchBackbone

__all__ = ["attention", "entropy", "rollout"]


@torch.no_grad()
def attention(encoder: Encoder, images: Tensor) -> Tensor | None:
    """Return the attention weights (L, B, H, N, N) for images (B, C, H, W), uint8 or floats in [0, 1].

    The weights are those of the forward pass; they sum to 1 over the keys. None is returned if the backbone has no
    attention.
    """
    if not isinstance(encoder.backbone, PatchBackbone):
        return None
    with eval_mode(encoder):
        return encoder.backbone.attention(encoder.prepare(images.to(encoder.device))).float().cpu()


def rollout(weights: Tensor) -> Tensor:
    """Return rollout (B, N, N) of weights (L, B, H, N, N): the share of each input token in each output token.

    It is the product over layers of (A + I) / 2, where A is the mean of the weights over heads (Abnar & Zuidema 2020,
    arXiv 2005.00928).
    """
    identity = torch.eye(weights.shape[-1])
    result = identity
    for layer in weights:
        result = (layer.mean(1) + identity) / 2 @ result
    return result


def entropy(weights: Tensor) -> Tensor:
    """Return the normalized entropy (L, H) of attention weights (L, B, H, N, N), averaged over images and queries.

    It is divided by its maximum, log N: 0 if each token attends to one token, 1 if it attends to all tokens equally.
    """
    entropies = -(weights * weights.clamp(min=1e-12).log()).sum(-1)
    return entropies.mean((1, 3)) / math.log(weights.shape[-1])
