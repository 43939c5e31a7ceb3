"""What the predictor of a Saccade JEPA foresees: the view after a movement, decoded into pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jepa.backbones import eval_mode
from jepa.evaluation.decoding import RidgeDecoder, r2_score
from jepa.evaluation.features import Subset, read_evenly
from jepa.evaluation.saccade_retrieval import NUM_FIXATIONS, has_saccade_predictor
from jepa.objectives import Objective
from jepa.objectives.saccade import Saccade
from jepa.rng import Rng
from jepa.transforms.crop import resize
from jepa.transforms.saccade import Pose

__all__ = ["ViewPredictions", "predict_views"]

FITTED_IMAGES, NUM_IMAGES = 2000, 64
MAX_WIDTH = 2048  # of the inputs of the decoder; wider grids of tokens are averaged
MAX_SIDE = 64  # of the views that are kept and decoded, in pixels
FITTED_BATCH, BATCH_SIZE = 50, 8  # images at a time; each of the latter has 33 views
SEED = 0  # of the fixations


@dataclass(frozen=True)
class ViewPredictions:
    """Views of test images before and after movements, B images with K movements of each, and predictions of them.

    Embeddings have width D. The decoder was fitted to the embeddings of views of training images. The views are reduced
    to at most 64 pixels a side after they were encoded.
    """

    before: Tensor  # (B, C, H, W) in [0, 1]
    after: Tensor  # (B, K, C, H, W)
    saccade: Pose  # (B · K,)
    predicted: Tensor  # (B, K, D)
    actual: Tensor  # (B, K, D)
    decoder: RidgeDecoder

    def decoded(self, embeddings: Tensor) -> Tensor:
        """Decode embeddings (B, D) into views (B, C, H, W) in [0, 1]."""
        return self.decoder.decode(embeddings).view(-1, *self.before.shape[1:]).clamp(0, 1)

    def nearest(self) -> Tensor:
        """Return the views (B, K) of the same image whose embeddings are nearest to each prediction, as positions."""
        return torch.cdist(self.predicted, self.actual, compute_mode="donot_use_mm_for_euclid_dist").argmin(-1)

    def scores(self) -> dict[str, Any]:
        """Return how well pixels can be decoded from the actual and the predicted embeddings."""
        pixels = self.after.flatten(0, 1).flatten(1)
        decoded = {name: self.decoder.decode(getattr(self, name).flatten(0, 1)) for name in ("actual", "predicted")}
        r2 = {name: r2_score(part, pixels, self.decoder.output_mean) for name, part in decoded.items()}
        found = self.nearest() == torch.arange(self.predicted.shape[1])
        return {
            "of": "views after movements",
            "images": len(self.before),
            "r2_actual": round(r2["actual"], 4),
            "r2_predicted": round(r2["predicted"], 4),
            "candidates": self.predicted.shape[1],
            "top1": round(100 * float(found.double().mean()), 2),
        }


def predict_views(objective: Objective, train: Subset, test: Subset) -> ViewPredictions | None:
    """Predict views of up to 64 test images after 32 movements each; None without a predictor of movements."""
    if not has_saccade_predictor(objective):
        return None
    with torch.no_grad(), eval_mode(objective):
        embeddings, pixels = [], []
        for i, (batch, _) in enumerate(read_evenly(train, FITTED_IMAGES, FITTED_BATCH)):
            views = render(objective, batch, 1, i)[1].flatten(0, 1)
            embeddings.append(flat(embed(objective, views)))
            pixels.append(reduced(views).flatten(1))
        decoder = RidgeDecoder.fit(torch.cat(embeddings), torch.cat(pixels))
        parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        saccades = []
        for i, (batch, _) in enumerate(read_evenly(test, NUM_IMAGES, BATCH_SIZE)):
            before, after, saccade = render(objective, batch, NUM_FIXATIONS, i)
            device = objective.context.device
            start = objective.embed(objective.context, before.to(device)).repeat_interleave(NUM_FIXATIONS, 0)
            predicted = objective.predict(start, Pose(*(field.to(device) for field in saccade))).cpu()
            actual = torch.cat([embed(objective, views) for views in after.flatten(0, 1).split(FITTED_BATCH)])
            shape = (len(before), NUM_FIXATIONS, -1)
            saccades.append(saccade)
            after = reduced(after.flatten(0, 1)).unflatten(0, shape[:2])
            parts.append((reduced(before), after, flat(predicted).view(shape), flat(actual).view(shape)))
    saccade = Pose(*(torch.cat(fields) for fields in zip(*saccades, strict=True)))
    before, after, predicted, actual = map(torch.cat, zip(*parts, strict=True))
    if not bool(predicted.isfinite().all()):
        return None
    return ViewPredictions(
        before=before, after=after, saccade=saccade, predicted=predicted, actual=actual, decoder=decoder
    )


def render(objective: Saccade, pixels: Tensor, count: int, step: int) -> tuple[Tensor, Tensor, Pose]:
    """Return a view of each image, `count` further ones, and the saccades to them, on the CPU."""
    geometry = objective.geometry.for_images(pixels)
    first, following = geometry.sample_many(Rng(SEED, step, torch.arange(len(pixels))), count)
    (before,) = geometry.render(pixels, first)
    (after,) = geometry.render(pixels.repeat_interleave(count, 0), following)
    return before, after.unflatten(0, (len(pixels), count)), first.repeat(count).inverse().of(following)


def embed(objective: Saccade, views: Tensor) -> Tensor:
    """Return the teacher's embeddings of views, on the CPU."""
    return objective.embed(objective.target, views.to(objective.target.device)).cpu()


def flat(embeddings: Tensor) -> Tensor:
    """Return embeddings (B, D), or grids of tokens (B, N, D), as vectors: concatenated, or averaged if too wide."""
    if embeddings.ndim == 3 and embeddings[0].numel() > MAX_WIDTH:
        return embeddings.mean(1)
    return embeddings.flatten(1)


def reduced(views: Tensor) -> Tensor:
    """Return views (B, C, H, W) with at most 64 pixels a side."""
    height, width = views.shape[-2:]
    factor = min(1.0, MAX_SIDE / max(height, width))
    return resize(views, (max(1, round(height * factor)), max(1, round(width * factor))))
