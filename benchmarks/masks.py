"""Measure the padding, symmetry and speed of mask sampling on 200,000 samples per grid.

    python benchmarks/masks.py

For each grid, prints the size and padding of context and targets, the largest difference in frequency between a
position and its mirror image, and the number of tokens in both context and targets. Then prints the time to sample the
masks of a batch of 256 images, as a fraction of a training step of the recipe `ijepa-cifar10`.
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
from jepa.config.recipes import recipe
from jepa.data import Batch
from jepa.rng import Rng
from jepa.runs import fresh_objective
from jepa.transforms.masks import MaskSampler

BATCH_SIZE = 2000  # number of masks sampled at a time
WARMUP_CALLS = 2
GRIDS = [(16, 16), (14, 14), (8, 8), (7, 7), (4, 4), (14, 10)]


def asymmetry(frequency: Tensor, grid: tuple[int, int]) -> float:
    """Return the largest difference in frequency (N,) between a position and its mirror image, in percentage points."""
    image = 100 * frequency.view(grid)
    return max(float((image - image.flip(axis)).abs().max()) for axis in (0, 1))


def measure(grid: tuple[int, int], num_samples: int) -> str:
    """Sample masks on one grid, and return its row of the table."""
    sampler, num_tokens = MaskSampler(MaskConfig(), grid), grid[0] * grid[1]
    context_frequency, target_frequency = torch.zeros(num_tokens), torch.zeros(num_tokens)
    context_padding = target_padding = context_size = overlaps = 0.0
    for start in range(0, num_samples, BATCH_SIZE):
        masks = sampler.sample(Rng(0, 0, torch.arange(start, start + BATCH_SIZE)))
        context, targets = torch.zeros(2, BATCH_SIZE, num_tokens).unbind()
        context.scatter_add_(1, masks.context, masks.context_valid.float())
        targets.scatter_add_(1, masks.targets.flatten(1), masks.targets_valid.flatten(1).float())
        context_frequency += context.sum(0) / num_samples
        target_frequency += (targets > 0).sum(0) / num_samples
        overlaps += float(((context > 0) & (targets > 0)).sum())
        context_size += float(masks.context_valid.sum()) / num_samples
        context_padding += 100 * float((~masks.context_valid).float().mean()) * BATCH_SIZE / num_samples
        target_padding += 100 * float((~masks.targets_valid).float().mean()) * BATCH_SIZE / num_samples
    difference = max(asymmetry(context_frequency, grid), asymmetry(target_frequency, grid))
    low, high = 100 * float(context_frequency.min()), 100 * float(context_frequency.max())
    name = f"{grid[0]}x{grid[1]}"
    return (
        f"{name:>6}{sampler.num_context:>9}{context_size:>8.1f}{context_padding:>11.1f}{sampler.target_size:>9}"
        f"{target_padding:>11.1f}{difference:>12.2f}{low:>12.1f}{high:>7.1f}{overlaps:>10.0f}"
    )


def median_ms(call: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call in milliseconds."""
    times = []
    for repeat in range(repeats + WARMUP_CALLS):
        start = time.perf_counter()
        call()
        if repeat >= WARMUP_CALLS:
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def timing(batch_size: int = 256) -> str:
    """Return the time to sample masks and that of a forward and backward pass, as text."""
    config = recipe("ijepa-cifar10")
    data = dataclasses.replace(config.data, mean=(0.5,) * 3, std=(0.25,) * 3)
    objective = fresh_objective(dataclasses.replace(config, data=data))
    positions = torch.arange(batch_size)
    batch = Batch(torch.randint(0, 256, (batch_size, 3, 32, 32), dtype=torch.uint8), None, positions)
    inputs = objective.sample(batch, Rng(0, 0, positions))
    step = median_ms(lambda: objective(inputs)["loss"].backward(), 10)
    sampler: MaskSampler = objective.masks  # type: ignore[assignment]
    sampling = median_ms(lambda: sampler.sample(Rng(0, 0, positions)), 50)
    percentage = 100 * sampling / step
    return f"masks of a batch of {batch_size}: {sampling:.2f} ms, {percentage:.2f}% of a step of {step:.0f} ms"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=200_000, help="number of samples per grid")
    num_samples = parser.parse_args().samples
    print(f"{num_samples:,} samples of the default multi-block masks")
    print(
        f"{'grid':>6}{'context':>9}{'mean':>8}{'padding, %':>11}{'target':>9}{'padding, %':>11}{'mirror, pt':>12}"
        f"{'in context, %':>19}{'overlaps':>10}"
    )
    for grid in GRIDS:
        print(measure(grid, num_samples), flush=True)
    print(timing())


if __name__ == "__main__":
    main()
