"""Attention weights of an encoder, and their entropy and rollout.

Shapes: L layers (steps, for an Energy Transformer), B images, H heads, N tokens. Weights are indexed by query, then
key.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jepa.backbones import Encoder, eval_mode

__all__ = ["attention", "entropy", "rollout"]


@torch.no_grad()
def attention(encoder: Encoder, images: Tensor) -> Tensor | None:
    """Return the attention weights (L, B, H, N, N) of images (B, C, H, W), uint8 or floats in [0, 1].

    These are the weights used in the forward pass; they sum to 1 over the keys. Returns None if the backbone has no
    attention.
    """
    with eval_mode(encoder):
        weights = encoder.backbone.attention(encoder.prepare(images.to(encoder.device)))
    return None if weights is None else weights.float().cpu()


def rollout(weights: Tensor) -> Tensor:
    """Return the attention rollout (B, N, N) of weights (L, B, H, N, N).

    It is the contribution of each input token to each output token: the product over layers of (A + I) / 2, where A is
    the attention averaged over heads (Abnar & Zuidema 2020, arXiv 2005.00928).
    """
    identity = torch.eye(weights.shape[-1])
    result = identity
    for layer in weights:
        result = (layer.mean(1) + identity) / 2 @ result
    return result


def entropy(weights: Tensor) -> Tensor:
    """Return the normalized entropy (L, H) of attention weights (L, B, H, N, N), averaged over images and queries.

    The entropy is divided by its maximum, log N: it is 0 if each token attends to a single token, and 1 if it attends
    to all tokens equally.
    """
    entropies = -(weights * weights.clamp(min=1e-12).log()).sum(-1)
    return entropies.mean((1, 3)) / math.log(weights.shape[-1])
