"""Configs of backbones: Vision Transformers, Energy Transformers, ConvNets."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from jepa.config.base import BackboneConfig
from jepa.config.data import DataConfig
from jepa.config.errors import check_limits, require, suggest
from jepa.config.hints import shown

__all__ = [
    "VIT_SIZES",
    "ConvNetConfig",
    "EnergyConfig",
    "PlainConvNetConfig",
    "TimmViTConfig",
    "ViTConfig",
    "is_power_of_two",
    "parse_width",
]

MAX_DIM, MAX_DEPTH = 16_384, 1_000
MAX_PARAMETERS = 30_000_000_000  # of the blocks; the largest published Vision Transformer has 22 billion
MAX_TOKENS = 65_536  # of an image
MAX_MLP_RATIO = 16
WHITENING_SIDE = 4  # side of a whitening filter, in pixels
VIT_SIZES: dict[str, tuple[int, int, int, float]] = {
    "tiny": (192, 12, 3, 4.0),
    "small": (384, 12, 6, 4.0),
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "huge": (1280, 32, 16, 4.0),
    "giant": (1408, 40, 16, 48 / 11),
}
"""Named sizes: width, depth, heads, MLP ratio (Dosovitskiy et al. 2021; giant: Zhai et al. 2022)."""


def is_power_of_two(number: int) -> bool:
    """Return whether a number is a power of two, 2 or more."""
    return number >= 2 and number & (number - 1) == 0


def parse_width(text: str, where: str, others: str = "") -> tuple[int, int, int]:
    """Parse `DIMxDEPTHxHEADS`, or `DIMxDEPTH` with heads of width 64 (32 if DIM is not a multiple of 64).

    Raises `InputError` for any other form. The message contains `where`, the name of the setting, and `others`, any
    additional accepted values.
    """
    parts = text.lower().split("x")
    is_shape = len(parts) in (2, 3) and all(re.fullmatch("[0-9]{1,9}", part) and int(part) > 0 for part in parts)
    require(
        is_shape,
        f"{where} must be {others}DIMxDEPTH or DIMxDEPTHxHEADS with positive integers, such as 192x6x3, got "
        f"{shown(text)}",
    )
    dim, depth = int(parts[0]), int(parts[1])
    heads = int(parts[2]) if len(parts) == 3 else max(1, dim // (64 if dim % 64 == 0 else 32))
    require(
        dim % heads == 0,
        f"{where} is '{text}', but {dim} is not divisible by {heads} heads; choose a divisor of {dim} as HEADS",
    )
    require(dim % 4 == 0, f"{where} is '{text}'; DIM must be a multiple of 4 for the sin-cos position embeddings")
    require(
        dim <= MAX_DIM and depth <= MAX_DEPTH and 12 * dim**2 * depth <= MAX_PARAMETERS,
        f"{where} must have DIM at most {MAX_DIM:,}, DEPTH at most {MAX_DEPTH:,}, and at most {MAX_PARAMETERS:,} "
        f"parameters, got '{text}'",
    )
    return dim, depth, heads


def check_patches(size: str, patch: int, stem: str) -> None:
    """Raise `InputError` for a size, patch or stem that a backbone over patches does not support."""
    require(patch >= 1, f"backbone.patch must be at least 1 pixel, got {patch}")
    if size not in VIT_SIZES:
        hint = suggest(size, VIT_SIZES)
        require(
            not size.isalpha(),
            f"backbone.size must be one of {', '.join(VIT_SIZES)}, or DIMxDEPTH[xHEADS] such as 192x6x3, got "
            f"{shown(size)}{hint}",
        )
        parse_width(size, "backbone.size")
    require(
        stem == "linear" or is_power_of_two(patch),
        f"backbone.patch is {patch}, but backbone.stem '{stem}' requires a power of 2; choose a different patch, or "
        "--backbone.stem linear",
    )


def check_grid(patch: int, data: DataConfig) -> None:
    """Raise `InputError` if the image size is not a multiple of the patch size."""
    height, width = data.size
    nearest = max(patch, round(height / patch) * patch)
    require(
        height % patch == 0 and width % patch == 0,
        f"the image size {height}x{width} is not divisible by backbone.patch, which is {shown(patch)}; choose a "
        f"different patch, or --data.image-size {shown(nearest)}",
    )
    tokens = (height // patch) * (width // patch)
    require(
        tokens <= MAX_TOKENS,
        f"an image of {height}x{width} pixels has {tokens:,} patches with backbone.patch {patch}, but at most "
        f"{MAX_TOKENS:,} are supported; choose a larger patch, or a smaller --data.image-size",
    )


def check_whitening(data: DataConfig) -> None:
    """Raise `InputError` if images are smaller than a whitening filter."""
    height, width = data.size
    require(
        min(height, width) >= WHITENING_SIDE,
        f"the whitening filters need images of at least {WHITENING_SIDE}x{WHITENING_SIDE} pixels, got "
        f"{height}x{width}; choose a larger --data.image-size",
    )


@dataclass(frozen=True)
class ViTConfig(BackboneConfig):
    """A Vision Transformer (Dosovitskiy et al. 2021) with sin-cos or learned positions and no class token."""

    kind: ClassVar[str] = "vit"
    maskable: ClassVar[bool] = True

    size: str = "small"
    """tiny, small, base, large, huge, giant, or DIMxDEPTH[xHEADS], such as 192x6x3."""
    patch: int = 16
    """Side of a patch, in pixels."""
    stem: Literal["linear", "conv", "patch-conv", "whitening"] = "linear"
    """Layers from patches to tokens: linear (the paper), conv (3x3 convolutions that look across patch borders),
    patch-conv (each token depends on its own patch only), or whitening (4x4 filters computed from the images and
    not learned, then 2x2 convolutions; looks one pixel across patch borders)."""
    positions: Literal["sincos", "learned"] = "sincos"
    """Fixed sin-cos position embeddings (the paper), or learned ones."""
    mlp_ratio: float | None = None
    """Width of the hidden layer of each block, relative to that of a token: 4 by default, 48/11 for giant."""
    norm_eps: float = 1e-6
    """Constant that the LayerNorms add to the variance."""

    def __post_init__(self) -> None:
        check_patches(self.size, self.patch, self.stem)
        ratio = self.mlp_ratio
        require(ratio is None or 0 < ratio <= MAX_MLP_RATIO, f"backbone.mlp_ratio must be in (0, 16], got {ratio}")
        require(0 <= self.norm_eps <= 1, f"backbone.norm_eps must be between 0 and 1, got {self.norm_eps}")

    def check_data(self, data: DataConfig) -> None:
        """Require an image size that is a multiple of the patch size."""
        check_grid(self.patch, data)
        if self.stem == "whitening":
            check_whitening(data)

    @property
    def dimensions(self) -> tuple[int, int, int, float]:
        """Width, depth, number of heads, MLP ratio."""
        named = self.size in VIT_SIZES
        *shape, ratio = VIT_SIZES[self.size] if named else (*parse_width(self.size, "backbone.size"), 4.0)
        dim, depth, num_heads = (int(number) for number in shape)
        return dim, depth, num_heads, self.mlp_ratio or ratio


MAX_MEMORIES = 256  # per dimension of a token
MIN_SCALE, MAX_SCALE = 1e-6, 1e6  # limits of alpha and beta, within the precision of float32


@dataclass(frozen=True)
class EnergyConfig(BackboneConfig):
    """An Energy Transformer (Hoover et al. 2023): one block that is applied repeatedly and minimizes an energy."""

    kind: ClassVar[str] = "energy"
    maskable: ClassVar[bool] = True

    size: str = "small"
    """As for a ViT, with the number of steps T in place of the depth: tiny, small, …, or DIMxSTEPS[xHEADS], such as
    192x12x3."""
    patch: int = 16
    """Side of a patch, in pixels."""
    stem: Literal["linear", "conv", "patch-conv", "whitening"] = "linear"
    """Layers from patches to tokens: linear (the paper), conv (3x3 convolutions that look across patch borders),
    patch-conv (each token depends on its own patch only), or whitening (4x4 filters computed from the images and
    not learned, then 2x2 convolutions; looks one pixel across patch borders)."""
    positions: Literal["sincos", "learned"] = "sincos"
    """Fixed sin-cos position embeddings, or learned ones (the paper)."""
    memory: Literal["relu", "softmax"] = "relu"
    """Energy function of the Hopfield memories."""
    memories: int = 4
    """Number of Hopfield memories per dimension of a token."""
    alpha: float = 0.1
    """Step size of the energy updates."""
    learn_alpha: bool = False
    """Learn the step size, starting from alpha."""
    beta: float | None = None
    """Inverse temperature. By default 1 / sqrt(width of a head); for softmax memories 1 / sqrt(width of a token)."""
    learn_beta: bool = False
    """Learn one inverse temperature per head, starting from beta."""
    self_interaction: bool = False
    """Let tokens attend to themselves, as in the published code but not in the paper."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise added to the tokens after each step, in training."""
    init: Literal["scaled", "paper"] = "scaled"
    """Initialization: standard deviation 1 / sqrt(DIM), or the paper's, which suits a width of 768 and long runs."""

    def __post_init__(self) -> None:
        check_patches(self.size, self.patch, self.stem)
        require(self.memories >= 1, f"backbone.memories must be an integer of at least 1, got {self.memories}")
        check_limits(self, "backbone.", memories=MAX_MEMORIES)
        accepted = f"must be between {MIN_SCALE:g} and {MAX_SCALE:g}"
        require(MIN_SCALE <= self.alpha <= MAX_SCALE, f"backbone.alpha {accepted}, got {self.alpha}")
        require(
            self.beta is None or MIN_SCALE <= self.beta <= MAX_SCALE,
            f"backbone.beta {accepted}, or none, got {self.beta}",
        )
        require(0 <= self.noise < math.inf, f"backbone.noise must be at least 0, got {self.noise}")

    def check_data(self, data: DataConfig) -> None:
        """Require an image size that is a multiple of the patch size."""
        check_grid(self.patch, data)
        if self.stem == "whitening":
            check_whitening(data)

    @property
    def dimensions(self) -> tuple[int, int, int]:
        """Width, number of steps, number of heads."""
        return VIT_SIZES[self.size][:3] if self.size in VIT_SIZES else parse_width(self.size, "backbone.size")


@dataclass(frozen=True)
class ConvNetConfig(BackboneConfig):
    """Any timm ConvNet, by name. Each position of its last feature map is a token."""

    kind: ClassVar[str] = "convnet"
    maskable: ClassVar[bool] = False

    name: str = "convnext_tiny"
    """Name of a timm model: convnext_atto, resnet18, efficientnet_b0, …"""
    small_stem: bool = False
    """Halve the stride of the first layer and remove a pooling layer after it, for images of about 32 pixels."""


@dataclass(frozen=True)
class TimmViTConfig(BackboneConfig):
    """Any Vision Transformer of timm, by name, with its class token, registers and other parts."""

    kind: ClassVar[str] = "timm-vit"
    maskable: ClassVar[bool] = True

    name: str = "vit_small_patch16_224"
    """Name of a timm model: vit_small_patch16_224, vit_base_patch14_dinov2, …"""
    pool: Literal["token", "avg", "avgmax", "max", "map", "prr", ""] = "token"
    """Pooling for which timm built the model; with avg, its final norm follows the average over patches. Features are
    averages over patches with all of them."""


@dataclass(frozen=True)
class PlainConvNetConfig(BackboneConfig):
    """A small ConvNet for short trainings: whitening filters, then 3x3 convolutions with BatchNorm."""

    kind: ClassVar[str] = "plain-convnet"
    maskable: ClassVar[bool] = False

    width: int = 32
    """Number of channels before the first stage; each stage doubles it."""
    stages: int = 3
    """Number of stages, with a pooling in between; a token covers 2^stages x 2^stages pixels."""
    dim: int = 1024
    """Number of channels of the last layer, the width of a token."""

    def __post_init__(self) -> None:
        for name in ("width", "dim"):
            value = getattr(self, name)
            require(value >= 1, f"backbone.{name} must be an integer of at least 1, got {value}")
        require(1 <= self.stages <= 8, f"backbone.stages must be an integer between 1 and 8, got {self.stages}")
        check_limits(self, "backbone.", width=MAX_DIM >> self.stages, dim=MAX_DIM)

    def check_data(self, data: DataConfig) -> None:
        """Require images that are not smaller than a whitening filter."""
        check_whitening(data)

    @property
    def stride(self) -> int:
        """Side of the square that a token covers, in pixels."""
        return int(2**self.stages)
