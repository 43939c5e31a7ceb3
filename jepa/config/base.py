"""The config of an experiment, the base classes of its interchangeable components, and the tables that list them.

There are three kinds of components: objectives, backbones and data sources. Each component is a config class, a class
that implements it, and one line in the table of its kind.
"""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import tyro

from jepa.config.data import DataConfig
from jepa.config.errors import InputError, check_limits, require, suggest
from jepa.config.hints import shown
from jepa.config.transforms import CropConfig
from jepa.files import printable

__all__ = [
    "BACKBONES",
    "OBJECTIVES",
    "SOURCES",
    "BackboneConfig",
    "CodeConfig",
    "Config",
    "LabeledImages",
    "ObjectiveConfig",
    "OptimConfig",
    "PartTable",
    "SourceConfig",
    "defined_in",
    "with_backbone",
]

MAX_STEPS = 10**9
MAX_BATCH_SIZE = 10**6
MAX_BATCH_GB = 100  # of a microbatch of decoded images
MAX_NAME_BYTES = 200  # of a folder name; most file systems allow 255


@dataclass(frozen=True)
class BackboneConfig:
    """Base class of the configs of backbones. The docstring of each field is its help text."""

    kind: ClassVar[str]
    """Name of the backbone on the command line and in config.json."""
    maskable: ClassVar[bool] = False
    """Whether the backbone can encode a subset of the tokens, as I-JEPA requires of its context encoder."""

    def check_data(self, data: DataConfig) -> None:
        """Raise `InputError` if the backbone cannot encode images of the size given in `data`."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """Base class of the configs of objectives. The docstring of each field is its help text."""

    kind: ClassVar[str]
    """Name of the objective in config.json."""
    uses_labels: ClassVar[bool] = False
    """Whether the objective is trained with labels. The batches of other objectives have none."""

    def check_experiment(self, config: Config) -> None:
        """Raise `InputError` if the objective is incompatible with the rest of the experiment."""

    def with_classes(self, names: tuple[str, ...]) -> Self:
        """Return the config for images of these classes, which training calls when it has opened them.

        Raises `InputError` if they do not fit.
        """
        return self

    def without_classes(self) -> Self:
        """Return the config for other images than those that the run of this config was trained on."""
        return self

    def check_training(self) -> None:
        """Raise `InputError` if there is nothing to train."""

    def supervised_crop(self) -> CropConfig:
        """Return the crops on which `jepa evaluate --full` trains its supervised baseline.

        They should show as much of each image as the views of this objective. The default is the objective's own
        setting `crop`, or a random crop with default settings if it has none.
        """
        crop = getattr(self, "crop", None)
        return crop if isinstance(crop, CropConfig) else CropConfig()


@dataclass(frozen=True)
class SourceConfig:
    """Base class of the configs of data sources, which are written as one string: `--data SOURCE`."""

    kind: ClassVar[str]
    """Name of the kind of source."""
    usage: ClassVar[str]
    """Description of the accepted values of `--data`, for error messages: "a folder of images"."""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the config of the source given by `text`, or None if it is not a source of this kind."""
        raise NotImplementedError


def defined_in(definition: Any) -> tuple[str, str]:
    """Return the file (or module) and the name of a class or function; both stay the same if it is defined again."""
    module = str(getattr(definition, "__module__", ""))
    file = getattr(sys.modules.get(module), "__file__", None) or module
    return file, getattr(definition, "__qualname__", repr(definition))


class PartTable(dict[type, Any]):
    """Maps the config class of each component to the class that implements it.

    A component is registered by one line, `OBJECTIVES[MyConfig] = MyObjective`. The implementation may also be given
    as "package.module:Class", which is imported on first use. The JSON `kind`, the help texts and the accepted values
    in messages all follow from the table.
    """

    def __init__(self, base: type) -> None:
        super().__init__()
        self.base = base

    def __setitem__(self, config: type, implementation: Any) -> None:
        """Add a component. Raises `InputError` if its kind is taken, or if `config` is not a config class."""
        if not (isinstance(config, type) and issubclass(config, self.base) and is_dataclass(config)):
            raise InputError(f"{config!r} is not a config class; derive a frozen dataclass from {self.base.__name__}")
        kind = getattr(config, "kind", None)
        if not isinstance(kind, str):
            raise InputError(f'{config.__name__} has no kind; add a line kind: ClassVar[str] = "name"')
        other = self.kinds().get(kind)
        if other is not None and other is not config:
            if defined_in(other) != defined_in(config):
                raise InputError(
                    f"the kind '{kind}' of {config.__name__} is taken by {other.__module__}.{other.__name__}; choose a "
                    "different one"
                )
            del self[other]  # the same class, defined again in a notebook or by a new version of a file
        super().__setitem__(config, implementation)

    def kinds(self) -> dict[str, type]:
        """Return the config class of every kind."""
        return {config.kind: config for config in self}  # type: ignore[attr-defined]

    def default(self) -> Any:
        """Return the config of the first component, with default settings."""
        return next(iter(self))()

    def config_class(self, kind: Any, where: str) -> type:
        """Return the config class of a kind; `where` is the name of the setting in the error message.

        Raises `InputError` if there is no such kind.
        """
        kinds = self.kinds()
        if not isinstance(kind, str) or kind not in kinds:
            raise InputError(f"{where} must be one of {', '.join(kinds)}, got {shown(kind)}{suggest(str(kind), kinds)}")
        return kinds[kind]

    def implementation(self, config: Any) -> Any:
        """Return the class that implements the component with this config. Raises `InputError` if there is none."""
        name = type(config).__name__
        if type(config) not in self:
            raise InputError(f"{name} is not registered; add a line to its table, such as OBJECTIVES[{name}] = ...")
        implementation = self[type(config)]
        if isinstance(implementation, str):
            module, _, member = implementation.partition(":")
            try:
                implementation = getattr(importlib.import_module(module), member)
            except (ImportError, AttributeError) as error:
                raise InputError(f"the implementation of {name} cannot be imported: {error}") from error
        return implementation


OBJECTIVES = PartTable(ObjectiveConfig)
BACKBONES = PartTable(BackboneConfig)
SOURCES = PartTable(SourceConfig)


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and its schedules, in steps."""

    kind: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon for weight matrices and convolutions (AdamW for the rest)."""
    lr: float = 1e-3
    """Peak learning rate, reached at the end of the warm-up. Updates of muon have the size of those of adamw."""
    lr_start: float = 1e-4
    """Learning rate at the first step."""
    lr_end: float = 1e-6
    """Learning rate at the last step, the end of a cosine schedule."""
    warmup: int = 100
    """Linear warm-up steps, capped at a quarter of the run."""
    weight_decay: float = 0.04
    """Weight decay at the first step. Biases, norms and the mask token are not decayed."""
    weight_decay_end: float = 0.4
    """Weight decay at the last step, the end of a cosine schedule."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    clip: float | None = None
    """Largest gradient norm; none disables clipping."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each layer of the encoder to the one below, for fine-tuning."""

    def __post_init__(self) -> None:
        check_limits(self, "optim.", warmup=MAX_STEPS)
        for name in ("lr", "lr_start", "lr_end", "warmup", "weight_decay", "weight_decay_end"):
            value = getattr(self, name)
            require(value >= 0 and math.isfinite(value), f"optim.{name} must be finite and at least 0, got {value}")
        require(
            all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas must be two values in [0, 1), got {self.betas}",
        )
        require(0 < self.layer_decay <= 1, f"optim.layer_decay must be in (0, 1], got {self.layer_decay}")
        require(self.clip is None or self.clip > 0, f"optim.clip must be positive, or none, got {self.clip}")


@dataclass(frozen=True)
class CodeConfig:
    """The user file that defines components of an experiment."""

    file: str
    """Name of the file, without its folder."""
    sha256: str
    """Hash of its content."""


@dataclass(frozen=True)
class LabeledImages:
    """Images with whose labels weights were trained."""

    signature: str
    """Signature of the training split."""
    source: str
    """Hash of the place of the source."""
    holdout: float
    """Fraction of the split that was held out."""


@dataclass(frozen=True)
class Config:
    """All settings of one experiment."""

    name: str = "demo"
    """Name of the experiment. The run folder is runs/NAME unless --run is given."""
    steps: int = 1000
    """Number of optimizer steps."""
    batch_size: int = 128
    """Number of images per step, over all processes and microbatches."""
    accumulate: int = 1
    """Number of microbatches per process, for gradient accumulation."""
    seed: int = 0
    """Seed of all random numbers."""
    init: str | None = None
    """Start from the weights of this run, exported folder or checkpoint of another library. Its backbone, image size
    and normalization replace those of the recipe."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or mps; auto uses a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto is bf16 on CUDA and on CPUs with instructions for it (AVX512-BF16), and fp32 on others."""
    compile: bool = False
    """Compile the objective with torch.compile: slower to start, faster to run."""
    log_every: int = 20
    """Write a record to metrics.jsonl every this many steps."""
    eval_every: int = 500
    """Run an online evaluation every this many steps; 0 disables it."""
    save_every: int = 500
    """Save a checkpoint every this many steps, and after the last one."""
    keep_every: int = 0
    """Keep the weights of every this many steps in a checkpoint step-N of their own; 0 keeps none."""
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BACKBONES.default)
    objective: ObjectiveConfig = field(default_factory=OBJECTIVES.default)
    optim: OptimConfig = field(default_factory=OptimConfig)
    code: Annotated[CodeConfig | None, tyro.conf.Suppress] = None  # set by the path of the file
    labels_seen: Annotated[tuple[LabeledImages, ...], tyro.conf.Suppress] = ()
    """Images with whose labels the weights were trained, also those before `init`; set when training starts."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "save_every"):
            value = getattr(self, name)
            require(value >= 1, f"{name} must be an integer of at least 1, got {value}")
        require(0 <= self.seed < 2**31, f"seed must be an integer between 0 and {2**31 - 1}, got {self.seed}")
        for name in ("eval_every", "keep_every"):
            value = getattr(self, name)
            require(value >= 0, f"{name} must be an integer of at least 0, got {value}")
        require(
            self.batch_size % self.accumulate == 0,
            f"batch_size must be a multiple of accumulate ({self.accumulate}), got {self.batch_size}",
        )
        require(
            self.init is None or (bool(self.init.strip()) and "\0" not in self.init),
            f"init must be the path of a run or of a checkpoint, got {shown(self.init)}",
        )
        check_limits(self, "", steps=MAX_STEPS, batch_size=MAX_BATCH_SIZE, keep_every=MAX_STEPS)
        check_name(self.name)
        height, width = self.data.canvas_size
        gigabytes = self.batch_size // self.accumulate * height * width * self.data.channels / 1e9
        require(
            gigabytes <= MAX_BATCH_GB,
            f"a microbatch of {self.batch_size // self.accumulate:,} images of {height}x{width} pixels would take "
            f"{gigabytes:,.0f} GB; choose a smaller --batch-size or --data.image-size, or more --accumulate",
        )
        self.backbone.check_data(self.data)
        self.objective.check_experiment(self)


def check_name(name: str) -> None:
    """Raise `InputError` if the name of an experiment cannot be the name of its run folder."""
    plain = name == name.strip() and printable(name) == name and name[:1] not in ("", ".", "-")
    require(
        plain and not {"/", "\\"} & set(name) and len(name.encode(errors="replace")) <= MAX_NAME_BYTES,
        f"name must be a plain folder name of at most {MAX_NAME_BYTES} bytes without slashes or control characters, "
        f"and not start with a dot or a hyphen, got {shown(name)}; use --run DIR to train into any folder",
    )


def with_backbone(config: Config, kind: str) -> Config:
    """Replace the backbone by one of a different kind, keeping the values of shared settings."""
    kinds = BACKBONES.kinds()
    if kind not in kinds and "convnet" in kinds and not suggest(kind, kinds):
        accepted = f"--backbone must be one of {', '.join(kinds)}, got {shown(kind)}"
        raise InputError(f"{accepted}; for a ConvNet of timm, give --backbone convnet --backbone.name NAME")
    chosen = BACKBONES.config_class(kind, "--backbone")
    names = {f.name for f in fields(chosen)} & {f.name for f in fields(config.backbone)}
    return replace(config, backbone=chosen(**{name: getattr(config.backbone, name) for name in names}))
