"""Backbones, which map images to tokens."""

from torch import nn

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
    "layer_scales",
    "sincos_positions",
    "take",
]


def build_encoder(config: BackboneConfig, data: DataConfig) -> Encoder:
    """Build a randomly initialized encoder. `data.mean` and `data.std` must be set."""
    assert data.mean is not None
    assert data.std is not None
    backbone = BACKBONES.implementation(config)(config, data.channels, data.size)
    return Encoder(backbone, data.size, data.mean, data.std)


def layer_scales(encoder: Encoder, decay: float) -> dict[nn.Parameter, float]:
    """Return factors of the learning rate: decay for the last layer, its square for the one before, and so on.

    As in BEiT (Bao et al. 2021, arXiv 2106.08254) and timm, with scale 1 for what is above the encoder.
    """
    layers = {parameter: encoder.backbone.layer_of(name) for name, parameter in encoder.backbone.named_parameters()}
    top = max(layers.values())
    return {parameter: decay ** (top + 1 - layer) for parameter, layer in layers.items()}


def build_trunk(config: BackboneConfig, shape: str) -> tuple[Trunk, int]:
    """Build the trunk of a predictor and return it with its width. `shape` is `DIMxDEPTH[xHEADS]`.

    The trunk is of the same kind as the backbone, or a stack of ViT blocks if the backbone does not provide one.
    """
    from jepa.backbones.vit import ViTTrunk

    dim, depth, num_heads = parse_width(shape, "objective.predictor")
    trunk = BACKBONES.implementation(config).build_trunk(config, dim, depth, num_heads)
    return trunk or ViTTrunk(dim, depth, num_heads), dim
