"""Base class of the networks that predict masked tokens from visible ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa.backbones import Trunk, sincos_positions

__all__ = ["MaskTokenPredictor"]


class MaskTokenPredictor(nn.Module):
    """Layers of a predictor: a trunk of width P, projections to and from it, a mask token and position embeddings.

    Shapes: tokens of width `dim` are embedded in width P, and predictions have width `out`.
    """

    positions: Tensor

    def __init__(self, trunk: Trunk, width: int, *, dim: int, out: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.trunk = trunk
        self.embed = nn.Linear(dim, width)
        self.project = nn.Linear(width, out)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.register_buffer("positions", sincos_positions(width, grid, grid), persistent=False)
        for module in (self.embed, self.project):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
