"""Where the tokens of an image look: attention weights of every layer and head, and what can be said of them.

Shapes: L layers (steps of an Energy Transformer), B images, H heads, N tokens, query by key.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jepa.backbones import Encoder, PatchBackbone

__all__ = ["attention", "entropy", "rollout"]


@torch.no_grad()
def attention(encoder: Encoder, images: Tensor) -> Tensor | None:
    """Attention weights (L, B, H, N, N) of images (B, C, H, W), uint8 or floats in [0, 1]; None of a ConvNet.

    They are what the forward pass uses; a row, of one query, sums to 1.
    """
    if not isinstance(encoder.backbone, PatchBackbone):
        return None
    was_training = encoder.training
    encoder.eval()
    weights = encoder.backbone.attention(encoder.prepare(images.to(encoder.mean.device))).float().cpu()
    encoder.train(was_training)
    return weights


def rollout(weights: Tensor) -> Tensor:
    """Follow attention (L, B, H, N, N) through the layers (B, N, N): how much of every token is in which, if all mix.

    Abnar & Zuidema 2020 (2005.00928): the product over layers of (the mean over heads + the identity) / 2.
    """
    flow = torch.eye(weights.shape[-1])
    for layer in weights:
        flow = (layer.mean(1) + torch.eye(weights.shape[-1])) / 2 @ flow
    return flow


def entropy(weights: Tensor) -> Tensor:
    """Entropy of the rows of (L, B, H, N, N) as a share of the greatest, log N; mean over images and queries (L, H).

    0: every token looks at one other, 1: at all alike.
    """
    rows = -(weights * weights.clamp(min=1e-12).log()).sum(-1)
    return rows.mean((1, 3)) / math.log(weights.shape[-1])
