"""Correlation dimension: how many directions a cloud of features really has, from the distances in it alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from jepa.evaluation.geometry import numbers

__all__ = ["Dimension", "correlation_dimension"]

GROUPS = 20  # of points, for the error: each is left out once
BINS = 1 << 13  # the sign, exponent and first 5 bits of a squared distance: 32 bins from one power of two to the next
SHIFT = 18
FEWEST = 64  # pairs, at the smallest radius that is looked at
WIDEST = 0.03  # of all pairs, at the largest
LEVELS = 4  # the fewest doublings of the pairs that make a scaling region
TOLERANCE = 0.02  # of a local slope: what a line may miss beside the noise
MISSED = 2.0  # standard errors, by which no slope in a scaling region may be off the line
MINIMUM = 200  # points


@dataclass(frozen=True)
class Dimension:
    """The dimension of a cloud, and what it was read off. Radii are in units of the features."""

    value: float  # the local slope at r = 0
    error: float  # of it: a jackknife over points, and what a level less at either end would change
    tilt: float  # by how much the line that it starts falls up to the largest radius of the region
    slope: float  # of the straight line through the region, which edges and curvature flatten
    region: tuple[float, float]  # the scaling region's radii
    radii: Tensor  # (L,), where the pairs double
    correlation: Tensor  # (L,): C(r), the share of pairs that are closer
    slopes: Tensor  # (L - 1,): d log C / d log r from each radius to the next
    duplicates: int  # pairs at distance 0, which are left out


def correlation_dimension(x: Tensor) -> Dimension | None:
    """Read the correlation dimension off a cloud of points (N, D); None where no scaling region is found in it.

    Grassberger & Procaccia 1983: the slope of log C(r) against log r, where C(r) is the share of pairs closer than r.
    At finite r the edges and the curvature of the cloud flatten it; where its density is smooth by an amount that grows
    with r² (Nerenberg & Essex 1990 have the cases), so the local slopes are fitted by a line in r² that is level or
    falls, and read at r = 0. The scaling region is the longest run of radii, the pairs doubling from one to the next,
    whose slopes such a line meets. A cloud with hard edges (a cube) reads lower by more than the error, up to 7 %.
    Memory grows with N, time with N².
    """
    if len(numbers(x)) < MINIMUM:
        return None
    touching, counts, scale = count_pairs(x)
    duplicates = int(counts[0])
    counts[0], touching[:, 0] = 0, 0
    levels = doublings(counts)
    found = scaling_region(counts, levels)
    if found is None:
        return None
    region = levels[found[0] : found[1] + 1]
    value, tilt, _ = line(counts, region)
    left_out = torch.tensor([line(counts - group, region)[0] for group in touching])
    sampling = (GROUPS - 1) / GROUPS * float((left_out - left_out.mean()).square().sum())
    choice = max((line(counts, shorter)[0] - value) ** 2 for shorter in (region[1:], region[:-1]))
    error = math.sqrt(sampling + choice)
    radii, below = edges()[levels + 1] * scale, counts.cumsum(0)
    first, last = levels[found[0]], levels[found[1]]
    straight = (below[last] / below[first]).log() / (edges()[last + 1] / edges()[first + 1]).log()
    slopes, _ = local_slopes(counts, levels)
    return Dimension(
        value,
        error,
        tilt,
        float(straight),
        (float(radii[found[0]]), float(radii[found[1]])),
        radii,
        below[levels] / (len(x) * (len(x) - 1) / 2),
        slopes,
        duplicates,
    )


def edges() -> Tensor:
    """Radii (BINS,) at which the bins begin, float64."""
    squares: Tensor = (torch.arange(BINS, dtype=torch.int32) << SHIFT).view(torch.float32)
    return squares.to(torch.float64).sqrt()


def count_pairs(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Count pairs by distance: those that touch each group of points (GROUPS, BINS), all (BINS,), and the unit.

    Distances are taken in float64 by |a|² + |b|² - 2ab, from features centred and scaled to at most 1; a square below
    1e-13, where that is no longer exact, is a duplicate.
    """
    x = x.double() - x.double().mean(0)
    scale = float(x.norm(dim=1).max()) or 1.0
    x = x / scale
    square = x.square().sum(1)
    groups = torch.arange(len(x)).tensor_split(GROUPS)
    touching = torch.zeros(GROUPS, BINS, dtype=torch.float64)
    counts = torch.zeros(BINS, dtype=torch.float64)
    for i, rows in enumerate(groups):
        for j, others in enumerate(groups[i:], i):
            for part in rows.split(max(1, 5_000_000 // len(others))):
                distance = torch.addmm(square[others], x[part], x[others].T, alpha=-2).add_(square[part, None])
                distance[distance < 1e-13] = 0
                if i == j:
                    distance[part[:, None] <= others] = 0
                found = torch.bincount(distance.float().view(torch.int32).flatten() >> SHIFT, minlength=BINS)
                if i == j:  # the upper triangle was put among the duplicates
                    found[0] -= int((part[:, None] <= others).sum())
                counts += found
                touching[i] += found
                if i != j:
                    touching[j] += found
    return touching, counts, scale


def doublings(counts: Tensor) -> Tensor:
    """Bins (L,) at the end of which there are 64, 128, 256, … pairs, up to 3 % of all."""
    below: Tensor = counts.cumsum(0)
    wanted = [FEWEST << i for i in range(64) if FEWEST << i <= WIDEST * float(below[-1])]
    levels: Tensor = torch.searchsorted(below, torch.tensor(wanted, dtype=torch.float64)).unique()
    return levels


def local_slopes(counts: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes (L - 1,) from level to level, and their standard errors were pairs independent."""
    below = counts.cumsum(0)[levels]
    steps = (edges()[levels[1:] + 1] / edges()[levels[:-1] + 1]).log()
    new = below[1:] - below[:-1]
    # var log(1 + new / old) by the delta method, new and old being Poisson
    noise = new / below[1:] * (1 / new + 1 / below[:-1]).sqrt()
    return (below[1:] / below[:-1]).log() / steps, noise / steps


def line(counts: Tensor, levels: Tensor) -> tuple[float, float, float]:
    """Fit slopes = d - t (r / R)² by weighted least squares, t >= 0, R the largest radius.

    Returns d, t and the greatest deviation, in units of noise.
    """
    slopes, noise = local_slopes(counts, levels)
    noise = 1.5 * noise + TOLERANCE * slopes  # pairs share points: half as much again, measured on known clouds
    square = edges()[levels[:-1] + 1] * edges()[levels[1:] + 1] / edges()[levels[-1] + 1].square()
    weight = noise**-2 / (noise**-2).sum()
    x, y = square - (weight * square).sum(), slopes - (weight * slopes).sum()
    tilt = max(0.0, -float((weight * x * y).sum() / (weight * x * x).sum()))
    value = float((weight * (slopes + tilt * square)).sum())
    return value, tilt, float(((value - tilt * square - slopes) / noise).abs().max())


def scaling_region(counts: Tensor, levels: Tensor) -> tuple[int, int] | None:
    """Return the first and last of the longest run of levels whose slopes follow a line in r², the lowest of equals."""
    for length in range(len(levels) - 1, LEVELS - 1, -1):
        for first in range(len(levels) - length):
            value, _, missed = line(counts, levels[first : first + length + 1])
            if missed < MISSED and value > 0:
                return first, first + length
    return None
