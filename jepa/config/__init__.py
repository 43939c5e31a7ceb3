"""The page of knobs: every setting of every part, as frozen dataclasses.

The docstring under a field is its help on the command line. Nothing here imports torch, so `--help` is quick.
"""

from __future__ import annotations

from jepa.config.backbones import BackboneConfig, ConvNetConfig, EnergyConfig, ViTConfig, parse_width
from jepa.config.data import DataConfig
from jepa.config.errors import InputError, require, suggest
from jepa.config.experiment import KINDS, Config, ObjectiveConfig, OptimConfig, with_backbone
from jepa.config.ijepa import CropConfig, IJepaConfig, MaskConfig
from jepa.config.saccade import FixationConfig, SaccadeConfig, VICRegConfig
from jepa.config.supervised import SupervisedConfig

__all__ = [
    "KINDS",
    "BackboneConfig",
    "Config",
    "ConvNetConfig",
    "CropConfig",
    "DataConfig",
    "EnergyConfig",
    "FixationConfig",
    "IJepaConfig",
    "InputError",
    "MaskConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "SaccadeConfig",
    "SupervisedConfig",
    "VICRegConfig",
    "ViTConfig",
    "parse_width",
    "require",
    "suggest",
    "with_backbone",
]
