"""What every backbone is: images in, tokens out.

Shapes: B images, C channels, N tokens of the grid, K kept tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from jepa.views import resize

__all__ = ["Backbone", "Encoder", "Tokens", "Trunk", "sincos_positions", "take"]


@dataclass
class Tokens:
    """The output of a backbone."""

    x: Tensor  # (B, N, D), the last layer
    grid: tuple[int, int]  # tokens down and across, of this input
    valid: Tensor | None = None  # (B, N) bool; None: all are
    layers: list[Tensor] = field(default_factory=list)  # (B, N, D) each: the layers asked for


class Trunk(nn.Module):
    """Tokens in, tokens out; encoder and predictor both are one inside."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, D) to tokens; where `valid` (B, N) is False a token must not be attended to."""
        raise NotImplementedError

    def layers(self, x: Tensor, valid: Tensor | None = None) -> list[Tensor]:
        """Return the normalised output of every layer, the last of which is `forward`'s."""
        raise NotImplementedError

    def attentions(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the attention weights (L, B, H, N, N) of every layer: image, head, query, key."""
        raise NotImplementedError


class Backbone(nn.Module):
    """Images in, tokens out. `maskable` says whether it can look at a part of the tokens only."""

    dim: int
    stride: int
    num_layers: int
    maskable: bool

    def forward(
        self,
        images: Tensor,
        keep: Tensor | None = None,
        valid: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Tokens:
        """Encode images (B, C, H, W); with `keep` (B, K), only those tokens enter, of which `valid` (B, K) count."""
        raise NotImplementedError

    def pool(self, tokens: Tensor) -> Tensor:
        """Average tokens (B, N, D) to one vector an image (B, D)."""
        return tokens.mean(1)


class Encoder(nn.Module):
    """Preprocessing and a backbone: from pixels to features, everything that is needed to use a trained model."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.backbone, self.size = backbone, size
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(
        self,
        images: Tensor,
        keep: Tensor | None = None,
        valid: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Tokens:
        """Normalise images in [0, 1] (B, C, H, W), of any size that the patches divide, and encode them."""
        tokens: Tokens = self.backbone((images - self.mean) / self.std, keep, valid, layers)
        return tokens

    def prepare(self, images: Tensor) -> Tensor:
        """Resize and normalise images (B, C, H, W), uint8 or floats in [0, 1], to what the backbone takes."""
        return (resize(images, self.size) - self.mean) / self.std

    def embed(self, images: Tensor) -> Tensor:
        """Turn images (B, C, H, W), uint8 or floats in [0, 1], into one averaged vector each (B, D)."""
        return self.backbone.pool(self(resize(images, self.size)).x)


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Gather tokens (B, N, D) at index (B, …) into (B, …, D)."""
    flat = index.flatten(1)
    picked = tokens.gather(1, flat[..., None].expand(-1, -1, tokens.shape[-1]))
    return picked.view(*index.shape, tokens.shape[-1])


def sincos_positions(dim: int, grid: tuple[int, int], trained: tuple[int, int]) -> Tensor:
    """Fixed 2-D sin-cos positions (N, D): the first half encodes the column, the second the row (MAE, I-JEPA).

    On another grid than the trained one the positions are spread over the same range, so that the corners of an image
    keep theirs. Width D must be a multiple of 4.
    """
    omega = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    axes = []
    for length, reference in zip(grid, trained, strict=True):
        place = (torch.arange(length, dtype=torch.float64) + 0.5) * (reference / length) - 0.5
        angle = place[:, None] * omega
        axes.append(torch.cat([angle.sin(), angle.cos()], -1))
    rows, columns = axes
    both = [columns[None].expand(grid[0], -1, -1), rows[:, None].expand(-1, grid[1], -1)]
    return torch.cat(both, -1).flatten(0, 1).float()
