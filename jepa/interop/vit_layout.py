"""Names of the weights of a Vision Transformer, and its architecture as their shapes tell it.

timm, the official I-JEPA code and this package share the names within a block; the query, key and value weights are one
matrix.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from jepa.backbones import sincos_positions
from jepa.backbones.vit import ViT
from jepa.config import InputError, ViTConfig
from jepa.config.backbones import VIT_SIZES
from jepa.interop.weights import load_strictly

__all__ = ["Shape", "depth_of", "is_learned", "load_vit", "num_heads_of", "shape_of", "timm_name"]

POSITION_TOLERANCE = 1e-6  # of position embeddings that are taken for sines and cosines


@dataclass(frozen=True)
class Shape:
    """The architecture of a Vision Transformer."""

    dim: int
    depth: int
    num_heads: int
    hidden: int  # width of the hidden layer of a block
    patch: int
    channels: int
    grid: tuple[int, int]
    norm_eps: float = 1e-6

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.grid[0] * self.patch, self.grid[1] * self.patch

    def config(self, learned: bool) -> ViTConfig:
        """Return the config of the backbone; `learned` chooses learned position embeddings."""
        return ViTConfig(
            size=f"{self.dim}x{self.depth}x{self.num_heads}",
            patch=self.patch,
            positions="learned" if learned else "sincos",
            mlp_ratio=None if self.hidden == 4 * self.dim else self.hidden / self.dim,
            norm_eps=self.norm_eps,
        )


def depth_of(tensors: Mapping[str, Tensor], blocks: str) -> int:
    """Return the number of blocks, whose names start with `blocks`."""
    numbers = [int(found[1]) for name in tensors if (found := re.match(rf"{re.escape(blocks)}\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1


def shape_of(tensors: Mapping[str, Tensor], num_heads: int | None, where: str) -> Shape:
    """Return the architecture of weights with the names of timm and of the official code.

    Raises `InputError` if tensors that tell it are missing, or if the grid is no square.
    """
    try:
        weight, positions, hidden = (
            tensors[name] for name in ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")
        )
    except KeyError as error:
        raise InputError(f"{where} lacks the key {error.args[0]} of a Vision Transformer") from error
    if weight.ndim != 4 or positions.ndim != 3 or weight.shape[2] != weight.shape[3]:
        raise InputError(
            f"{where} must have patch_embed.proj.weight (D, C, P, P) and pos_embed (1, N, D), got "
            f"{list(weight.shape)} and {list(positions.shape)}"
        )
    side = math.isqrt(positions.shape[1])
    if side * side != positions.shape[1]:
        raise InputError(f"{where} has {positions.shape[1]} position embeddings, which are no square grid of patches")
    dim, depth = weight.shape[0], depth_of(tensors, "blocks")
    return Shape(
        dim=dim,
        depth=depth,
        num_heads=num_heads or num_heads_of(dim, depth, where),
        hidden=hidden.shape[0],
        patch=weight.shape[2],
        channels=weight.shape[1],
        grid=(side, side),
    )


def num_heads_of(dim: int, depth: int, where: str) -> int:
    """Return the number of heads of a named size. Weights do not tell it, so `InputError` is raised for other sizes."""
    for known_dim, known_depth, num_heads, _ in VIT_SIZES.values():
        if (dim, depth) == (known_dim, known_depth):
            return num_heads
    raise InputError(
        f"{where} has {depth} blocks of width {dim}, which is none of {', '.join(VIT_SIZES)}, and weights do not tell "
        "the number of heads; give it as num_heads=... in Python, or --num-heads"
    )


def is_learned(positions: Tensor, grid: tuple[int, int]) -> bool:
    """Return whether position embeddings (1, N, D) are learned, rather than the sines and cosines of this grid."""
    if positions.shape[-1] % 4 or positions.shape[1] != grid[0] * grid[1]:
        return True
    fixed = sincos_positions(positions.shape[-1], grid, grid)
    return not torch.allclose(positions[0].float(), fixed, atol=POSITION_TOLERANCE)


def timm_name(name: str) -> str:
    """Return the name in timm and the official code of a weight of `jepa.backbones.vit.ViT`."""
    if name == "learned":
        return "pos_embed"
    return name.removeprefix("trunk.").replace("stem.0.", "patch_embed.proj.")


def load_vit(backbone: ViT, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load weights with the names of timm and the official code into a Vision Transformer.

    Raises `InputError` if they do not fit, or if position embeddings are not the sines and cosines of the backbone.
    """
    tensors = dict(tensors)
    if "pos_embed" in tensors:
        positions = tensors.pop("pos_embed")
        if backbone.learned is not None:
            tensors["pos_embed"] = positions[0]
        elif is_learned(positions, backbone.trained_grid):
            raise InputError(
                f"{where} has position embeddings that are not sines and cosines, unlike the other encoder; give a "
                "checkpoint of one training"
            )
    elif backbone.learned is None:
        raise InputError(f"{where} lacks key pos_embed; give the complete weights")
    load_strictly(backbone, tensors, where, timm_name)
