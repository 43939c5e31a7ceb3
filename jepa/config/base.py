"""The config of an experiment, the base classes of its exchangeable parts, and the tables that list the parts.

An experiment has three kinds of exchangeable parts: an objective, a backbone and a data source. Each part is a config
class, a class that implements it, and one line in the table of its kind.
"""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import tyro

from jepa.config.data import DataConfig
from jepa.config.errors import InputError, require, suggest
from jepa.config.transforms import CropConfig

__all__ = [
    "BACKBONES",
    "OBJECTIVES",
    "SOURCES",
    "BackboneConfig",
    "CodeConfig",
    "Config",
    "ObjectiveConfig",
    "OptimConfig",
    "PartTable",
    "SourceConfig",
    "defined_in",
    "with_backbone",
]


@dataclass(frozen=True)
class BackboneConfig:
    """Base class of the configs of backbones. The docstring of each field is its help text."""

    kind: ClassVar[str]
    """Name of the backbone on the command line and in config.json."""
    maskable: ClassVar[bool] = False
    """Whether the backbone can encode a subset of the tokens, as I-JEPA requires of its context encoder."""

    def check_data(self, data: DataConfig) -> None:
        """Raise `InputError` if the backbone cannot encode images of the size that `data` names."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """Base class of the configs of objectives. The docstring of each field is its help text."""

    kind: ClassVar[str]
    """Name of the objective in config.json."""

    def check_experiment(self, config: Config) -> None:
        """Raise `InputError` if the objective does not fit the rest of the experiment."""

    def supervised_crop(self) -> CropConfig:
        """Return the crops on which `jepa evaluate --full` trains its supervised baseline.

        They should show as much of each image as the views of this objective. By default they are the objective's own
        setting `crop`, or random crops with default settings if it has none.
        """
        crop = getattr(self, "crop", None)
        return crop if isinstance(crop, CropConfig) else CropConfig()


@dataclass(frozen=True)
class SourceConfig:
    """Base class of the configs of data sources, which are written as one string: `--data SOURCE`."""

    kind: ClassVar[str]
    """Name of the kind of source."""
    usage: ClassVar[str]
    """How the source is written after `--data`, for messages: "a folder of images"."""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the config of the source that `text` names, or None if it is not a source of this kind."""
        raise NotImplementedError


def defined_in(definition: Any) -> tuple[str, str]:
    """Return the file (or module) and the name of a class or function, which do not change if it is defined again."""
    module = str(getattr(definition, "__module__", ""))
    file = getattr(sys.modules.get(module), "__file__", None) or module
    return file, getattr(definition, "__qualname__", repr(definition))


class PartTable(dict[type, Any]):
    """Maps the config class of each part to the class that implements it.

    A part is one line, `OBJECTIVES[MyConfig] = MyObjective`. The implementation may also be given as
    "package.module:Class", which is imported when the part is first built. The JSON `kind`, the help texts and the
    accepted values in messages all follow from the table.
    """

    def __init__(self, base: type) -> None:
        super().__init__()
        self.base = base

    def __setitem__(self, config: type, implementation: Any) -> None:
        """Add a part. Raises `InputError` if its kind is taken, or if `config` is not a config class."""
        if not (isinstance(config, type) and issubclass(config, self.base) and is_dataclass(config)):
            raise InputError(f"{config!r} is not a config class; derive a frozen dataclass from {self.base.__name__}")
        kind = getattr(config, "kind", None)
        if not isinstance(kind, str):
            raise InputError(f'{config.__name__} has no kind; add a line kind: ClassVar[str] = "name"')
        other = self.kinds().get(kind)
        if other is not None and other is not config:
            if defined_in(other) != defined_in(config):
                raise InputError(f"the kind '{kind}' of {config.__name__} is taken by {other.__name__}; choose another")
            del self[other]  # the same class, defined again in a notebook or by a new version of a file
        super().__setitem__(config, implementation)

    def kinds(self) -> dict[str, type]:
        """Return the config class of every kind."""
        return {config.kind: config for config in self}  # type: ignore[attr-defined]

    def default(self) -> Any:
        """Return the config of the first part with default settings."""
        return next(iter(self))()

    def config_class(self, kind: Any, where: str) -> type:
        """Return the config class of a kind, which the setting `where` names.

        Raises `InputError` if there is no such kind.
        """
        kinds = self.kinds()
        if not isinstance(kind, str) or kind not in kinds:
            raise InputError(f"{where} is '{kind}'; it takes {', '.join(kinds)}{suggest(str(kind), kinds)}")
        return kinds[kind]

    def implementation(self, config: Any) -> Any:
        """Return the class that implements the part with this config."""
        implementation = self[type(config)]
        if isinstance(implementation, str):
            module, _, name = implementation.partition(":")
            implementation = getattr(importlib.import_module(module), name)
        return implementation


OBJECTIVES = PartTable(ObjectiveConfig)
BACKBONES = PartTable(BackboneConfig)
SOURCES = PartTable(SourceConfig)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedules, in steps."""

    lr: float = 1e-3
    """Peak learning rate, reached at the end of the warm-up."""
    lr_start: float = 1e-4
    """Learning rate at the first step."""
    lr_end: float = 1e-6
    """Learning rate at the end of the cosine schedule."""
    warmup: int = 100
    """Steps of linear warm-up; at most a quarter of the run."""
    weight_decay: float = 0.04
    """Weight decay at the first step. Biases, norms and the mask token are not decayed."""
    weight_decay_end: float = 0.4
    """Weight decay at the end of the cosine schedule."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    clip: float | None = None
    """Largest gradient norm; none disables clipping."""

    def __post_init__(self) -> None:
        for name in ("lr", "lr_start", "lr_end", "warmup", "weight_decay", "weight_decay_end"):
            value = getattr(self, name)
            require(
                value >= 0 and math.isfinite(value), f"optim.{name} is {value}; it takes a finite number, 0 or more"
            )
        require(
            all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas is {self.betas}; it takes two rates of at least 0 and below 1",
        )
        require(self.clip is None or self.clip > 0, f"optim.clip is {self.clip}; it takes a norm above 0, or none")


@dataclass(frozen=True)
class CodeConfig:
    """The Python file that defines the parts of an experiment outside of this package."""

    file: str
    """Name of the file, without its folder."""
    sha256: str
    """Hash of its content."""


@dataclass(frozen=True)
class Config:
    """All settings of one experiment."""

    name: str = "demo"
    """Name of the experiment. The run folder is runs/NAME unless --run names another."""
    steps: int = 1000
    """Number of optimizer steps."""
    batch_size: int = 128
    """Number of images in a step, over all processes and microbatches."""
    accumulate: int = 1
    """Number of microbatches into which each process divides its share of the batch, to save memory."""
    seed: int = 0
    """Seed of all random numbers."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or mps; auto uses a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto is fp32 on the CPU and bf16 on CUDA."""
    compile: bool = False
    """Compile the objective with torch.compile, which starts more slowly and then runs faster."""
    log_every: int = 20
    """Number of steps between two records of metrics.jsonl."""
    eval_every: int = 500
    """Number of steps between two online evaluations; 0 disables them."""
    save_every: int = 500
    """Number of steps between two checkpoints; the last step is always saved."""
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BACKBONES.default)
    objective: ObjectiveConfig = field(default_factory=OBJECTIVES.default)
    optim: OptimConfig = field(default_factory=OptimConfig)
    code: Annotated[CodeConfig | None, tyro.conf.Suppress] = None  # set by the path of the file

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "save_every"):
            value = getattr(self, name)
            require(value >= 1, f"{name} is {value}; it takes a whole number, 1 or more")
        require(0 <= self.seed < 2**31, f"seed is {self.seed}; it takes a whole number of at least 0 and below {2**31}")
        require(self.eval_every >= 0, f"eval_every is {self.eval_every}; it takes a whole number, 0 or more")
        require(
            self.batch_size % self.accumulate == 0,
            f"accumulate is {self.accumulate}, but the batch_size {self.batch_size} is not a multiple of it",
        )
        self.backbone.check_data(self.data)
        self.objective.check_experiment(self)


def with_backbone(config: Config, kind: str) -> Config:
    """Replace the backbone by one of another kind. Settings that both kinds have keep their values."""
    chosen = BACKBONES.config_class(kind, "--backbone")
    names = {f.name for f in fields(chosen)} & {f.name for f in fields(config.backbone)}
    return replace(config, backbone=chosen(**{name: getattr(config.backbone, name) for name in names}))
