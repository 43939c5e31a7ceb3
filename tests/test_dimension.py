import math

import pytest
import torch

from jepa.evaluation import correlation_dimension
from jepa.evaluation.dimension import count_pairs, edges


def cloud(kind: str, dimension: int, points: int = 5000) -> torch.Tensor:
    """Points of a cube or a sphere of a dimension, turned at random in 64 dimensions."""
    generator = torch.Generator().manual_seed(dimension)
    if kind == "cube":
        x = torch.rand(points, dimension, generator=generator)
    else:
        x = torch.nn.functional.normalize(torch.randn(points, dimension + 1, generator=generator), dim=1)
    basis, _ = torch.linalg.qr(torch.randn(64, 64, generator=generator))
    return x @ basis[: x.shape[1]]


@pytest.mark.parametrize("kind", ["cube", "sphere"])
@pytest.mark.parametrize(("dimension", "within"), [(1, 0.02), (2, 0.03), (3, 0.05), (5, 0.08), (8, 0.12)])
def test_the_dimension_of_known_clouds(kind, dimension, within):
    found = correlation_dimension(cloud(kind, dimension))
    assert math.isclose(found.value, dimension, rel_tol=within)
    assert 0 < found.error < 0.03 * dimension
    assert found.region[0] < found.region[1]


def test_the_error_is_what_other_samples_miss_by():
    found = [correlation_dimension(torch.randn(2000, 4, generator=torch.Generator().manual_seed(i))) for i in range(12)]
    values = torch.tensor([each.value for each in found])
    told = sum(each.error for each in found) / len(found)
    assert 0.5 < told / float(values.std()) < 2


def test_every_pair_is_counted_once_and_by_its_distance():
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    touching, counts, scale = count_pairs(x)
    distances = torch.pdist(x.double()) / scale
    assert int(counts.sum()) == len(distances) == int(touching.sum() / 2 + within_groups(x) / 2)
    at = edges()[3800:4090:20]
    below = torch.stack([(distances < radius).sum() for radius in at])
    assert torch.equal(torch.stack([counts[:bin].sum() for bin in range(3800, 4090, 20)]).long(), below)


def within_groups(x):
    return sum(len(rows) * (len(rows) - 1) // 2 for rows in torch.arange(len(x)).tensor_split(20))


def test_scale_and_place_change_nothing_but_the_radii():
    x = cloud("sphere", 2, 2000)
    near, far = correlation_dimension(x), correlation_dimension(1000 * x + 5)
    assert math.isclose(near.value, far.value, rel_tol=1e-3)
    assert math.isclose(1000 * near.region[1], far.region[1], rel_tol=1e-2)


def test_duplicates_are_left_out_and_counted():
    x = cloud("cube", 2, 2000)
    found = correlation_dimension(torch.cat([x, x[:500]]))
    assert found.duplicates == 500
    assert math.isclose(found.value, 2, rel_tol=0.05)


@pytest.mark.parametrize("x", [torch.rand(50, 3), torch.ones(1000, 3), torch.rand(3, 3).repeat(400, 1)])
def test_what_has_no_scaling_region_has_no_dimension(x):
    assert correlation_dimension(x) is None
