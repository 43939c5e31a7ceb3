"""How much features tell of eye movements: R² of the movement, regressed from the features before and after it."""

from __future__ import annotations

from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.backbones import Encoder, eval_mode
from jepa.evaluation.decoding import HELD_OUT, RidgeDecoder, r2_score
from jepa.evaluation.features import Subset, read_evenly
from jepa.evaluation.logistic_regression import feature_statistics
from jepa.rng import Rng
from jepa.transforms.saccade import Geometry

__all__ = ["MIN_IMAGES", "ViewPairs", "embed_views", "movement_r2"]

FITTED_IMAGES, NUM_IMAGES = 500, 250  # maximum numbers of training and test images, with two views each
MIN_IMAGES = 32  # of either
BATCH_SIZE = 50  # number of images at a time
HIDDEN, STEPS, STEPS_PER_CHECK, MLP_BATCH, LR, WEIGHT_DECAY = 64, 160, 20, 128, 1e-3, 0.01
MIN_STD = 1e-4  # of a component in [-1, 1]; those that vary less are constant up to rounding


class ViewPairs(NamedTuple):
    """Features of two views of images and the movements between them, 2B pairs of B images: all, then all reversed."""

    x: Tensor  # (2B, 2D): features before and after the movement, concatenated
    movement: Tensor  # (2B, M): components that vary, in [-1, 1]; see `Geometry.normalized`

    @classmethod
    @torch.no_grad()
    def encode(
        cls,
        encoder: Encoder,
        geometry: Geometry,
        subset: Subset,
        count: int,
        seed: int,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> Self:
        """Encode two fixations of up to `count` images of a subset, sampled as in training."""
        forward, backward = [], []
        for i, (batch, _) in enumerate(read_evenly(subset, count, BATCH_SIZE)):
            pixels = batch.to(encoder.device)
            geometry = geometry.for_images(pixels)
            poses = geometry.sample(Rng(seed, i, torch.arange(len(pixels), device=encoder.device)))
            first, second = (embed_views(encoder, views, precision) for views in geometry.render(pixels, *poses))
            saccade = poses[0].inverse().of(poses[1])
            forward.append((torch.cat([first, second], 1), geometry.normalized(saccade).cpu()))
            backward.append((torch.cat([second, first], 1), geometry.normalized(saccade.inverse()).cpu()))
        return cls(*map(torch.cat, zip(*forward, *backward, strict=True)))


@torch.no_grad()
def embed_views(encoder: Encoder, views: Tensor, precision: Literal["fp32", "bf16"] = "fp32") -> Tensor:
    """Return the average tokens (B, D) of views (B, C, H, W) in [0, 1] on the encoder's device, on the CPU."""
    autocast = torch.autocast(encoder.device.type, torch.bfloat16, enabled=precision == "bf16")
    with eval_mode(encoder), autocast:
        return encoder.embed(views).float().cpu()


def movement_r2(
    encoder: Encoder,
    geometry: Geometry,
    train: Subset,
    test: Subset,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> dict[str, dict[str, float]] | None:
    """Return R² of movements, regressed from the features of the views before and after: `linear` and `mlp`.

    As in seq-JEPA (arXiv 2505.03176). Ridge regression and an MLP with one hidden layer of 64 units are fitted to two
    fixations of each of up to 500 images of `train`, in both orders, and scored on up to 250 images of `test`. Features
    are standardized. A tenth of the training images chooses the penalty and the number of steps (at most 160). R² is
    given for each component that varies (`Geometry.component_names`) and as their `mean`: 1 if all movements are
    right, 0 if each is the average. Both encoders of saccade-cifar10 take 7 to 8 core seconds. Returns
    None with fewer than 32 images of either, if no component varies, or if features are not finite.
    """
    if min(len(train.indices), len(test.indices)) < MIN_IMAGES:
        return None
    fitted = ViewPairs.encode(encoder, geometry, train, FITTED_IMAGES, seed=0, precision=precision)
    scored = ViewPairs.encode(encoder, geometry, test, NUM_IMAGES, seed=1, precision=precision)
    if not all(bool(pairs.x.isfinite().all()) for pairs in (fitted, scored)):
        return None
    names = {i: name for i, name in enumerate(geometry.component_names()) if fitted.movement[:, i].std() > MIN_STD}
    if not names:
        return None
    standardize = feature_statistics(fitted.x)
    x, test_x, mean = standardize(fitted.x), standardize(scored.x), fitted.movement.mean(0)
    held_out = (torch.arange(len(x) // 2) % HELD_OUT == HELD_OUT - 1).repeat(2)  # a pair and its reverse
    predicted = {
        "linear": RidgeDecoder.fit(x, fitted.movement, held_out).decode(test_x),
        "mlp": fit_mlp(x, fitted.movement, held_out)(test_x),
    }
    scores = {}
    for regression, guess in predicted.items():
        r2 = {name: r2_score(guess[:, i], scored.movement[:, i], mean[i]) for i, name in names.items()}
        r2["mean"] = sum(r2.values()) / len(r2)
        scores[regression] = {name: round(value, 4) for name, value in r2.items()}
    return scores


def fit_mlp(x: Tensor, y: Tensor, held_out: Tensor) -> nn.Sequential:
    """Fit an MLP to inputs (N, D) and outputs (N, M), with the number of steps that is best for the `held_out` (N,).

    It starts from the average output, so if the inputs say nothing about the outputs, this is what it predicts.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        last = nn.Linear(HIDDEN, y.shape[1])
        model = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.GELU(), last)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(y.mean(0))
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=WEIGHT_DECAY)
    used = (~held_out).nonzero()[:, 0]
    best, best_error = {}, torch.inf
    for step in range(STEPS + 1):
        if step % STEPS_PER_CHECK == 0:
            with torch.no_grad():
                error = float(F.mse_loss(model(x[held_out]), y[held_out]))
            if error < best_error:
                best, best_error = {name: value.clone() for name, value in model.state_dict().items()}, error
        rows = used[torch.randint(len(used), (MLP_BATCH,), generator=generator)]
        loss = F.mse_loss(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.load_state_dict(best)
    return model.requires_grad_(False)
