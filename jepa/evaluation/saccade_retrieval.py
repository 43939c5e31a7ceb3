"""Label-free evaluation of how well the predictor models saccades.

Given a fixation and a saccade, the resulting view must be retrieved among 32 fixations of the *same* image. Retrieval
among fixations of different images is easier, because their content differs, and is reported separately. As a control,
retrieval should be worse with a wrong saccade.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from jepa.backbones import eval_mode
from jepa.data import ImageDataset, evenly_spaced
from jepa.objectives import Objective
from jepa.objectives.saccade import Saccade
from jepa.rng import Rng
from jepa.transforms.saccade import Geometry

__all__ = ["BATCH_SIZE", "has_saccade_predictor", "saccade_retrieval"]

MAX_IMAGES = 512  # maximum number of evaluated images
NUM_FIXATIONS = 32  # number of candidate fixations per image, excluding the first
BATCH_SIZE = 32  # number of images per batch, the candidates of `across`
NUM_BINS = 5  # number of bins of saccade length


class Embeddings(NamedTuple):
    """Predicted and actual embeddings of a batch of images, of width D."""

    predicted: Tensor  # (B, 32, D): predictions from the first fixation and each saccade
    after: Tensor  # (B, 32, D): teacher embeddings after each saccade
    before: Tensor  # (B, 1, D): teacher embedding of the first fixation
    length: Tensor  # (B, 32): length of each saccade, in view sides


def has_saccade_predictor(objective: Objective) -> TypeGuard[Saccade]:
    """Return whether an objective has a predictor conditioned on saccades."""
    return isinstance(objective, Saccade) and objective.predictor is not None


@torch.no_grad()
def saccade_retrieval(objective: Objective, dataset: ImageDataset, indices: Tensor) -> dict[str, Any] | None:
    """Evaluate the predictor of a Saccade JEPA on up to 512 images of `indices`.

    `top1` (accuracy in percent) and `mrr` (mean reciprocal rank) measure retrieval of the actual view after a saccade.
    For `same image`, the candidates are 32 fixations of the same image. `shuffled` has the same candidates, but the
    prediction is conditioned on the saccade to a different one of them. For `across`, the candidates are fixations of
    32 images. `errors` are the squared errors of the prediction, of the prediction from a wrong saccade, and of
    predicting no change, divided by the variance of the embeddings. They are averaged within bins of saccade length;
    `lengths` are the mean lengths of the bins, in view sides.
    Returns None if the objective has no such predictor, or if there are fewer than 32 images.
    """
    if not has_saccade_predictor(objective):
        return None
    device = objective.context.device
    subset = indices[evenly_spaced(len(indices), MAX_IMAGES)]
    decoded = [dataset.read(batch) for batch in subset.split(BATCH_SIZE)]
    pixels = torch.cat([batch.pixels[batch.readable] for batch in decoded])
    with eval_mode(objective):
        embeddings = [
            embed_fixations(objective, batch.to(device), Rng(0, i, torch.arange(BATCH_SIZE, device=device)))
            for i, batch in enumerate(pixels.split(BATCH_SIZE))
            if len(batch) == BATCH_SIZE  # retrieval among fewer images would be easier
        ]
    return summarize(embeddings) if embeddings else None


def embed_fixations(objective: Saccade, pixels: Tensor, rng: Rng) -> Embeddings:
    """Embed 33 fixations of each image, and predict 32 of them from the first."""
    canvas = (pixels.shape[-2], pixels.shape[-1])
    geometry = Geometry(objective.config.fixations, canvas, objective.geometry.size)
    first, candidates = geometry.sample_many(rng, NUM_FIXATIONS)
    (first_views,) = geometry.render(pixels, first)
    (candidate_views,) = geometry.render(pixels.repeat_interleave(NUM_FIXATIONS, 0), candidates)
    saccade = first.repeat(NUM_FIXATIONS).inverse().of(candidates)
    context = objective.embed(objective.context, first_views)
    predicted = objective.predict(context.repeat_interleave(NUM_FIXATIONS, 0), saccade)
    after, before = objective.embed(objective.target, candidate_views), objective.embed(objective.target, first_views)
    length = saccade.shift.norm(dim=-1)
    predicted, after, before, length = (
        x.flatten(1).unflatten(0, (len(pixels), -1)).cpu() for x in (predicted, after, before, length[:, None])
    )
    return Embeddings(predicted, after, before, length[..., 0])


def summarize(batches: list[Embeddings]) -> dict[str, Any]:
    """Compute the scores of `saccade_retrieval` from the embeddings of all batches."""
    ranks: dict[str, list[Tensor]] = {"same image": [], "shuffled": [], "across": []}
    errors: dict[str, list[Tensor]] = {"prediction": [], "shuffled": [], "no change": []}
    for predicted, after, before, _ in batches:
        shuffled = predicted.roll(1, 1)
        ranks["same image"].append(rank(predicted, after))
        ranks["shuffled"].append(rank(shuffled, after))
        ranks["across"].append(rank(predicted.transpose(0, 1), after.transpose(0, 1)))
        for name, guess in (("prediction", predicted), ("shuffled", shuffled), ("no change", before)):
            errors[name].append((guess - after).square().sum(-1).flatten())
    scores: dict[str, Any] = {}
    for name, batch_ranks in ranks.items():
        r = torch.cat(batch_ranks).double()
        scores[name] = {
            "top1": round(100 * float((r == 1).double().mean()), 2),
            "mrr": round(float((1 / r).mean()), 4),
        }
    length = torch.cat([batch.length.flatten() for batch in batches])
    after = torch.cat([batch.after.flatten(0, 1) for batch in batches])
    variance = (after - after.mean(0)).square().sum(-1).mean().clamp(min=1e-12)
    edges = length.quantile(torch.linspace(0, 1, NUM_BINS + 1))
    bin_of = torch.bucketize(length, edges[1:-1])
    bins = bin_of.unique().tolist()  # a single bin if all saccades are rotations
    scores |= {"images": len(batches) * BATCH_SIZE, "fixations": NUM_FIXATIONS}
    scores["lengths"] = [round(float(length[bin_of == i].mean()), 4) for i in bins]
    scores["errors"] = {}
    for name, batch_errors in errors.items():
        error = torch.cat(batch_errors)
        scores["errors"][name] = [round(float(error[bin_of == i].mean() / variance), 4) for i in bins]
    return scores


def rank(predicted: Tensor, after: Tensor) -> Tensor:
    """Return the rank, from 1, of each actual embedding by distance to its prediction, flattened.

    `predicted` and `after` are (rows, candidates, D); the candidates are the embeddings of the same row. Ties count
    against the prediction, so collapsed embeddings get the worst rank.
    """
    # the default mode is imprecise
    distance = torch.cdist(predicted, after, compute_mode="donot_use_mm_for_euclid_dist")
    actual = distance.diagonal(dim1=1, dim2=2)[..., None]
    return (distance <= actual).sum(-1).flatten()
