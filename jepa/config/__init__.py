"""All configuration dataclasses, the tables of components and the recipes.

The docstring under a field is its help text on the command line. Nothing here imports torch, so `--help` is quick.
"""

from __future__ import annotations

from jepa.config.backbones import (
    ConvNetConfig,
    EnergyConfig,
    PlainConvNetConfig,
    TimmViTConfig,
    ViTConfig,
    is_power_of_two,
    parse_width,
)
from jepa.config.base import (
    BACKBONES,
    OBJECTIVES,
    SOURCES,
    BackboneConfig,
    CodeConfig,
    Config,
    LabeledImages,
    ObjectiveConfig,
    OptimConfig,
    PartTable,
    SourceConfig,
    with_backbone,
)
from jepa.config.data import DataConfig
from jepa.config.errors import InputError, require, suggest
from jepa.config.ijepa import IJepaConfig
from jepa.config.imported import ImportedConfig
from jepa.config.lejepa import LeJepaConfig
from jepa.config.mae import MAEConfig
from jepa.config.recipes import RECIPES, recipe
from jepa.config.saccade import SaccadeConfig
from jepa.config.supervised import SupervisedConfig
from jepa.config.tables import parse_source
from jepa.config.transforms import ColorConfig, CropConfig, FixationConfig, MaskConfig
from jepa.config.user_code import load_code
from jepa.config.vicreg import VICRegConfig

__all__ = [
    "BACKBONES",
    "OBJECTIVES",
    "RECIPES",
    "SOURCES",
    "BackboneConfig",
    "CodeConfig",
    "ColorConfig",
    "Config",
    "ConvNetConfig",
    "CropConfig",
    "DataConfig",
    "EnergyConfig",
    "FixationConfig",
    "IJepaConfig",
    "ImportedConfig",
    "InputError",
    "LabeledImages",
    "LeJepaConfig",
    "MAEConfig",
    "MaskConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "PartTable",
    "PlainConvNetConfig",
    "SaccadeConfig",
    "SourceConfig",
    "SupervisedConfig",
    "TimmViTConfig",
    "VICRegConfig",
    "ViTConfig",
    "is_power_of_two",
    "load_code",
    "parse_source",
    "parse_width",
    "recipe",
    "require",
    "suggest",
    "with_backbone",
]
