"""Encoders: Vision Transformers, Energy Transformers, ConvNets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from jepa.config.data import DataConfig
from jepa.config.errors import require, suggest

__all__ = ["VIT_SIZES", "BackboneConfig", "ConvNetConfig", "EnergyConfig", "ViTConfig", "parse_width"]

VIT_SIZES: dict[str, tuple[int, int, int, float]] = {
    "tiny": (192, 12, 3, 4.0),
    "small": (384, 12, 6, 4.0),
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "huge": (1280, 32, 16, 4.0),
    "giant": (1408, 40, 16, 48 / 11),
}
"""Named sizes: width, depth, heads, MLP ratio (Dosovitskiy et al. 2021; giant: Zhai et al. 2022)."""


def parse_width(text: str, where: str, others: str = "") -> tuple[int, int, int]:
    """Read `DIMxDEPTHxHEADS`, or `DIMxDEPTH` with heads of 64 (of 32 where 64 does not divide DIM)."""
    parts = text.lower().split("x")
    accepted = f"it takes {others}DIMxDEPTH or DIMxDEPTHxHEADS, whole numbers from 1, such as 192x6 or 192x6x3"
    is_shape = len(parts) in (2, 3) and all(part.isdigit() and int(part) > 0 for part in parts)
    require(is_shape, f"{where} is '{text}'; {accepted}")
    dim, depth = int(parts[0]), int(parts[1])
    heads = int(parts[2]) if len(parts) == 3 else max(1, dim // (64 if dim % 64 == 0 else 32))
    require(dim % heads == 0, f"{where} is '{text}', but {heads} heads do not divide {dim}; choose another HEADS")
    require(dim % 4 == 0, f"{where} is '{text}'; DIM must be a multiple of 4 for sin-cos positions")
    return dim, depth, heads


def check_patches(size: str, patch: int, stem: str) -> None:
    """Refuse a size, patch or stem that a backbone over patches cannot have."""
    require(patch >= 1, f"backbone.patch is {patch}; it takes a number of pixels from 1")
    if size not in VIT_SIZES:
        hint = suggest(size, VIT_SIZES)
        require(not size.isalpha(), f"backbone.size is '{size}', which is none of {', '.join(VIT_SIZES)}{hint}")
        parse_width(size, "backbone.size")
    powers = patch & (patch - 1) == 0 and patch >= 2
    fits = stem == "linear" or powers
    require(fits, f"backbone.stem '{stem}' needs a patch that is a power of 2; backbone.patch is {patch}")


def check_grid(patch: int, data: DataConfig) -> None:
    """Refuse images that patches do not divide."""
    height, width = data.size
    nearest = max(patch, round(height / patch) * patch)
    require(
        height % patch == 0 and width % patch == 0,
        f"backbone.patch is {patch}, which does not divide the image of {height}x{width} pixels; "
        f"choose another patch, or --data.image-size {nearest}",
    )


@dataclass(frozen=True)
class ViTConfig:
    """A Vision Transformer (Dosovitskiy et al. 2021) with fixed sin-cos positions and no class token."""

    kind: ClassVar[str] = "vit"
    maskable: ClassVar[bool] = True

    size: str = "small"
    """tiny, small, base, large, huge, giant, or free dimensions DIMxDEPTH[xHEADS], such as 192x6x3."""
    patch: int = 16
    """Side of a patch in pixels."""
    stem: Literal["linear", "conv", "patch-conv"] = "linear"
    """Patch to token: linear (the paper), conv (3x3, looks across patch borders) or patch-conv (stays inside)."""

    def __post_init__(self) -> None:
        check_patches(self.size, self.patch, self.stem)

    def fits(self, data: DataConfig) -> None:
        """Refuse images that the patches do not divide."""
        check_grid(self.patch, data)

    @property
    def dimensions(self) -> tuple[int, int, int, float]:
        """Width, depth, heads, MLP ratio."""
        return VIT_SIZES[self.size] if self.size in VIT_SIZES else (*parse_width(self.size, "backbone.size"), 4.0)


TINY, HUGE = 1e-6, 1e6


@dataclass(frozen=True)
class EnergyConfig:
    """An Energy Transformer (Hoover et al. 2023): one block, applied again and again, that descends an energy."""

    kind: ClassVar[str] = "energy"
    maskable: ClassVar[bool] = True

    size: str = "small"
    """As a ViT's, with steps T for its depth: tiny, small, …, or DIMxSTEPS[xHEADS], such as 192x12x3."""
    patch: int = 16
    """Side of a patch in pixels."""
    stem: Literal["linear", "conv", "patch-conv"] = "linear"
    """Patch to token: linear (the paper), conv (3x3, looks across patch borders) or patch-conv (stays inside)."""
    positions: Literal["sincos", "learned"] = "sincos"
    """Fixed sin-cos positions, or learned ones (the paper)."""
    memory: Literal["relu", "softmax"] = "relu"
    """Energy of the Hopfield memories."""
    memories: int = 4
    """Hopfield memories for each dimension."""
    alpha: float = 0.1
    """Size of a step down the energy."""
    learn_alpha: bool = False
    """Learn the size of a step, starting from alpha."""
    beta: float | None = None
    """Inverse temperature; by default 1 / sqrt(width) of a head, or of a token where softmax memories use it."""
    learn_beta: bool = False
    """Learn the inverse temperatures, one a head, starting from beta."""
    self_interaction: bool = False
    """Let a token attend to itself, as the published code does and the paper does not."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise added to the tokens at every step of training."""
    init: Literal["scaled", "paper"] = "scaled"
    """Weights from N(0, 1 / sqrt(DIM)), or the paper's, which were made for a width of 768 and long runs."""

    def __post_init__(self) -> None:
        check_patches(self.size, self.patch, self.stem)
        require(self.memories >= 1, f"backbone.memories is {self.memories}; it takes a whole number from 1")
        usable = f"it takes a number above 0, from {TINY:g} to {HUGE:g}"  # beyond, float32 has nothing left of it
        require(TINY <= self.alpha <= HUGE, f"backbone.alpha is {self.alpha}, the size of a step; {usable}")
        positive = self.beta is None or TINY <= self.beta <= HUGE
        require(positive, f"backbone.beta is {self.beta}, an inverse temperature; {usable}")
        require(0 <= self.noise < math.inf, f"backbone.noise is {self.noise}; it takes a standard deviation from 0")

    def fits(self, data: DataConfig) -> None:
        """Refuse images that the patches do not divide."""
        check_grid(self.patch, data)

    @property
    def dimensions(self) -> tuple[int, int, int]:
        """Width, steps, heads."""
        return VIT_SIZES[self.size][:3] if self.size in VIT_SIZES else parse_width(self.size, "backbone.size")


@dataclass(frozen=True)
class ConvNetConfig:
    """Any ConvNet of timm, by its name; its last map is the grid of tokens."""

    kind: ClassVar[str] = "convnet"
    maskable: ClassVar[bool] = False

    name: str = "convnext_tiny"
    """A model of timm: convnext_atto, resnet18, efficientnet_b0, …"""
    small_stem: bool = False
    """Halve the stride of the first layer and leave out a pooling behind it, for images of 32 pixels or so."""

    def fits(self, data: DataConfig) -> None:
        """Take images of any size."""


BackboneConfig = ViTConfig | EnergyConfig | ConvNetConfig
