"""Correlation dimension: the local dimension of a set of points, estimated from pairwise distances."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from jepa.evaluation.collapse import check_features

__all__ = ["Dimension", "correlation_dimension"]

NUM_GROUPS = 20  # number of groups of points for the jackknife
NUM_BINS = 1 << 13  # number of bins, given by the exponent and top 5 mantissa bits of a squared distance
BIN_SHIFT = 18  # number of low mantissa bits dropped: 32 bins per power of two remain
MIN_PAIRS = 64  # number of pairs within the smallest radius
MAX_PAIR_FRACTION = 0.03  # maximum fraction of pairs within the largest radius
MIN_DOUBLINGS = 4  # minimum length of a scaling region, in doublings of the number of pairs
TOLERANCE = 0.02  # tolerated deviation from the line in addition to noise, relative to the local slope
MAX_DEVIATION = 2.0  # maximum deviation of a local slope from the line, in standard errors
MAX_TILT = (0.12, 0.02, 0.5)  # maximum relative tilt: a + b · dimension, at most c; see `max_relative_tilt`
MIN_RADIUS_RATIO = 1.12  # minimum length of a scaling region, as a ratio of radii
MAX_RELATIVE_ERROR = 0.25  # an estimate with a larger error is that of noise
MIN_POINTS = 200  # minimum number of points for an estimate
BLOCK_SIZE = 5_000_000  # number of distances computed at a time, to bound memory
DUPLICATE = 1e-13  # squared distance, relative to the squared radius, below which pairs are duplicates


@dataclass(frozen=True)
class Dimension:
    """A correlation dimension, with the curve it was estimated from. Radii are in units of the features."""

    value: float  # local slope extrapolated to r = 0
    error: float  # jackknife error over points, combined with the effect of a shorter scaling region
    tilt: float  # decrease of the fitted line from r = 0 to the largest radius of the scaling region
    slope: float  # slope of log C(r) over the scaling region, biased low by boundaries and curvature
    region: tuple[float, float]  # smallest and largest radius of the scaling region
    radii: Tensor  # (L,): radii between which the number of pairs doubles
    correlation: Tensor  # (L,): C(r), the fraction of pairs closer than r
    slopes: Tensor  # (L - 1,): local slopes d log C / d log r between neighboring radii
    duplicates: int  # number of pairs at distance 0, which are ignored


def correlation_dimension(x: Tensor) -> Dimension | None:
    """Estimate the correlation dimension of points (N, D). Returns None if there is no scaling region.

    The correlation dimension is the slope of log C(r) against log r, where C(r) is the fraction of pairs closer than r
    (Grassberger & Procaccia 1983). At finite r, the boundaries and the curvature of the set lower the slope; for a
    smooth density, the bias grows with r² (Nerenberg & Essex 1990). A non-increasing line in r² is fitted to the local
    slopes and extrapolated to r = 0. Successive radii are spaced so that the number of pairs doubles; the scaling
    region is the longest range of radii whose slopes lie on such a line, with a tilt that boundaries and curvature can
    cause. Below the size of measurement noise, slopes rise steeply to the number of features; such radii are not part
    of the region. If they leave none, or only a short one with a large error, the result is None; weaker noise raises
    the estimate by up to a fifth. For sets with sharp boundaries, such as a cube, the estimate is up to 10% too low,
    which exceeds the error. Memory grows with N, time with N².
    """
    if len(check_features(x)) < MIN_POINTS:
        return None
    group_counts, counts, scale = count_pairs(x)
    duplicates = int(counts[0])
    counts[0], group_counts[:, 0] = 0, 0
    levels = doublings(counts)
    bounds = scaling_region(counts, levels)
    if bounds is None:
        return None
    first, last = bounds
    region = levels[first : last + 1]
    value, tilt, _ = fit_line(counts, region)
    jackknife = torch.tensor([fit_line(counts - group, region)[0] for group in group_counts])
    sampling_variance = (NUM_GROUPS - 1) / NUM_GROUPS * float((jackknife - jackknife.mean()).square().sum())
    region_variance = max((fit_line(counts, shorter)[0] - value) ** 2 for shorter in (region[1:], region[:-1]))
    error = math.sqrt(sampling_variance + region_variance)
    pairs_below, upper_edges = counts.cumsum(0)[levels], bin_edges()[levels + 1]
    if error > MAX_RELATIVE_ERROR * value or upper_edges[last] < MIN_RADIUS_RATIO * upper_edges[first]:
        return None
    slope = (pairs_below[last] / pairs_below[first]).log() / (upper_edges[last] / upper_edges[first]).log()
    radii = upper_edges * scale
    return Dimension(
        value=value,
        error=error,
        tilt=tilt,
        slope=float(slope),
        region=(float(radii[first]), float(radii[last])),
        radii=radii,
        correlation=pairs_below / (len(x) * (len(x) - 1) / 2),
        slopes=local_slopes(counts, levels)[0],
        duplicates=duplicates,
    )


def bin_edges() -> Tensor:
    """Return the lower edges (NUM_BINS,) of the distance bins, in float64."""
    squares: Tensor = (torch.arange(NUM_BINS, dtype=torch.int32) << BIN_SHIFT).view(torch.float32)
    return squares.to(torch.float64).sqrt()


def count_pairs(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Count the pairs of points (N, D) by distance.

    Returns the counts of pairs that involve each group of points (NUM_GROUPS, NUM_BINS), the counts of all pairs
    (NUM_BINS,), and the unit of the bins. Points are centered and scaled to a radius of 1, and squared distances are
    computed in float64 as |a|² + |b|² - 2ab. This is inexact below 1e-13, so such pairs count as duplicates.
    """
    x = x.double() - x.double().mean(0)
    scale = float(x.norm(dim=1).max()) or 1.0
    x = x / scale
    square = x.square().sum(1)
    groups = torch.arange(len(x)).tensor_split(NUM_GROUPS)
    group_counts = torch.zeros(NUM_GROUPS, NUM_BINS, dtype=torch.float64)
    counts = torch.zeros(NUM_BINS, dtype=torch.float64)
    for i, group in enumerate(groups):
        for j, other_group in enumerate(groups[i:], i):
            for block in group.split(max(1, BLOCK_SIZE // len(other_group))):
                distance = torch.addmm(square[other_group], x[block], x[other_group].T, alpha=-2).add_(
                    square[block, None]
                )
                distance[distance < DUPLICATE] = 0
                if i == j:
                    distance[block[:, None] <= other_group] = 0
                block_counts = torch.bincount(
                    distance.float().view(torch.int32).flatten() >> BIN_SHIFT, minlength=NUM_BINS
                )
                if i == j:  # the upper triangle was set to 0, but holds no duplicates
                    block_counts[0] -= int((block[:, None] <= other_group).sum())
                counts += block_counts
                group_counts[i] += block_counts
                if i != j:
                    group_counts[j] += block_counts
    return group_counts, counts, scale


def doublings(counts: Tensor) -> Tensor:
    """Return the bins (L,) at which the cumulative number of pairs reaches 64, 128, 256, …, up to 3% of all pairs."""
    pairs_below: Tensor = counts.cumsum(0)
    targets = [MIN_PAIRS << i for i in range(64) if MIN_PAIRS << i <= MAX_PAIR_FRACTION * float(pairs_below[-1])]
    levels: Tensor = torch.searchsorted(pairs_below, torch.tensor(targets, dtype=torch.float64)).unique()
    return levels


def local_slopes(counts: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the slopes (L - 1,) between neighboring levels, and their standard errors assuming independent pairs."""
    pairs_below = counts.cumsum(0)[levels]
    log_ratio = (bin_edges()[levels[1:] + 1] / bin_edges()[levels[:-1] + 1]).log()
    new = pairs_below[1:] - pairs_below[:-1]
    # standard deviation of log(1 + new / old) by the delta method, for Poisson-distributed new and old
    noise = new / pairs_below[1:] * (1 / new + 1 / pairs_below[:-1]).sqrt()
    return (pairs_below[1:] / pairs_below[:-1]).log() / log_ratio, noise / log_ratio


def fit_line(counts: Tensor, levels: Tensor) -> tuple[float, float, float]:
    """Fit slopes = d - t (r / R)² with t >= 0 by weighted least squares, where R is the largest radius.

    Returns d, t and the largest deviation of a slope, in standard errors.
    """
    slopes, noise = local_slopes(counts, levels)
    noise = 1.5 * noise + TOLERANCE * slopes  # pairs share points; 1.5 was measured on sets of known dimension
    square = bin_edges()[levels[:-1] + 1] * bin_edges()[levels[1:] + 1] / bin_edges()[levels[-1] + 1].square()
    weight = noise**-2 / (noise**-2).sum()
    x, y = square - (weight * square).sum(), slopes - (weight * slopes).sum()
    tilt = max(0.0, -float((weight * x * y).sum() / (weight * x * x).sum()))
    value = float((weight * (slopes + tilt * square)).sum())
    return value, tilt, float(((value - tilt * square - slopes) / noise).abs().max())


def scaling_region(counts: Tensor, levels: Tensor) -> tuple[int, int] | None:
    """Return the first and last level of the scaling region, or None if there is none.

    It is the longest range whose slopes lie on a line in r², preferring smaller radii.
    """
    for length in range(len(levels) - 1, MIN_DOUBLINGS - 1, -1):
        for first in range(len(levels) - length):
            value, tilt, deviation = fit_line(counts, levels[first : first + length + 1])
            if deviation < MAX_DEVIATION and 0 <= tilt < max_relative_tilt(value) * value:
                return first, first + length
    return None


def max_relative_tilt(dimension: float) -> float:
    """Return the largest tilt, relative to the dimension, that boundaries and curvature cause.

    For spheres, cubes and Gaussians of dimension 1 to 20, it is up to 0.04 at dimension 2, 0.2 at 8 and 0.43 at 20. A
    steeper line has been fitted to noise: on a noisy sphere, its intercept would be several times the dimension.
    """
    offset, slope, limit = MAX_TILT
    return min(limit, offset + slope * dimension)
