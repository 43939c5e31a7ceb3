import math

import pytest
import torch

from jepa.evaluation.correlation_dimension import NUM_GROUPS, bin_edges, correlation_dimension, count_pairs


def points_of(kind: str, dimension: int, count: int = 5000) -> torch.Tensor:
    """Draw points from a uniform cube or sphere, randomly rotated in 64 dimensions."""
    generator = torch.Generator().manual_seed(dimension)
    if kind == "cube":
        x = torch.rand(count, dimension, generator=generator)
    else:
        x = torch.nn.functional.normalize(torch.randn(count, dimension + 1, generator=generator), dim=1)
    basis, _ = torch.linalg.qr(torch.randn(64, 64, generator=generator))
    return x @ basis[: x.shape[1]]


@pytest.mark.parametrize("kind", ["cube", "sphere"])
@pytest.mark.parametrize(("dimension", "tolerance"), [(1, 0.02), (2, 0.03), (3, 0.05), (5, 0.08), (8, 0.12)])
def test_the_dimension_of_cubes_and_spheres(kind, dimension, tolerance):
    estimate = correlation_dimension(points_of(kind, dimension))
    assert math.isclose(estimate.value, dimension, rel_tol=tolerance)
    assert 0 < estimate.error < 0.03 * dimension
    assert estimate.region[0] < estimate.region[1]


def test_the_estimated_error_is_the_standard_deviation_over_samples():
    samples = [torch.randn(2000, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(12)]
    estimates = [correlation_dimension(x) for x in samples]
    values = torch.tensor([estimate.value for estimate in estimates])
    mean_error = sum(estimate.error for estimate in estimates) / len(estimates)
    assert 0.5 < mean_error / float(values.std()) < 2


def test_every_pair_is_counted_once_at_its_distance():
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    group_counts, counts, scale = count_pairs(x)
    distances = torch.pdist(x.double()) / scale
    assert int(counts.sum()) == len(distances) == int(group_counts.sum() / 2 + pairs_within_groups(x) / 2)
    bins = range(3800, 4090, 20)
    pairs_below = torch.stack([(distances < bin_edges()[bin]).sum() for bin in bins])
    assert torch.equal(torch.stack([counts[:bin].sum() for bin in bins]).long(), pairs_below)


def pairs_within_groups(x):
    return sum(len(group) * (len(group) - 1) // 2 for group in x.tensor_split(NUM_GROUPS))


def test_scale_and_offset_change_only_the_radii():
    x = points_of("sphere", 2, 2000)
    original, scaled = correlation_dimension(x), correlation_dimension(1000 * x + 5)
    assert math.isclose(original.value, scaled.value, rel_tol=1e-3)
    assert math.isclose(1000 * original.region[1], scaled.region[1], rel_tol=1e-2)


def test_duplicates_are_ignored_and_counted():
    x = points_of("cube", 2, 2000)
    estimate = correlation_dimension(torch.cat([x, x[:500]]))
    assert estimate.duplicates == 500
    assert math.isclose(estimate.value, 2, rel_tol=0.05)


@pytest.mark.parametrize("x", [torch.rand(50, 3), torch.ones(1000, 3), torch.rand(3, 3).repeat(400, 1)])
def test_points_without_a_scaling_region_have_no_dimension(x):
    assert correlation_dimension(x) is None


@pytest.mark.parametrize(
    ("dimension", "noise", "features"),
    [(2, 0.003, 64), (2, 0.01, 64), (4, 0.01, 64), (3, 0.02, 256), (1, 0.002, 64), (1, 0.005, 64)],
)
def test_noise_is_not_extrapolated(dimension, noise, features):
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(4000, features)
    x[:, : dimension + 1] = torch.nn.functional.normalize(torch.randn(4000, dimension + 1, generator=generator), dim=1)
    estimate = correlation_dimension(x + noise * torch.randn(x.shape, generator=generator))
    # slopes at small radii are those of the noise, so either larger radii are used, or there is no scaling region
    assert estimate is None or dimension <= estimate.value < 1.3 * dimension
