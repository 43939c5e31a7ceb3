"""Correlation dimension: the local number of dimensions of a set of points, estimated from their distances."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from jepa.evaluation.collapse import check_features

__all__ = ["Dimension", "correlation_dimension"]

NUM_GROUPS = 20  # of points; each is left out once to estimate the error
NUM_BINS = 1 << 13  # bins are the sign, exponent and first 5 bits of a squared distance: 32 bins per power of two
BIN_SHIFT = 18  # the bits of a float32 that are left out
MIN_PAIRS = 64  # at the smallest radius
MAX_PAIR_SHARE = 0.03  # of all pairs, at the largest radius
MIN_DOUBLINGS = 4  # of the number of pairs, in a scaling region
TOLERANCE = 0.02  # deviation from the line that is accepted beside the noise, relative to the local slope
MAX_DEVIATION = 2.0  # of a local slope from the line in a scaling region, in standard errors
MIN_POINTS = 200
BLOCK_SIZE = 5_000_000  # distances that are computed at a time, which bounds the memory
DUPLICATE = 1e-13  # squared distance, relative to the squared radius of the points, below which it is not exact


@dataclass(frozen=True)
class Dimension:
    """A correlation dimension and the curve that it was estimated from. Radii are in units of the features."""

    value: float  # the local slope extrapolated to r = 0
    error: float  # a jackknife over points, combined with the effect of a shorter scaling region
    tilt: float  # by how much the fitted line falls from r = 0 to the largest radius of the scaling region
    slope: float  # the slope of log C(r) over the whole scaling region, which boundaries and curvature lower
    region: tuple[float, float]  # smallest and largest radius of the scaling region
    radii: Tensor  # (L,), from each to the next the number of pairs doubles
    correlation: Tensor  # (L,): C(r), the share of pairs closer than r
    slopes: Tensor  # (L - 1,): the local slopes d log C / d log r between neighboring radii
    duplicates: int  # number of pairs at distance 0, which are left out


def correlation_dimension(x: Tensor) -> Dimension | None:
    """Estimate the correlation dimension of points (N, D). None is returned if there is no scaling region.

    It is the slope of log C(r) against log r, where C(r) is the share of pairs closer than r (Grassberger & Procaccia
    1983). At finite r, the boundaries and the curvature of the set lower the slope, for a smooth density by an amount
    that grows with r² (Nerenberg & Essex 1990). The local slopes are therefore fitted by a line in r² that does not
    rise, and the line is extrapolated to r = 0. From each radius to the next the number of pairs doubles; the scaling
    region is the longest range of radii whose slopes lie on such a line. For sets with sharp boundaries, such as a
    cube, the estimate is up to 7% too low, which is more than the error. Memory grows with N, time with N².
    """
    if len(check_features(x)) < MIN_POINTS:
        return None
    group_counts, counts, scale = count_pairs(x)
    duplicates = int(counts[0])
    counts[0], group_counts[:, 0] = 0, 0
    levels = doublings(counts)
    found = scaling_region(counts, levels)
    if found is None:
        return None
    first, last = found
    region = levels[first : last + 1]
    value, tilt, _ = fit_line(counts, region)
    left_out = torch.tensor([fit_line(counts - group, region)[0] for group in group_counts])
    sampling_variance = (NUM_GROUPS - 1) / NUM_GROUPS * float((left_out - left_out.mean()).square().sum())
    region_variance = max((fit_line(counts, shorter)[0] - value) ** 2 for shorter in (region[1:], region[:-1]))
    pairs_below, upper_edges = counts.cumsum(0)[levels], bin_edges()[levels + 1]
    slope = (pairs_below[last] / pairs_below[first]).log() / (upper_edges[last] / upper_edges[first]).log()
    radii = upper_edges * scale
    return Dimension(
        value=value,
        error=math.sqrt(sampling_variance + region_variance),
        tilt=tilt,
        slope=float(slope),
        region=(float(radii[first]), float(radii[last])),
        radii=radii,
        correlation=pairs_below / (len(x) * (len(x) - 1) / 2),
        slopes=local_slopes(counts, levels)[0],
        duplicates=duplicates,
    )


def bin_edges() -> Tensor:
    """Return the lower edges (NUM_BINS,) of the bins of distances, float64."""
    squares: Tensor = (torch.arange(NUM_BINS, dtype=torch.int32) << BIN_SHIFT).view(torch.float32)
    return squares.to(torch.float64).sqrt()


def count_pairs(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Count the pairs of points (N, D) by distance.

    Returns the counts of pairs that involve each group of points (NUM_GROUPS, NUM_BINS), the counts of all pairs
    (NUM_BINS,), and the unit of the bins. Points are centered and scaled to a radius of 1, and squared distances are
    |a|² + |b|² - 2ab in float64. Below 1e-13, where this is not exact, pairs count as duplicates.
    """
    x = x.double() - x.double().mean(0)
    scale = float(x.norm(dim=1).max()) or 1.0
    x = x / scale
    square = x.square().sum(1)
    groups = torch.arange(len(x)).tensor_split(NUM_GROUPS)
    group_counts = torch.zeros(NUM_GROUPS, NUM_BINS, dtype=torch.float64)
    counts = torch.zeros(NUM_BINS, dtype=torch.float64)
    for i, group in enumerate(groups):
        for j, others in enumerate(groups[i:], i):
            for block in group.split(max(1, BLOCK_SIZE // len(others))):
                distance = torch.addmm(square[others], x[block], x[others].T, alpha=-2).add_(square[block, None])
                distance[distance < DUPLICATE] = 0
                if i == j:
                    distance[block[:, None] <= others] = 0
                block_counts = torch.bincount(
                    distance.float().view(torch.int32).flatten() >> BIN_SHIFT, minlength=NUM_BINS
                )
                if i == j:  # do not count the upper triangle, which was set to 0, as duplicates
                    block_counts[0] -= int((block[:, None] <= others).sum())
                counts += block_counts
                group_counts[i] += block_counts
                if i != j:
                    group_counts[j] += block_counts
    return group_counts, counts, scale


def doublings(counts: Tensor) -> Tensor:
    """Return the bins (L,) at the end of which there are 64, 128, 256, … pairs, up to 3% of all pairs."""
    pairs_below: Tensor = counts.cumsum(0)
    targets = [MIN_PAIRS << i for i in range(64) if MIN_PAIRS << i <= MAX_PAIR_SHARE * float(pairs_below[-1])]
    levels: Tensor = torch.searchsorted(pairs_below, torch.tensor(targets, dtype=torch.float64)).unique()
    return levels


def local_slopes(counts: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the slopes (L - 1,) between neighboring levels, and their standard errors for independent pairs."""
    pairs_below = counts.cumsum(0)[levels]
    log_ratio = (bin_edges()[levels[1:] + 1] / bin_edges()[levels[:-1] + 1]).log()
    new = pairs_below[1:] - pairs_below[:-1]
    # the variance of log(1 + new / old) by the delta method, for Poisson-distributed new and old
    noise = new / pairs_below[1:] * (1 / new + 1 / pairs_below[:-1]).sqrt()
    return (pairs_below[1:] / pairs_below[:-1]).log() / log_ratio, noise / log_ratio


def fit_line(counts: Tensor, levels: Tensor) -> tuple[float, float, float]:
    """Fit slopes = d - t (r / R)² by weighted least squares with t >= 0, where R is the largest radius.

    Returns d, t and the largest deviation of a slope in units of its standard error.
    """
    slopes, noise = local_slopes(counts, levels)
    noise = 1.5 * noise + TOLERANCE * slopes  # pairs share points: 1.5 was measured on sets of known dimension
    square = bin_edges()[levels[:-1] + 1] * bin_edges()[levels[1:] + 1] / bin_edges()[levels[-1] + 1].square()
    weight = noise**-2 / (noise**-2).sum()
    x, y = square - (weight * square).sum(), slopes - (weight * slopes).sum()
    tilt = max(0.0, -float((weight * x * y).sum() / (weight * x * x).sum()))
    value = float((weight * (slopes + tilt * square)).sum())
    return value, tilt, float(((value - tilt * square - slopes) / noise).abs().max())


def scaling_region(counts: Tensor, levels: Tensor) -> tuple[int, int] | None:
    """Return the first and last level of the longest range whose slopes lie on a line in r², the lowest of equals."""
    for length in range(len(levels) - 1, MIN_DOUBLINGS - 1, -1):
        for first in range(len(levels) - length):
            value, _, deviation = fit_line(counts, levels[first : first + length + 1])
            if deviation < MAX_DEVIATION and value > 0:
                return first, first + length
    return None
