"""Supervised training: fine-tuning of a trained encoder, and a non-JEPA baseline.

Shapes: B images, D width, K classes.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from scipy.special import betaincinv
from torch import Tensor, nn

from jepa.backbones import Encoder, build_encoder
from jepa.config import Config, InputError, SupervisedConfig
from jepa.data import Batch
from jepa.objectives.base import Objective, check_batchnorm, full_precision
from jepa.objectives.regularizers import feature_std
from jepa.rng import Rng
from jepa.transforms.crop import crop

__all__ = ["Supervised", "SupervisedInputs", "draw_labeled"]


class SupervisedInputs(NamedTuple):
    """One view of each image, possibly mixed with another, and the labels of both."""

    images: Tensor  # (B, C, H, W) floats in [0, 1]
    labels: Tensor  # (B,)
    others: Tensor  # (B,) labels of the images that are mixed in
    weight: Tensor  # (B,) of `labels`; 1 - weight is that of `others`


class Supervised(Objective):
    """Supervised training of an encoder with a linear classifier on its average token."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert isinstance(config.objective, SupervisedConfig)
        assert config.objective.classes is not None
        self.config, self.seed = config.objective, config.seed
        self.encoder = build_encoder(config.backbone, config.data)
        self.head = nn.Linear(self.encoder.backbone.dim, config.objective.classes)
        self.size = config.data.size
        if self.config.freeze:
            self.encoder.requires_grad_(False)
        else:
            check_batchnorm(self, config)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.config.freeze:
            self.encoder.eval()
        return self

    def training_indices(self, labels: Tensor | None, indices: Tensor) -> Tensor:
        """Return a fraction of the labeled images of each class. Raises `InputError` if there are none."""
        if labels is None or not bool((labels[indices] >= 0).any()):
            raise InputError(
                "the supervised objective requires labels, but the images have none; choose a source with classes"
            )
        return draw_labeled(labels, indices, self.config.labels, self.seed)

    def sample(self, batch: Batch, rng: Rng) -> SupervisedInputs:
        """Crop one view of each image, and mix it with the one at the opposite position of the batch.

        The weights are drawn from a Beta distribution for each image (Zhang et al. 2018, arXiv 1710.09412). Raises
        `InputError` if the images have no labels.
        """
        if batch.labels is None:
            raise InputError(
                "the supervised objective requires labels, but the images have none; choose a source with classes"
            )
        images = crop(batch.images, self.config.crop, self.size, rng)
        weight = torch.ones(len(images), device=images.device)
        if self.config.mixup:
            quantiles = betaincinv(self.config.mixup, self.config.mixup, rng.uniform("mixup").cpu().numpy())
            weight = torch.as_tensor(quantiles, dtype=images.dtype, device=images.device)
            images = images.lerp(images.flip(0), 1 - weight[:, None, None, None])
        return SupervisedInputs(images, batch.labels, batch.labels.flip(0), weight)

    def forward(self, inputs: SupervisedInputs) -> dict[str, Tensor]:
        """Return the cross-entropy as "loss", averaged over all images; that of unlabeled ones (label -1) is 0."""
        with torch.no_grad() if self.config.freeze else nullcontext():
            pooled = full_precision(self.encoder.backbone.pool(self.encoder(inputs.images).x))
        logits = self.head(pooled)
        loss = inputs.weight * self.cross_entropy(logits, inputs.labels)
        if self.config.mixup:
            loss = loss + (1 - inputs.weight) * self.cross_entropy(logits, inputs.others)
        return {"loss": loss.mean(), "feature_std": feature_std(pooled.detach())}

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy (B,) of logits (B, K)."""
        return F.cross_entropy(
            logits, labels, ignore_index=-1, reduction="none", label_smoothing=self.config.label_smoothing
        )

    def describe(self) -> str:
        """Describe what is trained in one line."""
        parts = ["the linear layer on frozen features" if self.config.freeze else "the encoder and a linear layer"]
        if self.config.labels < 1:
            parts.append(f"{100 * self.config.labels:g}% of the labels")
        return f"labels of {self.config.classes} classes: {', '.join(parts)}"

    def encoders(self) -> dict[str, Encoder]:
        """Return the encoder."""
        return {"encoder": self.encoder}


def draw_labeled(labels: Tensor, indices: Tensor, fraction: float, seed: int) -> Tensor:
    """Return a random fraction of the indices of each class, at least one, sorted; unlabeled images are left out."""
    indices = indices[labels[indices] >= 0]
    if fraction == 1:
        return indices
    order = indices[torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))]
    by_class = [order[labels[order] == label] for label in labels[order].unique().tolist()]
    return torch.cat([found[: max(1, round(fraction * len(found)))] for found in by_class]).sort().values
