"""Backbones, which map images to tokens."""

from jepa.backbones.base import Backbone, Encoder, Tokens, Trunk, eval_mode, sincos_positions, take
from jepa.backbones.whitening import FittedLayer, copy_fitted_layers, fit_layers, has_fitted_layers
from jepa.config import BACKBONES, BackboneConfig, DataConfig, parse_width

__all__ = [
    "Backbone",
    "Encoder",
    "FittedLayer",
    "Tokens",
    "Trunk",
    "build_encoder",
    "build_trunk",
    "copy_fitted_layers",
    "eval_mode",
    "fit_layers",
    "has_fitted_layers",
    "sincos_positions",
    "take",
]


def build_encoder(config: BackboneConfig, data: DataConfig) -> Encoder:
    """Build a randomly initialized encoder. `data.mean` and `data.std` must be set."""
    assert data.mean is not None
    assert data.std is not None
    backbone = BACKBONES.implementation(config)(config, data.channels, data.size)
    return Encoder(backbone, data.size, data.mean, data.std)


def build_trunk(config: BackboneConfig, shape: str) -> tuple[Trunk, int]:
    """Build the trunk of a predictor and return it with its width. `shape` is `DIMxDEPTH[xHEADS]`.

    The trunk is of the same kind as the backbone, or a stack of ViT blocks if the backbone does not provide one.
    """
    from jepa.backbones.vit import ViTTrunk

    dim, depth, num_heads = parse_width(shape, "objective.predictor")
    trunk = BACKBONES.implementation(config).build_trunk(config, dim, depth, num_heads)
    return trunk or ViTTrunk(dim, depth, num_heads), dim
