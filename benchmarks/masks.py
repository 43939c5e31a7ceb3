"""Judge the mask sampler over 200,000 samples a grid, and time it beside a training step.

    python benchmarks/masks.py

Prints, for each grid: kept context, padding, the largest difference in visibility between a position and its mirror
image, and disjointness; then the time to draw the masks of a batch as a share of the training step of the recipe
`ijepa-cifar10` at batch 256.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from jepa.config import MaskConfig
from jepa.data import Batch
from jepa.masking import MaskSampler
from jepa.recipes import recipe
from jepa.rng import Rng
from jepa.runs import fresh_objective

GRIDS = [(16, 16), (14, 14), (8, 8), (7, 7), (4, 4), (14, 10)]


def asymmetry(seen: Tensor, grid: tuple[int, int]) -> float:
    """Largest difference of visibility (N,) in points between a position and its mirror image."""
    image = 100 * seen.view(grid)
    return max(float((image - image.flip(axis)).abs().max()) for axis in (0, 1))


def judge(grid: tuple[int, int], samples: int, batch: int = 2000) -> str:
    """Sample one grid and return its row."""
    sampler, num_tokens = MaskSampler(MaskConfig(), grid), grid[0] * grid[1]
    context, target = torch.zeros(num_tokens), torch.zeros(num_tokens)
    padded_context = padded_target = kept = overlaps = 0.0
    for start in range(0, samples, batch):
        masks = sampler.sample(Rng(0, 0, torch.arange(start, start + batch)))
        seen, asked = torch.zeros(2, batch, num_tokens).unbind()
        seen.scatter_add_(1, masks.context, masks.context_valid.float())
        asked.scatter_add_(1, masks.targets.flatten(1), masks.targets_valid.flatten(1).float())
        context += seen.sum(0) / samples
        target += (asked > 0).sum(0) / samples
        overlaps += float(((seen > 0) & (asked > 0)).sum())
        kept += float(masks.context_valid.sum()) / samples
        padded_context += 100 * float((~masks.context_valid).float().mean()) * batch / samples
        padded_target += 100 * float((~masks.targets_valid).float().mean()) * batch / samples
    mirror = max(asymmetry(context, grid), asymmetry(target, grid))
    size = f"{grid[0]}x{grid[1]}"
    return (
        f"{size:>6}{sampler.num_context:>9}{kept:>8.1f}{padded_context:>11.1f}{sampler.target_size:>9}"
        f"{padded_target:>11.1f}{mirror:>12.2f}{100 * float(context.min()):>9.1f}{100 * float(context.max()):>7.1f}"
        f"{overlaps:>10.0f}"
    )


def median_ms(call: Callable[[], object], repeats: int) -> float:
    """Median wall time of a call in milliseconds, after two to warm up."""
    times = []
    for index in range(repeats + 2):
        began = time.perf_counter()
        call()
        if index >= 2:
            times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def timing(batch_size: int = 256) -> str:
    """Time sampling beside a training step without it."""
    config = recipe("ijepa-cifar10")
    data = dataclasses.replace(config.data, mean=(0.5,) * 3, std=(0.25,) * 3)
    objective = fresh_objective(dataclasses.replace(config, data=data))
    rows = torch.arange(batch_size)
    batch = Batch(torch.randint(0, 256, (batch_size, 3, 32, 32), dtype=torch.uint8), None, rows)
    inputs = objective.sample(batch, Rng(0, 0, rows))
    step = median_ms(lambda: objective(inputs)["loss"].backward(), 10)
    sampler: MaskSampler = objective.masks  # type: ignore[assignment]
    draw = median_ms(lambda: sampler.sample(Rng(0, 0, rows)), 50)
    return f"masks for a batch of {batch_size}: {draw:.2f} ms, {100 * draw / step:.2f} % of a step of {step:.0f} ms"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=200_000)
    samples = parser.parse_args().samples
    print(f"{samples:,} samples of the default multi-block masks; shares in percent")
    print("  grid  context    kept  padded, %   target  padded, %   mirror, pt   seen, % from-to   overlaps")
    for grid in GRIDS:
        print(judge(grid, samples), flush=True)
    print(timing())


if __name__ == "__main__":
    main()
