"""What the predictor of a Saccade JEPA knows of eye movements: needs no labels.

From one fixation and a movement it must find the view after it among 32 fixations of the *same* image (other images are
told apart by what they show alone, and stand in a line of their own). With a wrong movement it must do worse.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from jepa.data import Images
from jepa.objectives import Objective, Saccade
from jepa.rng import Rng
from jepa.saccades import Geometry

__all__ = ["FORESEEN", "foresees", "foresight", "foresight_table"]

COUNT, FIXATIONS, BATCH = 512, 32, 32  # images, fixations of an image, images at a time
BINS = 5
FORESEEN = {
    "same image": "of the same image, told the movement",
    "shuffled": "of the same image, told a wrong movement",
    "across": "of as many images, told the movement",
}


class Seen(NamedTuple):
    """What came of a batch of images, D numbers an embedding."""

    predicted: Tensor  # (B, 32, D): from the first fixation and each movement
    after: Tensor  # (B, 32, D): what the teacher sees after it
    before: Tensor  # (B, 1, D): what the teacher sees at the first fixation
    length: Tensor  # (B, 32): of each movement, in sides of a view


def foresees(objective: Objective) -> TypeGuard[Saccade]:
    """Say whether an objective has a predictor that is told movements."""
    return isinstance(objective, Saccade) and objective.predictor is not None


@torch.no_grad()
def foresight(objective: Objective, images: Images, index: Tensor) -> dict[str, Any] | None:
    """Judge the predictor on up to 512 images; None where the objective has none, or of less than 32.

    `top1` (percent) and `mrr` of the true next fixation among 32: of the same image with the true movement, with the
    movement to another of the 32 (`shuffled`), and among those of 32 images (`across`). `errors` are squared errors by
    the length of the jump, over the variance of what is foreseen: of the prediction, of the shuffled one, and of
    foreseeing no change.
    """
    if not foresees(objective):
        return None
    was_training = objective.training
    objective.eval()
    device = objective.context.mean.device
    spread = torch.linspace(0, len(index) - 1, min(COUNT, len(index))).round().long()
    parts = [images.read(rows) for rows in index[spread].split(BATCH)]
    pixels = torch.cat([read.pixels[read.readable] for read in parts])
    found = [  # a rest would have fewer images to choose from
        see(objective, part.to(device), Rng(0, number, torch.arange(BATCH, device=device)))
        for number, part in enumerate(pixels.split(BATCH))
        if len(part) == BATCH
    ]
    objective.train(was_training)
    return summarise(found) if found else None


def see(objective: Saccade, pixels: Tensor, rng: Rng) -> Seen:
    """Look at each image from 33 places, and foresee 32 of them from the first."""
    canvas = (pixels.shape[-2], pixels.shape[-1])
    geometry = Geometry(objective.config.fixations, canvas, objective.geometry.size)
    first, after = geometry.sample_many(rng, FIXATIONS)
    (here,) = geometry.look(pixels, first)
    (there,) = geometry.look(pixels.repeat_interleave(FIXATIONS, 0), after)
    saccade = first.repeat(FIXATIONS).inverse().of(after)
    context = objective.embed(objective.context, here)
    predicted = objective.predict(context.repeat_interleave(FIXATIONS, 0), saccade)
    wanted, before = objective.embed(objective.target, there), objective.embed(objective.target, here)
    length = saccade.shift.norm(dim=-1)
    predicted, wanted, before, length = (
        x.flatten(1).unflatten(0, (len(pixels), -1)).cpu() for x in (predicted, wanted, before, length[:, None])
    )
    return Seen(predicted, wanted, before, length[..., 0])


def summarise(found: list[Seen]) -> dict[str, Any]:
    """Turn what was seen into scores."""
    ranks: dict[str, list[Tensor]] = {"same image": [], "shuffled": [], "across": []}
    errors: dict[str, list[Tensor]] = {"prediction": [], "shuffled": [], "no change": []}
    for predicted, after, before, _ in found:
        wrong = predicted.roll(1, 1)
        ranks["same image"].append(rank(predicted, after))
        ranks["shuffled"].append(rank(wrong, after))
        ranks["across"].append(rank(predicted.transpose(0, 1), after.transpose(0, 1)))
        for name, guess in (("prediction", predicted), ("shuffled", wrong), ("no change", before)):
            errors[name].append((guess - after).square().sum(-1).flatten())
    length = torch.cat([seen.length.flatten() for seen in found])
    after = torch.cat([seen.after.flatten(0, 1) for seen in found])
    variance = (after - after.mean(0)).square().sum(-1).mean().clamp(min=1e-12)
    edges = length.quantile(torch.linspace(0, 1, BINS + 1))
    place = torch.bucketize(length, edges[1:-1])
    bins = place.unique().tolist()  # one, where the eye only turns
    means = {
        name: [round(float(error[place == i].mean() / variance), 4) for i in bins]
        for name, error in ((name, torch.cat(parts)) for name, parts in errors.items())
    }
    result: dict[str, Any] = {
        name: {"top1": round(100 * float((r == 1).double().mean()), 2), "mrr": round(float((1 / r).mean()), 4)}
        for name, r in ((name, torch.cat(parts).double()) for name, parts in ranks.items())
    }
    middles = [round(float(length[place == i].mean()), 4) for i in bins]
    return result | {"images": len(found) * BATCH, "fixations": FIXATIONS, "lengths": middles, "errors": means}


def rank(predicted: Tensor, after: Tensor) -> Tensor:
    """Rank (from 1) of the true one among all of its row by distance, for (rows, candidates, D), flattened.

    Behind all that are as near, so that collapsed embeddings find nothing.
    """
    distance = torch.cdist(predicted, after, compute_mode="donot_use_mm_for_euclid_dist")  # which loses digits
    true = distance.diagonal(dim1=1, dim2=2)[..., None]
    return (distance <= true).sum(-1).flatten()


def foresight_table(found: dict[str, Any]) -> str:
    """Lay `foresight` out as text."""
    chance = sum(1 / r for r in range(1, found["fixations"] + 1)) / found["fixations"]
    lines = [f"{'':<44}{'top-1':>8}{'MRR':>8}"]
    lines += [f"{title:<44}{found[name]['top1']:>8.1f}{found[name]['mrr']:>8.2f}" for name, title in FORESEEN.items()]
    lines += [f"{'chance':<44}{100 / found['fixations']:>8.1f}{chance:>8.2f}", ""]
    lines += [f"{'length of the jump, sides of a view':<44}" + "".join(f"{x:>8.2f}" for x in found["lengths"])]
    titles = {"prediction": "error, told the movement", "shuffled": "told a wrong one", "no change": "of no change"}
    lines += [f"{title:<44}" + "".join(f"{x:>8.2f}" for x in found["errors"][name]) for name, title in titles.items()]
    return "\n".join(lines)
