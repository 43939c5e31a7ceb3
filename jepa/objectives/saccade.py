"""Saccade JEPA: predict the teacher's embedding after an eye movement from the student's embedding before it.

Shapes: B images, N tokens per view, D encoder width, P predictor width, F saccade features.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.backbones import Encoder, Trunk, build_encoder, build_trunk, eval_mode, sincos_positions
from jepa.config import Config, SaccadeConfig
from jepa.data import Batch
from jepa.objectives.base import Objective, check_batchnorm, ema_update, full_precision
from jepa.objectives.contrastive import info_nce
from jepa.objectives.patch_codes import CodeTeacher
from jepa.objectives.regularizers import correlation, feature_std, variance_covariance
from jepa.optim import momentum
from jepa.rng import Rng
from jepa.transforms.color import change_colors
from jepa.transforms.saccade import Geometry, Pose

__all__ = ["GridPredictor", "MLPPredictor", "Saccade", "SaccadeCode", "SaccadeInputs", "mlp"]


class SaccadeInputs(NamedTuple):
    """Two views of each image, and the saccade from the first to the second."""

    context: Tensor  # (B, C, h, w) floats in [0, 1], for the student
    target: Tensor  # (B, C, h, w), for the teacher
    saccade: Pose


def sample_saccades(batch: Batch, geometry: Geometry, rng: Rng) -> SaccadeInputs:
    """Sample two fixations per image in random order, and render their views."""
    geometry = geometry.for_images(batch.images)
    before, after = geometry.sample(rng)
    context, target = geometry.render(batch.images, before, after)
    return SaccadeInputs(context, target, before.inverse().of(after))


def mlp(dim: int, hidden: int, out: int) -> nn.Sequential:
    """Build an MLP of three linear layers with GELU in between."""
    return nn.Sequential(
        nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, out)
    )


class SaccadeCode(nn.Module):
    """Encodes the components of a saccade, each in [-1, 1], as sines and cosines (NeRF, equation 4).

    The lowest frequency is π/2, half of NeRF's: with π, the codes of -1 and 1 are equal, so the predictor cannot tell
    the largest rotation to the left from the largest one to the right.
    """

    frequencies: Tensor
    component_of: Tensor  # index of the component that each frequency encodes

    def __init__(self, num_octaves: list[int]) -> None:
        super().__init__()
        component_of = torch.arange(len(num_octaves)).repeat_interleave(torch.tensor(num_octaves))
        self.register_buffer("component_of", component_of, persistent=False)
        octaves = torch.cat([torch.arange(count) for count in num_octaves])
        self.register_buffer("frequencies", math.pi / 2 * 2.0**octaves)  # a predictor fits only these frequencies

    def forward(self, components: Tensor) -> Tensor:
        """Map components (B, 1 to 4) to sin(2^k π x / 2) and cos(2^k π x / 2), (B, 2 · sum of octaves)."""
        angle = components[:, self.component_of] * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], 1)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # checkpoints without frequencies were trained with a lowest frequency of π
        state_dict.setdefault(f"{prefix}frequencies", 2 * self.frequencies)
        super()._load_from_state_dict(state_dict, prefix, *args)


class MLPPredictor(nn.Module):
    """Predicts an embedding after a saccade from the embedding before it."""

    def __init__(self, dim: int, hidden: int, out: int, features: int) -> None:
        super().__init__()
        self.saccade = nn.Linear(features, dim)
        self.layers = mlp(dim, hidden, out)

    def forward(self, x: Tensor, saccade: Tensor) -> Tensor:
        """Map embeddings (B, D) and saccade features (B, F) to embeddings (B, out)."""
        return self.layers(x + self.saccade(saccade))  # type: ignore[no-any-return]


class GridPredictor(nn.Module):
    """Predicts the tokens after a saccade with a transformer. An embedding of the saccade is added to each token."""

    positions: Tensor

    def __init__(self, trunk: Trunk, width: int, dim: int, grid: tuple[int, int], features: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.embed, self.project = nn.Linear(dim, width), nn.Linear(width, dim)
        self.saccade = nn.Linear(features, width)
        self.register_buffer("positions", sincos_positions(width, grid, grid), persistent=False)

    def forward(self, x: Tensor, saccade: Tensor) -> Tensor:
        """Map tokens (B, N, D) and saccade features (B, F) to tokens (B, N, D)."""
        tokens = self.embed(x) + self.positions + self.saccade(saccade)[:, None]
        return self.project(self.trunk(tokens))  # type: ignore[no-any-return]


class Saccade(Objective):
    """Saccade JEPA: a student, its EMA as the teacher, and a predictor conditioned on the saccade."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert isinstance(config.objective, SaccadeConfig)
        self.config = config.objective
        self.context = build_encoder(config.backbone, config.data)
        self.target = copy.deepcopy(self.context).requires_grad_(False)
        check_batchnorm(self, config)
        self.geometry = Geometry(self.config.fixations, config.data.canvas_size, config.data.size)
        dim, features = self.context.backbone.dim, 2 * sum(self.geometry.num_octaves())
        self.code = SaccadeCode(self.geometry.num_octaves())
        self.predictor: MLPPredictor | GridPredictor | None = None
        self.inverse: nn.Sequential | None = None
        if self.config.prediction or self.config.cycle:
            if self.config.predictor == "mlp":
                self.predictor = MLPPredictor(dim, self.config.hidden, dim, features)
            else:
                trunk = build_trunk(config.backbone, self.config.predictor)
                self.predictor = GridPredictor(*trunk, dim, grid_of(self.context, config.data.size), features)
        self.code_teacher: CodeTeacher | None = None
        if self.config.patch_codes:
            self.code_teacher = CodeTeacher(config.data.channels)
            self.code_predictor = MLPPredictor(dim, self.config.hidden, self.code_teacher.dim, features)
        if self.config.inverse:
            self.inverse = mlp(2 * dim, self.config.hidden, len(self.geometry.num_octaves()))

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; the teacher stays in evaluation mode."""
        super().train(mode)
        self.target.eval()
        return self

    def sample(self, batch: Batch, rng: Rng) -> SaccadeInputs:
        """Sample two fixations per image and render their views; the colors of the student's view may be changed."""
        inputs = sample_saccades(batch, self.geometry, rng)
        return inputs._replace(context=change_colors(inputs.context, self.config.color, rng))

    def forward(self, inputs: SaccadeInputs) -> dict[str, Tensor]:
        """Return "loss" and its terms, averaged over tokens and images. Terms with weight 0 are not computed."""
        weights = self.config
        student = self.context(inputs.context).x  # (B, N, D)
        with torch.no_grad():
            teacher = self.target(inputs.target).x
        student, teacher = full_precision(student), full_precision(teacher)
        context, target = self.context.backbone.pool(student), self.target.backbone.pool(teacher)
        terms: dict[str, Tensor] = {}
        if self.predictor is not None:
            if weights.predictor == "mlp":
                student, teacher = context, target
            predicted = self.predict(student, inputs.saccade)
            if weights.prediction:
                terms["prediction"] = F.huber_loss(predicted, teacher)
            if weights.cycle:
                terms["cycle"] = F.huber_loss(self.predict(predicted, inputs.saccade.inverse()), student)
        if self.code_teacher is not None:
            movement = self.code(self.geometry.normalized(inputs.saccade)).to(context.dtype)
            codes = self.code_teacher(inputs.target)
            terms["patch_codes"] = info_nce(self.code_predictor(context, movement), codes)
        if weights.invariance:
            terms["invariance"] = F.mse_loss(context, target)
        if weights.variance or weights.covariance:
            terms["variance"], terms["covariance"] = variance_covariance(context, weights.hinge)
        if weights.correlation:
            terms["correlation"] = correlation(context)
        if self.inverse is not None:
            movement = full_precision(self.inverse(torch.cat([context, target], 1)))
            terms["inverse"] = F.mse_loss(movement, self.geometry.normalized(inputs.saccade).to(movement.dtype))
        loss = torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
        terms["feature_std"] = feature_std(target)
        return {"loss": loss} | {name: term.detach() for name, term in terms.items()}

    def embed(self, encoder: Encoder, views: Tensor) -> Tensor:
        """Encode views as inputs of the predictor: embeddings (B, D) or tokens (B, N, D)."""
        x = full_precision(encoder(views).x)
        return encoder.backbone.pool(x) if self.config.predictor == "mlp" else x

    def predict(self, x: Tensor, saccade: Pose) -> Tensor:
        """Predict embeddings (B, D) or tokens (B, N, D) after a saccade."""
        assert self.predictor is not None
        code = self.code(self.geometry.normalized(saccade))
        return full_precision(self.predictor(x, code.to(x.dtype)))

    def after_step(self, progress: float) -> None:
        """Update the teacher, an EMA of the student including BatchNorm statistics."""
        ema_update(
            self.target, self.context, momentum(progress, self.config.ema_half_life, self.config.ema_half_life_end)
        )

    def describe(self) -> str:
        """Describe the views and saccades in one line."""
        return self.geometry.describe()

    def encoders(self) -> dict[str, Encoder]:
        """Return the teacher and the student."""
        return {"target": self.target, "context": self.context}

    def collapse_advice(self) -> str:
        """Advise stronger regularization or a slower teacher."""
        variance = 2 * self.config.variance if self.config.variance else 0.2
        return (
            f"try --objective.variance {variance:g}, a lower --optim.lr, or an --objective.ema-half-life above "
            f"{self.config.ema_half_life:g}"
        )


def grid_of(encoder: Encoder, size: tuple[int, int]) -> tuple[int, int]:
    """Return the token grid of an image of this size."""
    with torch.no_grad(), eval_mode(encoder):
        grid: tuple[int, int] = encoder(torch.zeros(1, len(encoder.mean), *size)).grid
    return grid
