"""What an untrained encoder is made of: how loud its stem is, and how much of it is a linear function of the pixels.

    python benchmarks/stems.py [RECIPE]        # energy-demo; a minute

For every stem: the standard deviation over images of its output, beside the root mean square of the positions that are
added to it; the share of the variance of the averaged features that a ridge regression foresees from raw pixels (R²,
fitted on four fifths of 10,000 training images, scored on the rest); and their RankMe.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from torch import Tensor, nn

from jepa.backbones import Encoder
from jepa.data import Images, open_dataset
from jepa.evaluation import extract, pixels, rankme
from jepa.recipes import recipe
from jepa.runs import fresh_objective
from jepa.train import measured

RIDGE = 10.0
STEMS = ("conv", "patch-conv", "linear", "conv as torch initialises it")


@torch.no_grad()
def loudness(encoder: Encoder, images: Images, rows: Tensor) -> tuple[float, float]:
    """Return the standard deviation of the stem's output over images, and the root mean square of the positions."""
    backbone = encoder.backbone
    stem: Tensor = backbone.stem(encoder.prepare(images.read(rows).pixels))
    return float(stem.std(0).mean()), float(
        backbone.positions(backbone.trained_grid, rows.device).square().mean().sqrt()
    )


def foreseen(fit: tuple[Tensor, Tensor], score: tuple[Tensor, Tensor]) -> float:
    """Return R², averaged over features, of a ridge regression from pixels to features, (N, P) and (N, D) each."""
    middle, features_middle = fit[0].mean(0), fit[1].mean(0)
    x, y = fit[0] - middle, fit[1] - features_middle
    weights = torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    wanted = score[1] - features_middle
    missed = wanted - (score[0] - middle) @ weights
    return float((1 - missed.square().sum(0) / wanted.square().sum(0)).mean())


def main() -> None:
    """Print one table."""
    config = recipe(sys.argv[1] if len(sys.argv) > 1 else "energy-demo")
    images = open_dataset(config.data)
    assert images is not None
    config = replace(config, data=measured(config.data, images))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(7))[:10_000]
    score, fit = order.split([len(order) // 5, len(order) - len(order) // 5])
    seen = [pixels(images, rows).x.double() for rows in (fit, score)]
    print(f"{config.name}, untrained\n{'stem':<30}{'std':>7}{'positions':>11}{'R² from pixels':>16}{'RankMe':>8}")
    for stem in STEMS:
        backbone = replace(config.backbone, stem=stem.split()[0])
        encoder = next(iter(fresh_objective(replace(config, backbone=backbone)).encoders().values())).eval()
        if " " in stem:
            torch.manual_seed(config.seed)
            for module in encoder.backbone.stem.modules():
                if isinstance(module, nn.Conv2d):
                    module.reset_parameters()
        std, positions = loudness(encoder, images, score[:200])
        features = [extract(encoder, images, rows).x.double() for rows in (fit, score)]
        r2 = foreseen((seen[0], features[0]), (seen[1], features[1]))
        print(
            f"{stem:<30}{std:>7.3f}{positions:>11.3f}{r2:>16.3f}{float(rankme(features[1].float())):>8.1f}", flush=True
        )


if __name__ == "__main__":
    main()
