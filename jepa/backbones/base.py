"""Interfaces of backbones, trunks and encoders.

Shapes: B images, C channels, N tokens in the grid, K kept tokens, D width, L layers, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from jepa.config import InputError
from jepa.transforms.crop import as_float, resize

__all__ = ["Backbone", "Encoder", "Tokens", "Trunk", "eval_mode", "sincos_positions", "take"]

IMAGE_TOLERANCE = 0.1  # how far images may exceed [0, 1], for example after bicubic resampling
VIEW_TOLERANCE, TRAINING_TOLERANCE = 0.5, 1.0  # how far views of an objective may exceed it, which may have noise


@dataclass
class Tokens:
    """The output of a backbone."""

    x: Tensor  # (B, N, D) output of the last layer, or (B, K, D) if only some tokens were kept
    grid: tuple[int, int]  # number of tokens along the height and width of the input
    valid: Tensor | None = None  # (B, K) bool, False for padding; None if all tokens are valid
    layers: list[Tensor] = field(default_factory=list)  # outputs of the requested layers, same shape as x


class Trunk(nn.Module):
    """Base class for networks that map tokens to tokens, used in encoders and predictors."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, D) to tokens (B, N, D).

        Tokens with `valid` (B, N) False are padding and do not affect the other tokens.
        """
        raise NotImplementedError

    def layers(self, x: Tensor, valid: Tensor | None = None) -> list[Tensor]:
        """Return the normalized output (B, N, D) of each layer; the last is the output of `forward`."""
        raise NotImplementedError

    def attentions(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the attention weights (L, B, H, N, N) of all layers, indexed by query, then key."""
        raise NotImplementedError


class Backbone(nn.Module):
    """Base class for backbones, which map images to tokens.

    Subclasses take `(config, channels, image_size)` and set the attributes below.
    """

    dim: int  # token width
    stride: int  # each token covers stride x stride pixels
    num_layers: int

    def forward(
        self,
        images: Tensor,
        keep: Tensor | None = None,
        valid: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Tokens:
        """Encode normalized images (B, C, H, W).

        Args:
            images: normalized images.
            keep: (B, K) indices of the tokens to process; by default, all tokens are processed.
            valid: (B, K) bool, False for padding in `keep`.
            layers: indices of the layers whose outputs to return as well.
        """
        raise NotImplementedError

    def attention(self, images: Tensor) -> Tensor | None:
        """Return the attention weights (L, B, H, N, N) of normalized images, indexed by query, then key.

        They are those of patches, and sum to 1 over keys. Returns None if the backbone has no attention.
        """
        return None

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter, 0 for the first one, for learning rates that depend on it."""
        return 0

    @classmethod
    def build_trunk(cls, config: Any, dim: int, depth: int, num_heads: int) -> Trunk | None:
        """Build a trunk of the same kind for a predictor, or return None to use a stack of ViT blocks.

        `config` is the config of the backbone.
        """
        return None

    def pool(self, tokens: Tensor) -> Tensor:
        """Average the tokens (B, N, D) of each image into one vector (B, D)."""
        return tokens.mean(1)


class Encoder(nn.Module):
    """A backbone with its preprocessing: everything needed to compute features with a trained model."""

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
        """Normalize and encode images (B, C, H, W), uint8 or floats in [0, 1]; see `Backbone.forward`.

        The height and width must be multiples of the stride. Raises `InputError` if the shape, type or values of the
        images are different. Objectives may add noise to views, so values may be up to 0.5 outside of the range, and 1
        in training mode. They are not checked on a GPU, because training would wait for the result; `embed` and
        `prepare` always check.
        """
        self._check_images(images, TRAINING_TOLERANCE if self.training else VIEW_TOLERANCE, on_gpu=False)
        tokens: Tokens = self.backbone(self._normalize(as_float(images)), keep, valid, layers)
        return tokens

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.mean.device

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens of an image of the size `size`."""
        return self.size[0] // self.backbone.stride, self.size[1] // self.backbone.stride

    def prepare(self, images: Tensor) -> Tensor:
        """Resize and normalize images (B, C, H, W), uint8 or floats in [0, 1], for the backbone.

        Raises `InputError` if the shape, type or values of the images are different.
        """
        self._check_images(images)
        return self._normalize(resize(images, self.size))

    def embed(self, images: Tensor) -> Tensor:
        """Return the average token (B, D) of each image (B, C, H, W), uint8 or floats in [0, 1].

        Raises `InputError` if the shape, type or values of the images are different.
        """
        return self.backbone.pool(self.backbone(self.prepare(images)).x)

    def _normalize(self, images: Tensor) -> Tensor:
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def _check_images(self, images: Tensor, tolerance: float = IMAGE_TOLERANCE, on_gpu: bool = True) -> None:
        """Raise `InputError` unless the images are uint8 or floats in [0, 1] ± `tolerance`, with the right channels.

        `on_gpu` also checks values on a GPU.
        """
        if not isinstance(images, Tensor):
            raise InputError(f"images must be a tensor, got {type(images).__name__}; use torch.as_tensor(images)")
        channels = len(self.mean)
        if images.ndim != 4 or images.shape[1] != channels:
            raise InputError(
                f"images must have the shape (B, {channels}, H, W), got {tuple(images.shape)}; use "
                ".permute(0, 3, 1, 2) for channels-last images and images[None] for a single one"
            )
        if images.dtype == torch.uint8:
            return
        if not images.is_floating_point():
            raise InputError(
                f"images must be uint8 or floats in [0, 1], got {images.dtype}; convert them to floats and divide by "
                "their largest possible value"
            )
        if (on_gpu or images.device.type == "cpu") and images.numel() and not torch.compiler.is_compiling():
            low, high = (float(value) for value in images.detach().aminmax())
            if not (-tolerance <= low and high <= 1 + tolerance):
                raise InputError(
                    f"images must be uint8 or floats in [0, 1], got floats between {low:.4g} and {high:.4g}; divide "
                    "values of 0 to 255 by 255, and do not normalize images, because the encoder does so"
                )


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode within a `with` block, and restore its mode afterwards."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    """Gather tokens (B, N, D) at indices (B, …) into (B, …, D)."""
    flat = indices.flatten(1)
    gathered = tokens.gather(1, flat[..., None].expand(-1, -1, tokens.shape[-1]))
    return gathered.view(*indices.shape, tokens.shape[-1])


def sincos_positions(dim: int, grid: tuple[int, int], trained_grid: tuple[int, int]) -> Tensor:
    """Return the fixed 2-D sin-cos position embeddings (N, D) of a grid, as in MAE and I-JEPA.

    The first half of the features encodes the column, the second half the row. If `grid` differs from `trained_grid`,
    positions are rescaled to the range of the trained grid. D must be a multiple of 4.
    """
    omega = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    axes = []
    for length, trained_length in zip(grid, trained_grid, strict=True):
        position = (torch.arange(length, dtype=torch.float64) + 0.5) * (trained_length / length) - 0.5
        angle = position[:, None] * omega
        axes.append(torch.cat([angle.sin(), angle.cos()], -1))
    rows, columns = axes
    embeddings = [columns[None].expand(grid[0], -1, -1), rows[:, None].expand(-1, grid[1], -1)]
    return torch.cat(embeddings, -1).flatten(0, 1).float()
