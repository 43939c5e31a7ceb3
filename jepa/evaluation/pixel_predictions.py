"""What a masked autoencoder makes of hidden patches, compared with their pixels.

Shapes: B images, N patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jepa.backbones import eval_mode
from jepa.evaluation.decoding import r2_score
from jepa.evaluation.features import Subset
from jepa.evaluation.patch_predictions import BATCH_SIZE, SEED, from_patches, read_images, to_patches
from jepa.objectives import Objective
from jepa.objectives.base import full_precision
from jepa.objectives.mae import MAE
from jepa.rng import Rng

__all__ = ["PixelPredictions", "predict_pixels"]


@dataclass(frozen=True)
class PixelPredictions:
    """Test images and their hidden patches, predicted from the visible ones.

    If the objective predicts pixels relative to the mean of their patch and in units of its standard deviation, the
    predictions are turned into pixels with the actual mean and standard deviation, which the model does not know.
    """

    images: Tensor  # (B, C, H, W) in [0, 1]
    context: Tensor  # (B, N) bool, True for visible patches
    hidden: Tensor  # (B, N) bool, True for predicted ones
    predicted: Tensor  # (B, C, H, W); only hidden patches mean something, and values may be outside of [0, 1]
    reference: Tensor  # (B, C, H, W), what one knows without a prediction: the mean of each patch, or the average patch
    normalized: bool  # whether the mean and the standard deviation of each patch are the actual ones
    grid: tuple[int, int]

    def scores(self) -> dict[str, Any]:
        """Return the fraction of the variance of hidden pixels that is predicted, relative to `reference`."""
        images = (self.predicted, self.images, self.reference)
        predicted, actual, reference = (to_patches(x, self.grid)[self.hidden] for x in images)
        return {
            "of": "hidden patches",
            "images": len(self.images),
            "r2_predicted": round(r2_score(predicted, actual, reference), 4),
            "reference": "the actual mean of each patch" if self.normalized else "the average patch",
        }


def predict_pixels(objective: Objective, test: Subset) -> PixelPredictions | None:
    """Predict hidden patches of up to 1,000 test images, which are not cropped.

    Returns None for other objectives than the masked autoencoder, and if predictions are not finite because training
    has diverged.
    """
    if not isinstance(objective, MAE):
        return None
    images = read_images(test, objective.size, objective.num_patches)
    parts = []
    with torch.no_grad(), eval_mode(objective):
        for i, batch in enumerate(images.split(BATCH_SIZE)):
            positions = torch.arange(i * BATCH_SIZE, i * BATCH_SIZE + len(batch), device=objective.encoder.device)
            parts.append(predict_batch(objective, batch.to(positions.device), Rng(SEED, 0, positions)))
    hidden, predicted, reference = (torch.cat(part) for part in zip(*parts, strict=True))
    if not bool(predicted.isfinite().all()):
        return None
    grid = (objective.size[0] // objective.patch, objective.size[1] // objective.patch)
    if not objective.config.normalize_pixels:
        patches = to_patches(images, grid)
        reference = from_patches(patches.mean((0, 1)).expand_as(patches), grid, images.shape)
    return PixelPredictions(
        images=images,
        context=~hidden,
        hidden=hidden,
        predicted=predicted,
        reference=reference,
        normalized=objective.config.normalize_pixels,
        grid=grid,
    )


def predict_batch(objective: MAE, images: Tensor, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
    """Return the fields `hidden`, `predicted` and, with normalized pixels, `reference` of a batch."""
    _, visible, masked = objective.mask(images, rng)
    pixels = full_precision(objective.decoder(objective.encoder(images, visible).x, visible, masked))
    hidden = torch.ones(len(images), objective.num_patches, dtype=torch.bool, device=images.device)
    hidden.scatter_(1, visible, False)
    targets = torch.zeros_like(objective.targets(images))
    reference = objective.from_targets(targets, images)
    targets.scatter_(1, masked[..., None].expand_as(pixels), pixels)
    return hidden.cpu(), objective.from_targets(targets, images).cpu(), reference.cpu()
