"""Backbones: images in, tokens out. A new one is a file here, and a line in `BACKBONES` and `TRUNKS`."""

from collections.abc import Callable

from jepa.backbones.base import Backbone, Encoder, Tokens, Trunk, sincos_positions, take
from jepa.backbones.convnet import ConvNet
from jepa.backbones.energy import Energies, EnergyLayerNorm, EnergyTransformer, EnergyTrunk
from jepa.backbones.patches import PatchBackbone
from jepa.backbones.vit import ViT, ViTTrunk
from jepa.config import BackboneConfig, ConvNetConfig, DataConfig, EnergyConfig, ViTConfig, parse_width

__all__ = [
    "BACKBONES",
    "TRUNKS",
    "Backbone",
    "ConvNet",
    "Encoder",
    "Energies",
    "EnergyLayerNorm",
    "EnergyTransformer",
    "EnergyTrunk",
    "PatchBackbone",
    "Tokens",
    "Trunk",
    "ViT",
    "ViTTrunk",
    "build_encoder",
    "build_trunk",
    "sincos_positions",
    "take",
]

BACKBONES: dict[type, Callable[..., Backbone]] = {
    ViTConfig: ViT,
    EnergyConfig: EnergyTransformer,
    ConvNetConfig: ConvNet,
}
TRUNKS: dict[type, Callable[..., Trunk]] = {
    ViTConfig: lambda config, dim, depth, heads: ViTTrunk(dim, depth, heads),
    EnergyConfig: EnergyTrunk,
    ConvNetConfig: lambda config, dim, depth, heads: ViTTrunk(dim, depth, heads),  # a predictor over its map
}


def build_encoder(config: BackboneConfig, data: DataConfig) -> Encoder:
    """Build an encoder with fresh weights; `data` must have its mean and std."""
    assert data.mean is not None
    assert data.std is not None
    backbone = BACKBONES[type(config)](config, data.channels, data.size)
    return Encoder(backbone, data.size, data.mean, data.std)


def build_trunk(config: BackboneConfig, shape: str) -> tuple[Trunk, int]:
    """Build the trunk of a predictor, of the backbone's own family, and return it with its width."""
    dim, depth, heads = parse_width(shape, "objective.predictor")
    return TRUNKS[type(config)](config, dim, depth, heads), dim
