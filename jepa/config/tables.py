"""The parts of the package. A new part is one line here: its config class, and where it is implemented."""

from __future__ import annotations

from pathlib import Path

from jepa.config.backbones import ConvNetConfig, EnergyConfig, ViTConfig
from jepa.config.base import BACKBONES, OBJECTIVES, SOURCES, SourceConfig
from jepa.config.errors import InputError, suggest
from jepa.config.ijepa import IJepaConfig
from jepa.config.saccade import SaccadeConfig
from jepa.config.sources import (
    TORCHVISION,
    FolderSource,
    HuggingFaceSource,
    ParquetSource,
    PathsSource,
    SampleSource,
    TorchvisionSource,
)
from jepa.config.supervised import SupervisedConfig
from jepa.config.vicreg import VICRegConfig

__all__ = ["parse_source"]

OBJECTIVES[IJepaConfig] = "jepa.objectives.ijepa:IJepa"
OBJECTIVES[SaccadeConfig] = "jepa.objectives.saccade:Saccade"
OBJECTIVES[VICRegConfig] = "jepa.objectives.vicreg:VICReg"
OBJECTIVES[SupervisedConfig] = "jepa.objectives.supervised:Supervised"

BACKBONES[ViTConfig] = "jepa.backbones.vit:ViT"
BACKBONES[EnergyConfig] = "jepa.backbones.energy_transformer:EnergyTransformer"
BACKBONES[ConvNetConfig] = "jepa.backbones.convnet:ConvNet"

SOURCES[SampleSource] = "jepa.data.sources.parquet:Sample"
SOURCES[FolderSource] = "jepa.data.sources.folder:Folder"
SOURCES[PathsSource] = "jepa.data.sources.paths:Paths"
SOURCES[ParquetSource] = "jepa.data.sources.parquet:Parquet"
SOURCES[HuggingFaceSource] = "jepa.data.sources.huggingface:HuggingFace"
SOURCES[TorchvisionSource] = "jepa.data.sources.torchvision:Torchvision"


def parse_source(text: str) -> SourceConfig:
    """Return the config of the source that `text`, the value of `--data`, names: the first of the table to accept it.

    Raises `InputError` if no kind of source accepts it.
    """
    for config_class in SOURCES:
        source: SourceConfig | None = config_class.parse(text)  # type: ignore[attr-defined]
        if source is not None:
            return source
    accepted = f"--data takes {', '.join(config.usage for config in SOURCES)}"  # type: ignore[attr-defined]
    if Path(text).expanduser().is_file():
        raise InputError(f"{text} is one file, but not a table; {accepted}")
    raise InputError(f"there is nothing at {text}{suggest(text, ['sample', *TORCHVISION])}; {accepted}")
