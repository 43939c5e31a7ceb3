"""VICReg (Bardes et al. 2022, arXiv 2105.04906) on two fixations, the baseline of Saccade JEPA."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from jepa.backbones import Encoder, build_encoder
from jepa.config import Config, VICRegConfig
from jepa.data import Batch
from jepa.objectives.base import Objective, check_batchnorm, full_precision
from jepa.objectives.regularizers import feature_std, variance_covariance
from jepa.objectives.saccade import SaccadeInputs, sample_saccades
from jepa.rng import Rng
from jepa.transforms.saccade import Geometry

__all__ = ["VICReg"]


def expander(dim: int, width: int) -> nn.Sequential:
    """Build an MLP of three linear layers with BatchNorm and ReLU in between (section 4.1)."""
    return nn.Sequential(
        *(nn.Linear(dim, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()),
        *(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()),
        nn.Linear(width, width, bias=False),
    )


class VICReg(Objective):
    """VICReg: one encoder for both views, and an expander on whose outputs the loss is computed."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert isinstance(config.objective, VICRegConfig)
        self.config = config.objective
        self.encoder = build_encoder(config.backbone, config.data)
        self.expander = expander(self.encoder.backbone.dim, self.config.expander)
        check_batchnorm(self, config)
        self.geometry = Geometry(self.config.fixations, config.data.canvas_size, config.data.size)

    def sample(self, batch: Batch, rng: Rng) -> SaccadeInputs:
        """Sample the same two fixations per image as Saccade JEPA."""
        return sample_saccades(batch, self.geometry, rng)

    def forward(self, inputs: SaccadeInputs) -> dict[str, Tensor]:
        """Return "loss" and its terms (section 4.1).

        As in the paper's code, the variance term is averaged over both views, the covariance term is summed over them,
        and the invariance term is averaged over dimensions.
        """
        pooled = [self.encoder.backbone.pool(self.encoder(x).x) for x in (inputs.context, inputs.target)]
        first, second = (full_precision(self.expander(x)) for x in pooled)
        invariance = F.mse_loss(first, second)
        (variance, covariance), (other_variance, other_covariance) = map(variance_covariance, (first, second))
        variance, covariance = (variance + other_variance) / 2, covariance + other_covariance
        weights = self.config
        loss = weights.invariance * invariance + weights.variance * variance + weights.covariance * covariance
        terms = {"invariance": invariance, "variance": variance, "covariance": covariance}
        terms["feature_std"] = feature_std(full_precision(pooled[0]))
        return {"loss": loss} | {name: term.detach() for name, term in terms.items()}

    def describe(self) -> str:
        """Describe the views and saccades in one line."""
        return self.geometry.describe()

    def encoders(self) -> dict[str, Encoder]:
        """Return the encoder."""
        return {"encoder": self.encoder}

    def collapse_advice(self) -> str:
        """Advise a stronger variance term relative to the invariance term."""
        variance = 2 * self.config.variance if self.config.variance else 25.0
        return f"try --objective.variance {variance:g}, a lower --objective.invariance, or a lower --optim.lr"
