"""BYOL (Grill et al. 2020, arXiv 2006.07733) on two crops: a method in one file, outside of the package.

    jepa train examples/byol.py                                # its only recipe, byol-demo
    jepa evaluate runs/byol-demo --code examples/byol.py

The file defines a config, a module and a recipe, and adds them to the tables of the package.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.backbones import Encoder, build_encoder
from jepa.config import OBJECTIVES, RECIPES, Config, CropConfig, ObjectiveConfig, recipe
from jepa.data import Batch
from jepa.objectives.base import Objective, check_batchnorm, ema_update, full_precision
from jepa.objectives.regularizers import feature_std
from jepa.optim import momentum
from jepa.rng import Rng
from jepa.transforms.crop import crop


@dataclass(frozen=True)
class BYOLConfig(ObjectiveConfig):
    """BYOL: predict the target network's projection of one crop from the online network's projection of another."""

    kind: ClassVar[str] = "byol"

    hidden: int = 512
    """Width of the hidden layers of projector and predictor."""
    projection: int = 128
    """Width of the projections."""
    ema_half_life: float = 50.0
    """Half-life of the target network's moving average at the first step, in steps."""
    ema_half_life_end: float = 500.0
    """Half-life at the last step."""
    crop: CropConfig = field(default_factory=lambda: CropConfig(scale=(0.35, 1.0), flip=True))


def mlp(dim: int, hidden: int, out: int) -> nn.Sequential:
    """Build the MLP of the paper: BatchNorm and ReLU after the first layer."""
    return nn.Sequential(nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out))


class BYOL(Objective):
    """An online network with a predictor, and a target network that is its moving average."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert isinstance(config.objective, BYOLConfig)
        self.config, self.size = config.objective, config.data.size
        encoder = build_encoder(config.backbone, config.data)
        projector = mlp(encoder.backbone.dim, self.config.hidden, self.config.projection)
        self.online = nn.ModuleDict({"encoder": encoder, "projector": projector})
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.predictor = mlp(self.config.projection, self.config.hidden, self.config.projection)
        check_batchnorm(self, config)

    def sample(self, batch: Batch, rng: Rng) -> list[Tensor]:
        """Take two crops (B, C, H, W) of each image; the number of the view makes them differ."""
        return [crop(batch.images, self.config.crop, self.size, rng, view=view) for view in (0, 1)]

    def project(self, network: nn.ModuleDict, view: Tensor) -> Tensor:
        """Compute the projections (B, P) of a view."""
        return full_precision(network["projector"](network["encoder"].backbone.pool(network["encoder"](view).x)))

    def forward(self, inputs: list[Tensor]) -> dict[str, Tensor]:
        """Return the loss of equation 2, averaged over both directions and the images."""
        online = [self.project(self.online, view) for view in inputs]
        with torch.no_grad():
            target = [self.project(self.target, view) for view in inputs]
        pairs = zip(map(self.predictor, online), reversed(target), strict=True)
        loss = torch.stack([2 - 2 * F.cosine_similarity(*pair, dim=-1) for pair in pairs]).mean()
        return {"loss": loss, "feature_std": feature_std(online[0].detach())}

    def after_step(self, progress: float) -> None:
        """Update the target network."""
        rate = momentum(progress, self.config.ema_half_life, self.config.ema_half_life_end)
        ema_update(self.target, self.online, rate)

    def encoders(self) -> dict[str, Encoder]:
        """Return the online and the target encoder."""
        return {name: network["encoder"] for name, network in (("online", self.online), ("target", self.target))}


def byol_demo() -> Config:
    """BYOL with a small ConvNet on the built-in sample."""
    return replace(recipe("saccade-demo"), name="byol-demo", objective=BYOLConfig())


OBJECTIVES[BYOLConfig] = BYOL
RECIPES["byol-demo"] = byol_demo
