"""VICReg (Bardes et al. 2022, arXiv 2105.04906) on two fixations: what Saccade JEPA is measured against."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from jepa.backbones import Encoder, build_encoder
from jepa.config import Config, VICRegConfig
from jepa.data import Batch
from jepa.objectives.base import Objective, full_precision, needs_a_batch
from jepa.objectives.regularizers import variance_covariance
from jepa.objectives.saccade import SaccadeInputs
from jepa.rng import Rng
from jepa.saccades import Geometry

__all__ = ["VICReg"]


def expander(dim: int, width: int) -> nn.Sequential:
    """Three linear layers, BatchNorm and ReLU between them (section 4.1)."""
    return nn.Sequential(
        *(nn.Linear(dim, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()),
        *(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()),
        nn.Linear(width, width, bias=False),
    )


class VICReg(Objective):
    """One encoder for both fixations, and an expander on whose output the losses are taken."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert isinstance(config.objective, VICRegConfig)
        self.config = config.objective
        self.encoder = build_encoder(config.backbone, config.data)
        self.expander = expander(self.encoder.backbone.dim, self.config.expander)
        needs_a_batch(self, config)
        self.geometry = Geometry(self.config.fixations, config.data.canvas_size, config.data.size)

    def sample(self, batch: Batch, rng: Rng) -> SaccadeInputs:
        """Cut the same two fixations as Saccade JEPA."""
        geometry = self.geometry.on(batch.images)
        before, after = geometry.sample(rng)
        context, target = geometry.look(batch.images, before, after)
        return SaccadeInputs(context, target, before.inverse().of(after))

    def forward(self, inputs: SaccadeInputs) -> dict[str, Tensor]:
        """Return "loss" and its terms (section 4.1).

        As in the paper's code, variance is the mean of both fixations, covariance the sum, invariance a mean over
        dimensions.
        """
        pooled = [self.encoder.backbone.pool(self.encoder(x).x) for x in (inputs.context, inputs.target)]
        first, second = (full_precision(self.expander(x)) for x in pooled)
        invariance = F.mse_loss(first, second)
        (variance, covariance), (other_variance, other_covariance) = map(variance_covariance, (first, second))
        variance, covariance = (variance + other_variance) / 2, covariance + other_covariance
        weights = self.config
        loss = weights.invariance * invariance + weights.variance * variance + weights.covariance * covariance
        terms = {"invariance": invariance, "variance": variance, "covariance": covariance}
        terms["spread"] = F.normalize(full_precision(pooled[0]), dim=-1).std(0, correction=0).mean()
        return {"loss": loss} | {name: term.detach() for name, term in terms.items()}

    def describe(self) -> str:
        """Say how the eye moves."""
        return self.geometry.describe()

    def encoders(self) -> dict[str, Encoder]:
        """Return the encoder."""
        return {"encoder": self.encoder}
