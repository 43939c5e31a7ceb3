"""Scores and costs of the speedrun: frozen features, probes, FLOPs, and the speed of the machine."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from jepa.backbones import Encoder, eval_mode
from jepa.config import Config
from jepa.data import Batch
from jepa.evaluation.collapse import rankme
from jepa.evaluation.features import BATCH_SIZE, Features, Subset, as_features
from jepa.evaluation.knn import HEADLINE_K, knn
from jepa.evaluation.linear_probe import linear_probe
from jepa.evaluation.pca import principal_axes
from jepa.evaluation.pixel_baselines import PatchDictionary
from jepa.evaluation.pooling import pool_quadrants
from jepa.rng import Rng
from jepa.runs import Run, fresh_objective, load_objective
from jepa.transforms.crop import resize

__all__ = ["SCORES", "load_encoders", "parameter_count", "score_encoder", "score_patches", "training_flops"]

SCORES = ("linear_2x2", "linear", "knn", "rankme")
MAX_DIMS = 512  # maximum number of principal axes of these features
MAX_EXACT_DIMS = 4096  # maximum width of features of which all axes are computed, in float64
EXTRA_DIMS = 128  # number of further axes in the subspace iteration, for accuracy
MIN_VARIANCE = 1e-10  # smallest variance along an axis, relative to the largest; rounding errors are below it


class Views(NamedTuple):
    """Two kinds of features of the same images."""

    pooled: Features  # the encoder's own: tokens averaged over the image
    quadrants: Features  # tokens averaged over each quadrant and concatenated


@torch.no_grad()
def encoder_features(encoder: Encoder, subset: Subset, name: str) -> Views:
    """Return the features of the readable images of a subset."""
    dataset, indices = subset
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    label = f"{name}: features of {dataset.name}"
    for batch_indices in tqdm(indices.split(BATCH_SIZE), desc=label, unit="batch", delay=3, leave=False, disable=None):
        batch = dataset.read(batch_indices)
        if not batch.readable.any():
            continue
        with eval_mode(encoder):
            tokens = encoder(resize(batch.pixels[batch.readable].to(encoder.device), encoder.size))
        pooled = encoder.backbone.pool(tokens.x).float().cpu()
        parts.append((batch.indices[batch.readable], pooled, pool_quadrants(tokens).cpu()))
    used, pooled, quadrants = (torch.cat(part) for part in zip(*parts, strict=True))
    return Views(*(as_features(x, [x.shape[1]], used, dataset) for x in (pooled, quadrants)))


def project(train: Features, test: Features) -> tuple[Features, Features]:
    """Project features onto the first 512 principal axes of `train`, without those along which they do not vary.

    The probe standardizes its inputs, which would turn the rounding errors along such axes into noise.
    """
    variances, axes = principal_axes(train.x) if train.x.shape[1] <= MAX_EXACT_DIMS else first_axes(train.x)
    count = min(MAX_DIMS, int((variances > MIN_VARIANCE * variances[0]).sum()))
    mean, axes = train.x.mean(0), axes[:, : max(count, 1)].float()
    return replace(train, x=(train.x - mean) @ axes), replace(test, x=(test.x - mean) @ axes)


def first_axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variances along the first principal axes of wide features (N, D), and the axes (D, at most 640).

    They are computed by subspace iteration (Halko et al. 2009, arXiv 0909.4061), which takes a fraction of the time of
    an eigendecomposition of 8,192 x 8,192 numbers in float64.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        singular_values, axes = torch.pca_lowrank(x, q=min(MAX_DIMS + EXTRA_DIMS, *x.shape), niter=3)[1:]
    return singular_values.square() / max(len(x) - 1, 1), axes


def score_views(train: Views, test: Views) -> dict[str, float]:
    """Return the scores of features, fitted on `train` and computed on `test`."""
    scores = {
        "linear_2x2": linear_probe(*project(train.quadrants, test.quadrants))[0],
        "linear": linear_probe(train.pooled, test.pooled)[0],
        "knn": knn(train.pooled, test.pooled)[HEADLINE_K],
        "rankme": rankme(test.pooled.x),
    }
    return {name: round(scores[name], 2) for name in SCORES}


def score_encoder(encoder: Encoder, train: Subset, test: Subset, name: str) -> dict[str, float]:
    """Return the scores of an encoder: both linear probes, kNN (accuracies in percent) and RankMe."""
    return score_views(encoder_features(encoder, train, name), encoder_features(encoder, test, name))


def score_patches(dictionary: PatchDictionary, train: Subset, test: Subset) -> dict[str, float]:
    """Return the same scores of k-means of patches, whose own features are averaged over quadrants."""
    features = [dictionary.features(*subset) for subset in (train, test)]
    return score_views(*(Views(part, part) for part in features))


def load_encoders(run: Run, device: torch.device) -> tuple[Encoder, Encoder]:
    """Return the main encoder of the last checkpoint of a run, and the same encoder before training."""
    objective, untrained, _ = load_objective(run)
    return objective.main_encoder.to(device), untrained.to(device)


def training_flops(config: Config) -> int:
    """Return the FLOPs of matrix products and convolutions of the whole training: those of one step, times the steps.

    The step has a forward and a backward pass of random images, of which one microbatch is counted.
    """
    objective, count = fresh_objective(config).train(), config.batch_size // config.accumulate
    shape = (count, config.data.channels, *config.data.canvas_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(count, dtype=torch.long) if config.objective.uses_labels else None
    positions = torch.arange(count)
    with FlopCounterMode(display=False) as counter:
        inputs = objective.sample(Batch(images, labels, positions), Rng(config.seed, 0, positions))
        objective(inputs)["loss"].backward()
    return int(counter.get_total_flops()) * config.accumulate * config.steps


def parameter_count(encoder: Encoder | PatchDictionary) -> int:
    """Return the number of learned parameters of an encoder."""
    if isinstance(encoder, PatchDictionary):
        return sum(tensor.numel() for tensor in (encoder.mean, encoder.whitening, encoder.centroids))
    return sum(parameter.numel() for parameter in encoder.parameters())
