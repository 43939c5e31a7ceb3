"""Saccade JEPA: foresee what the teacher sees after an eye movement, from what the student saw before it.

Shapes: B images, N tokens of a view's grid, D encoder width, P predictor width, F features of a saccade.
"""

from __future__ import annotations

import copy
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.backbones import Encoder, Trunk, build_encoder, build_trunk, sincos_positions
from jepa.config import Config, SaccadeConfig
from jepa.data import Batch
from jepa.objectives.base import Objective, ema_update, full_precision, needs_a_batch
from jepa.objectives.regularizers import variance_covariance
from jepa.optim import momentum
from jepa.rng import Rng
from jepa.saccades import Geometry, Pose

__all__ = ["GridPredictor", "MLPPredictor", "Saccade", "SaccadeInputs", "mlp"]


class SaccadeInputs(NamedTuple):
    """Two fixations of every image, and the movement from the first to the second."""

    context: Tensor  # (B, C, h, w) floats in [0, 1], for the student
    target: Tensor  # the same, for the teacher
    saccade: Pose


def mlp(dim: int, hidden: int, out: int) -> nn.Sequential:
    """Three linear layers, GELU between them."""
    return nn.Sequential(
        nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, out)
    )


class MLPPredictor(nn.Module):
    """From an embedding and a saccade to the embedding after it."""

    def __init__(self, dim: int, hidden: int, features: int) -> None:
        super().__init__()
        self.saccade = nn.Linear(features, dim)
        self.layers = mlp(dim, hidden, dim)

    def forward(self, x: Tensor, saccade: Tensor) -> Tensor:
        """Map embeddings (B, D), told of saccades (B, F), to embeddings (B, D)."""
        return self.layers(x + self.saccade(saccade))  # type: ignore[no-any-return]


class GridPredictor(nn.Module):
    """The same over a grid of tokens: every token is told of the saccade, a transformer moves them."""

    positions: Tensor

    def __init__(self, trunk: Trunk, width: int, dim: int, grid: tuple[int, int], features: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.embed, self.project = nn.Linear(dim, width), nn.Linear(width, dim)
        self.saccade = nn.Linear(features, width)
        self.register_buffer("positions", sincos_positions(width, grid, grid), persistent=False)

    def forward(self, x: Tensor, saccade: Tensor) -> Tensor:
        """Map tokens (B, N, D), told of saccades (B, F), to tokens (B, N, D)."""
        tokens = self.embed(x) + self.positions + self.saccade(saccade)[:, None]
        return self.project(self.trunk(tokens))  # type: ignore[no-any-return]


class Saccade(Objective):
    """Student, its EMA teacher, and the predictor that is told the movement between what the two see."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert isinstance(config.objective, SaccadeConfig)
        self.config = config.objective
        self.context = build_encoder(config.backbone, config.data)
        self.target = copy.deepcopy(self.context).requires_grad_(False)
        needs_a_batch(self, config)
        self.geometry = Geometry(self.config.fixations, config.data.canvas_size, config.data.size)
        dim, features = self.context.backbone.dim, 2 * sum(self.geometry.octaves())
        self.predictor: MLPPredictor | GridPredictor | None = None
        self.inverse: nn.Sequential | None = None
        if self.config.prediction or self.config.cycle:
            if self.config.predictor == "mlp":
                self.predictor = MLPPredictor(dim, self.config.hidden, features)
            else:
                trunk = build_trunk(config.backbone, self.config.predictor)
                self.predictor = GridPredictor(*trunk, dim, grid_of(self.context, config.data.size), features)
        if self.config.inverse:
            self.inverse = mlp(2 * dim, self.config.hidden, len(self.geometry.octaves()))

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; the teacher is never trained, so it stays in the latter."""
        super().train(mode)
        self.target.eval()
        return self

    def sample(self, batch: Batch, rng: Rng) -> SaccadeInputs:
        """Cut two fixations out of every image; either of them is the context."""
        geometry = self.geometry.on(batch.images)
        before, after = geometry.sample(rng)
        context, target = geometry.look(batch.images, before, after)
        return SaccadeInputs(context, target, before.inverse().of(after))

    def forward(self, inputs: SaccadeInputs) -> dict[str, Tensor]:
        """Return "loss" and its terms, each a mean over tokens and images; those of weight 0 are not worked out."""
        weights = self.config
        seen = self.context(inputs.context).x  # (B, N, D)
        with torch.no_grad():
            wanted = self.target(inputs.target).x
        seen, wanted = full_precision(seen), full_precision(wanted)
        context, target = self.context.backbone.pool(seen), self.target.backbone.pool(wanted)
        terms: dict[str, Tensor] = {}
        if self.predictor is not None:
            if weights.predictor == "mlp":
                seen, wanted = context, target
            predicted = self.predict(seen, inputs.saccade)
            if weights.prediction:
                terms["prediction"] = F.huber_loss(predicted, wanted)
            if weights.cycle:
                terms["cycle"] = F.huber_loss(self.predict(predicted, inputs.saccade.inverse()), seen)
        if weights.invariance:
            terms["invariance"] = F.mse_loss(context, target)
        if weights.variance or weights.covariance:
            terms["variance"], terms["covariance"] = variance_covariance(context, weights.hinge)
        if self.inverse is not None:
            told = full_precision(self.inverse(torch.cat([context, target], 1)))
            terms["inverse"] = F.mse_loss(told, self.geometry.scaled(inputs.saccade).to(told.dtype))
        loss = torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
        spread = F.normalize(target, dim=-1).std(0, correction=0).mean()
        return {"loss": loss} | {name: term.detach() for name, term in terms.items()} | {"spread": spread}

    def embed(self, encoder: Encoder, views: Tensor) -> Tensor:
        """Encode views into what the predictor takes and gives: embeddings (B, D), or tokens (B, N, D)."""
        x = full_precision(encoder(views).x)
        return encoder.backbone.pool(x) if self.config.predictor == "mlp" else x

    def predict(self, x: Tensor, saccade: Pose) -> Tensor:
        """Foresee embeddings (B, D), or tokens (B, N, D), after a saccade."""
        assert self.predictor is not None
        return full_precision(self.predictor(x, self.geometry.features(saccade).to(x.dtype)))

    def after_step(self, progress: float) -> None:
        """Move the teacher, BatchNorm's statistics too, towards the student."""
        rate = momentum(progress, self.config.ema_half_life, self.config.ema_half_life_end)
        ema_update(self.target, self.context, rate)

    def describe(self) -> str:
        """Say how the eye moves."""
        return self.geometry.describe()

    def encoders(self) -> dict[str, Encoder]:
        """Return the teacher, and the student."""
        return {"target": self.target, "context": self.context}


def grid_of(encoder: Encoder, size: tuple[int, int]) -> tuple[int, int]:
    """Ask an encoder for the grid of tokens of its images."""
    was_training = encoder.training
    with torch.no_grad():
        grid: tuple[int, int] = encoder.eval()(torch.zeros(1, len(encoder.mean), *size)).grid
    encoder.train(was_training)
    return grid
