"""Supervised training, a non-JEPA baseline."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from jepa.backbones import Encoder, build_encoder
from jepa.config import Config, InputError, SupervisedConfig
from jepa.data import Batch
from jepa.objectives.base import Objective, check_batchnorm, full_precision
from jepa.objectives.regularizers import feature_std
from jepa.rng import Rng
from jepa.transforms.crop import crop

__all__ = ["Supervised", "SupervisedInputs"]


class SupervisedInputs(NamedTuple):
    """One view of each image, and its label."""

    images: Tensor  # (B, C, H, W) floats in [0, 1]
    labels: Tensor  # (B,)


class Supervised(Objective):
    """Supervised training of an encoder with a linear classifier on its average token."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert isinstance(config.objective, SupervisedConfig)
        self.config = config.objective
        self.encoder = build_encoder(config.backbone, config.data)
        self.head = nn.Linear(self.encoder.backbone.dim, self.config.classes)
        check_batchnorm(self, config)
        self.size = config.data.size

    def sample(self, batch: Batch, rng: Rng) -> SupervisedInputs:
        """Crop one view of each image. Raises `InputError` if the images have no labels."""
        if batch.labels is None:
            raise InputError(
                "the supervised objective requires labels, but the images have none; choose a source with classes"
            )
        return SupervisedInputs(crop(batch.images, self.config.crop, self.size, rng), batch.labels)

    def forward(self, inputs: SupervisedInputs) -> dict[str, Tensor]:
        """Return the cross-entropy as "loss", averaged over all images; that of unlabeled ones (label -1) is 0."""
        pooled = full_precision(self.encoder.backbone.pool(self.encoder(inputs.images).x))
        return {
            "loss": F.cross_entropy(self.head(pooled), inputs.labels, ignore_index=-1, reduction="sum") / len(pooled),
            "feature_std": feature_std(pooled.detach()),
        }

    def describe(self) -> str:
        """Describe the classes in one line."""
        return f"labels of {self.config.classes} classes (a baseline)"

    def encoders(self) -> dict[str, Encoder]:
        """Return the encoder."""
        return {"encoder": self.encoder}
