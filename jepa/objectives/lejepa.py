"""LeJEPA (Balestriero & LeCun 2025, arXiv 2511.08544): every view of an image predicts the mean of its global views.

There is no teacher and no stop-gradient: SIGReg prevents collapse.

Shapes: B images, G global and L local views, V = G + L, D encoder width, P projection width, S random directions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.backbones import Encoder, build_encoder
from jepa.config import Config, CropConfig, InputError, LeJepaConfig
from jepa.data import Batch
from jepa.objectives.base import Objective, check_batchnorm, full_precision
from jepa.objectives.regularizers import feature_std, sigreg
from jepa.rng import Rng
from jepa.transforms.crop import crop

__all__ = ["LeJepa", "LeJepaInputs"]


class LeJepaInputs(NamedTuple):
    """The views of each image, and the directions of SIGReg."""

    global_views: Tensor  # (G, B, C, H, W) floats in [0, 1]
    local_views: Tensor  # (L, B, C, h, w)
    directions: Tensor  # (S, P) unit vectors, the same for all images of a step


def projector(dim: int, hidden: int, out: int) -> nn.Sequential:
    """Build an MLP of three linear layers with BatchNorm and ReLU in between."""
    return nn.Sequential(
        *(nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()),
        *(nn.Linear(hidden, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()),
        nn.Linear(hidden, out),
    )


class LeJepa(Objective):
    """LeJEPA: one encoder for all views, and a projector on whose outputs the loss is computed."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert isinstance(config.objective, LeJepaConfig)
        self.config, self.size = config.objective, config.data.size
        self.local_size = self.config.local_view_size(self.size)
        self.encoder = build_encoder(config.backbone, config.data)
        if min(self.local_size) < self.encoder.backbone.stride:
            raise InputError(
                f"objective.local_size is {self.local_size[0]}x{self.local_size[1]}, smaller than the stride of the "
                f"backbone, {self.encoder.backbone.stride}; choose a larger size, or none for that of the global views"
            )
        self.projector = projector(self.encoder.backbone.dim, self.config.hidden, self.config.projection)
        check_batchnorm(self, config)

    def sample(self, batch: Batch, rng: Rng) -> LeJepaInputs:
        """Crop the views of each image, and draw the directions of SIGReg, which all images share."""
        config, images = self.config, batch.images
        numbers = range(config.num_global + config.num_local)
        views = [crop(images, config.global_crop, self.size, rng, view=i) for i in numbers[: config.num_global]]
        local = [crop(images, config.local_crop, self.local_size, rng, view=i) for i in numbers[config.num_global :]]
        no_views = images.new_empty((0, *images.shape[:2], *self.local_size), dtype=torch.float32)
        directions = F.normalize(rng.shared_normal("directions", config.slices, config.projection), dim=-1)
        return LeJepaInputs(torch.stack(views), torch.stack(local) if local else no_views, directions)

    def forward(self, inputs: LeJepaInputs) -> dict[str, Tensor]:
        """Return "loss" and its terms (algorithm 2).

        The prediction loss is averaged over dimensions, views and images, SIGReg over directions and views.
        """
        features = self.embed(inputs.global_views, inputs.local_views)  # (V, B, D)
        projected = full_precision(self.projector(features.flatten(0, 1))).unflatten(0, features.shape[:2])
        centers = projected[: self.config.num_global].mean(0)  # (B, P)
        terms = {
            "prediction": (projected - centers).square().mean(),
            "sigreg": sigreg(projected, inputs.directions),
        }
        loss = (1 - self.config.sigreg) * terms["prediction"] + self.config.sigreg * terms["sigreg"]
        terms["feature_std"] = feature_std(full_precision(features[0]))
        return {"loss": loss} | {name: term.detach() for name, term in terms.items()}

    def embed(self, *views: Tensor) -> Tensor:
        """Encode views (v, B, C, h, w) of one or two sizes into averaged tokens (V, B, D).

        Views of the same size are encoded together.
        """
        groups = [group for group in views if len(group)]
        if len({group.shape[1:] for group in groups}) == 1:
            groups = [torch.cat(groups)]
        pool = self.encoder.backbone.pool
        features = [pool(self.encoder(x.flatten(0, 1)).x).unflatten(0, x.shape[:2]) for x in groups]
        return torch.cat(features)

    def describe(self) -> str:
        """Describe the views in one line."""
        config = self.config
        views = [describe_views("global", config.num_global, config.global_crop, self.size)]
        if config.num_local:
            views.append(describe_views("local", config.num_local, config.local_crop, self.local_size))
        return f"{' and '.join(views)}; SIGReg along {config.slices} directions"

    def encoders(self) -> dict[str, Encoder]:
        """Return the encoder."""
        return {"encoder": self.encoder}

    def collapse_advice(self) -> str:
        """Advise a larger weight of SIGReg."""
        weight = self.config.sigreg
        stronger = min(2 * weight, (1 + weight) / 2) if weight else 0.05
        return f"try --objective.sigreg {stronger:g}, or a lower --optim.lr"


def describe_views(kind: str, count: int, config: CropConfig, size: tuple[int, int]) -> str:
    """Describe the global or local views of an image."""
    low, high = (100 * fraction for fraction in config.scale)
    part = {"full": "the whole image", "centre": "the center of the image"}
    covered = part.get(config.kind, f"{low:.0f}% to {high:.0f}% of the image")
    return f"{count} {kind} view{'s' * (count > 1)} of {covered} in {size[0]}x{size[1]} pixels"
