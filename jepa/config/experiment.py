"""One experiment: its parts, its optimiser and its length."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from jepa.config.backbones import BackboneConfig, ConvNetConfig, EnergyConfig, ViTConfig
from jepa.config.data import DataConfig
from jepa.config.errors import require, suggest
from jepa.config.ijepa import IJepaConfig
from jepa.config.saccade import SaccadeConfig, VICRegConfig
from jepa.config.supervised import SupervisedConfig

__all__ = ["KINDS", "Config", "ObjectiveConfig", "OptimConfig", "with_backbone"]


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, and its schedules in steps."""

    lr: float = 1e-3
    """Highest learning rate, reached at the end of the warm-up."""
    lr_start: float = 1e-4
    """Learning rate at the first step."""
    lr_end: float = 1e-6
    """Learning rate at the last step (cosine)."""
    warmup: int = 100
    """Steps of linear warm-up; at most a quarter of the run."""
    weight_decay: float = 0.04
    """Weight decay at the first step; biases, norms and the mask token have none."""
    weight_decay_end: float = 0.4
    """Weight decay at the last step (cosine)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    clip: float | None = None
    """Largest gradient norm; None does not clip."""

    def __post_init__(self) -> None:
        for name in ("lr", "lr_start", "lr_end", "warmup", "weight_decay", "weight_decay_end"):
            value = getattr(self, name)
            require(value >= 0 and math.isfinite(value), f"optim.{name} is {value}; it takes a number from 0")
        require(
            all(0 <= beta < 1 for beta in self.betas), f"optim.betas is {self.betas}; it takes rates from 0 to below 1"
        )
        require(self.clip is None or self.clip > 0, f"optim.clip is {self.clip}; it takes a norm above 0, or none")


ObjectiveConfig = IJepaConfig | SaccadeConfig | VICRegConfig | SupervisedConfig
KINDS: dict[str, dict[str, type]] = {
    "backbone": {"vit": ViTConfig, "energy": EnergyConfig, "convnet": ConvNetConfig},
    "objective": {
        "ijepa": IJepaConfig,
        "saccade": SaccadeConfig,
        "vicreg": VICRegConfig,
        "supervised": SupervisedConfig,
    },
}
"""What the `kind` of a part may be: add a backbone's or an objective's config here."""


@dataclass(frozen=True)
class Config:
    """One experiment."""

    name: str = "demo"
    """Name of the experiment; the run lies in runs/NAME unless --run says otherwise."""
    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 128
    """Images in a step, over all processes and accumulated parts."""
    accumulate: int = 1
    """Parts that a process cuts its share of the batch into, one after the other, to save memory."""
    seed: int = 0
    """Everything random follows from it."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto is fp32 on the CPU and bf16 on CUDA."""
    compile: bool = False
    """Compile the objective with torch.compile: slower to start, faster to run."""
    log_every: int = 20
    """Steps between two lines of metrics.jsonl."""
    eval_every: int = 500
    """Steps between two online evaluations; 0 makes none."""
    save_every: int = 500
    """Steps between two checkpoints; the last step is always saved."""
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=ViTConfig)
    objective: ObjectiveConfig = field(default_factory=IJepaConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "save_every"):
            value = getattr(self, name)
            require(value >= 1, f"{name} is {value}; it takes a whole number from 1")
        require(0 <= self.seed < 2**31, f"seed is {self.seed}; it takes a whole number from 0 to below {2**31}")
        require(self.eval_every >= 0, f"eval_every is {self.eval_every}; it takes a whole number from 0")
        divides = self.batch_size % self.accumulate == 0
        require(divides, f"accumulate is {self.accumulate}, which does not divide the batch_size {self.batch_size}")
        self.backbone.fits(self.data)
        self.objective.fits(self)


def with_backbone(config: Config, kind: str) -> Config:
    """Exchange the backbone for one of another kind, which keeps the settings that both have."""
    known = KINDS["backbone"]
    require(kind in known, f"--backbone is '{kind}'; it takes {', '.join(known)}{suggest(kind, known)}")
    names = {f.name for f in fields(known[kind])} & {f.name for f in fields(config.backbone)}
    return replace(config, backbone=known[kind](**{name: getattr(config.backbone, name) for name in names}))
