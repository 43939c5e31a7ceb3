"""Compare untrained stems: the scale of their output, and how linear the features are in the pixels.

    python benchmarks/stems.py [RECIPE]        # energy-demo by default; takes a minute

For each stem, prints the standard deviation of its output over images, the root mean square of the position embeddings
added to it, the R² of a ridge regression from raw pixels to the mean features (fitted on four fifths of 10,000 training
images and scored on the rest), and the RankMe of the features.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from torch import Tensor, nn

from jepa.backbones import Encoder
from jepa.config.recipes import recipe
from jepa.data import ImageDataset, open_dataset
from jepa.data.stats import measure_statistics
from jepa.evaluation.collapse import rankme
from jepa.evaluation.features import extract, pixel_features
from jepa.runs import fresh_objective

RIDGE_PENALTY = 10.0
MAX_IMAGES = 10_000
STEMS = ("conv", "patch-conv", "linear", "conv with PyTorch initialization")


@torch.no_grad()
def scales(encoder: Encoder, dataset: ImageDataset, indices: Tensor) -> tuple[float, float]:
    """Return the standard deviation of the stem's output over images, and the root mean square of the positions."""
    backbone = encoder.backbone
    output: Tensor = backbone.stem(encoder.prepare(dataset.read(indices).pixels))
    positions: Tensor = backbone.positions(backbone.trained_grid, indices.device)
    return float(output.std(0).mean()), float(positions.square().mean().sqrt())


def ridge_r2(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Return R², averaged over features, of a ridge regression from pixels (N, P) to features (N, D)."""
    x_mean, y_mean = train[0].mean(0), train[1].mean(0)
    x, y = train[0] - x_mean, train[1] - y_mean
    weights = torch.linalg.solve(x.T @ x + RIDGE_PENALTY * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    target = test[1] - y_mean
    residual = target - (test[0] - x_mean) @ weights
    return float((1 - residual.square().sum(0) / target.square().sum(0)).mean())


def main() -> None:
    """Print the table."""
    config = recipe(sys.argv[1] if len(sys.argv) > 1 else "energy-demo")
    dataset = open_dataset(config.data)
    assert dataset is not None
    config = replace(config, data=measure_statistics(config.data, dataset))
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(7))[:MAX_IMAGES]
    test, train = order.split([len(order) // 5, len(order) - len(order) // 5])
    pixels = [pixel_features(dataset, indices).x.double() for indices in (train, test)]
    print(f"{config.name}, untrained\n{'stem':<42}{'std':>7}{'positions':>11}{'R² from pixels':>16}{'RankMe':>8}")
    for stem in STEMS:
        backbone = replace(config.backbone, stem=stem.split()[0])
        encoder = fresh_objective(replace(config, backbone=backbone)).main_encoder.eval()
        if " " in stem:
            torch.manual_seed(config.seed)
            for module in encoder.backbone.stem.modules():
                if isinstance(module, nn.Conv2d):
                    module.reset_parameters()
        std, positions = scales(encoder, dataset, test[:200])
        features = [extract(encoder, dataset, indices).x.double() for indices in (train, test)]
        r2 = ridge_r2((pixels[0], features[0]), (pixels[1], features[1]))
        print(f"{stem:<42}{std:>7.3f}{positions:>11.3f}{r2:>16.3f}{rankme(features[1].float()):>8.1f}", flush=True)


if __name__ == "__main__":
    main()
