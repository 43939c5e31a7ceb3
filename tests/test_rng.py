"""Random numbers: reproducible, uniform, and independent of the batch."""

import itertools

import pytest
import torch

from jepa.rng import Rng


def test_draws_depend_on_the_position_but_not_on_the_batch():
    whole = Rng(1, 2, torch.arange(64)).uniform("masks", 3, 5)
    splits = [Rng(1, 2, positions).uniform("masks", 3, 5) for positions in torch.arange(64).split(16)]
    assert whole.shape == (64, 3, 5)
    assert torch.equal(whole, torch.cat(splits))


def test_seed_step_and_purpose_each_change_every_number():
    positions = torch.arange(100)
    reference = Rng(0, 0, positions).uniform("a", 10)
    for other in (
        Rng(1, 0, positions).uniform("a", 10),
        Rng(0, 1, positions).uniform("a", 10),
        Rng(0, 0, positions).uniform("b", 10),
    ):
        assert (reference == other).float().mean() < 1e-3


def test_draws_are_uniform_and_uncorrelated():
    u = Rng(0, 7, torch.arange(20_000)).uniform("x", 10)
    assert u.min() >= 0
    assert u.max() < 1
    counts = torch.histc(u, 50, 0, 1)
    chi_squared = float(((counts - u.numel() / 50) ** 2 / (u.numel() / 50)).sum())
    assert chi_squared < 86  # 99.9% quantile of the chi-squared distribution with 49 degrees of freedom
    correlation = torch.corrcoef(u.T) - torch.eye(10)
    assert correlation.abs().max() < 0.03
    neighbors = torch.corrcoef(torch.stack([u[:-1].flatten(), u[1:].flatten()]))[0, 1]
    assert abs(float(neighbors)) < 0.01


def test_a_purpose_can_only_be_drawn_once():
    """A second draw would return the same numbers, so that two views of an image would be identical."""
    rng = Rng(0, 0, torch.arange(4))
    first = rng.uniform("crop", 5)
    with pytest.raises(ValueError, match="'crop' were already drawn in this step; use a distinct purpose per draw"):
        rng.uniform("crop", 5)
    assert torch.equal(first, Rng(0, 0, torch.arange(4)).uniform("crop", 5))
    assert not torch.equal(first, rng.uniform("crop, view 1", 5))


def test_shared_numbers_do_not_depend_on_the_images():
    one = Rng(3, 5, torch.arange(8)).shared("directions", 4, 6)
    other = Rng(3, 5, torch.arange(100, 103)).shared("directions", 4, 6)
    assert one.shape == (4, 6)
    assert torch.equal(one, other)
    for seed, step, purpose in ((4, 5, "directions"), (3, 6, "directions"), (3, 5, "noise")):
        assert (Rng(seed, step, torch.arange(8)).shared(purpose, 4, 6) == one).float().mean() < 0.1


def test_shared_numbers_are_uniform():
    u = Rng(0, 7, torch.arange(2)).shared("x", 200_000)
    assert u.min() >= 0
    assert u.max() < 1
    counts = torch.histc(u, 50, 0, 1)
    assert float(((counts - 4000) ** 2 / 4000).sum()) < 86  # as above


def test_a_purpose_is_drawn_once_by_any_method():
    for first, second in itertools.permutations(("uniform", "shared", "shared_normal"), 2):
        rng = Rng(0, 0, torch.arange(4))
        getattr(rng, first)("x", 2)
        with pytest.raises(ValueError, match="'x' were already drawn in this step"):
            getattr(rng, second)("x", 2)


def test_shared_normal_numbers_are_standard_normal():
    z = Rng(0, 7, torch.arange(2)).shared_normal("x", 100_000, 2)
    assert torch.isfinite(z).all()
    assert z.mean(0).abs().max() < 0.01
    assert torch.allclose(torch.cov(z.T), torch.eye(2), atol=0.02)
    levels = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
    fractions = (z[..., None] < levels).float().mean((0, 1))
    assert torch.allclose(fractions, torch.special.ndtr(levels), atol=0.005)
