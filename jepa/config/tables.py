"""Registers the built-in components: config class and implementation. Add a line to register a new one."""

from __future__ import annotations

from jepa.config.backbones import ConvNetConfig, EnergyConfig, PlainConvNetConfig, TimmViTConfig, ViTConfig
from jepa.config.base import BACKBONES, OBJECTIVES, SOURCES, SourceConfig
from jepa.config.errors import InputError, suggest
from jepa.config.ijepa import IJepaConfig
from jepa.config.imported import ImportedConfig
from jepa.config.lejepa import LeJepaConfig
from jepa.config.mae import MAEConfig
from jepa.config.saccade import SaccadeConfig
from jepa.config.sources import (
    TORCHVISION,
    FolderSource,
    HuggingFaceSource,
    ParquetSource,
    PathsSource,
    SampleSource,
    TorchvisionSource,
    expand_user,
)
from jepa.config.supervised import SupervisedConfig
from jepa.config.vicreg import VICRegConfig

__all__ = ["parse_source"]

OBJECTIVES[IJepaConfig] = "jepa.objectives.ijepa:IJepa"
OBJECTIVES[SaccadeConfig] = "jepa.objectives.saccade:Saccade"
OBJECTIVES[VICRegConfig] = "jepa.objectives.vicreg:VICReg"
OBJECTIVES[LeJepaConfig] = "jepa.objectives.lejepa:LeJepa"
OBJECTIVES[MAEConfig] = "jepa.objectives.mae:MAE"
OBJECTIVES[SupervisedConfig] = "jepa.objectives.supervised:Supervised"
OBJECTIVES[ImportedConfig] = "jepa.objectives.imported:Imported"

BACKBONES[ViTConfig] = "jepa.backbones.vit:ViT"
BACKBONES[EnergyConfig] = "jepa.backbones.energy_transformer:EnergyTransformer"
BACKBONES[ConvNetConfig] = "jepa.backbones.convnet:ConvNet"
BACKBONES[TimmViTConfig] = "jepa.backbones.timm_vit:TimmViT"
BACKBONES[PlainConvNetConfig] = "jepa.backbones.plain_convnet:PlainConvNet"

SOURCES[SampleSource] = "jepa.data.sources.parquet:Sample"
SOURCES[FolderSource] = "jepa.data.sources.folder:Folder"
SOURCES[PathsSource] = "jepa.data.sources.paths:Paths"
SOURCES[ParquetSource] = "jepa.data.sources.parquet:Parquet"
SOURCES[HuggingFaceSource] = "jepa.data.sources.huggingface:HuggingFace"
SOURCES[TorchvisionSource] = "jepa.data.sources.torchvision:Torchvision"


def parse_source(text: str) -> SourceConfig:
    """Parse the value of `--data` with the first registered source that accepts it.

    Raises `InputError` if none does.
    """
    for config_class in SOURCES:
        source: SourceConfig | None = config_class.parse(text)  # type: ignore[attr-defined]
        if source is not None:
            return source
    accepted = f"--data takes {', '.join(config.usage for config in SOURCES)}"  # type: ignore[attr-defined]
    if expand_user(text).is_file():
        raise InputError(f"{text} is a file but not a supported table; {accepted}")
    raise InputError(f"{text} does not exist{suggest(text, ['sample', *TORCHVISION])}; {accepted}")
