"""Random numbers: reproducible, uniform, and independent of the batch."""

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
