"""SIGReg: the statistic against its integral and its expectation, what it detects, and its gradient."""

import math

import pytest
import torch
import torch.nn.functional as F

from jepa.objectives import regularizers
from jepa.objectives.regularizers import sigreg

EXPECTED = math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3)  # of standard normal embeddings


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit_vectors(count: int, dim: int, seed: int = 1) -> torch.Tensor:
    return F.normalize(normal(count, dim, seed=seed), dim=-1)


def collapsed_sigreg(count: int) -> float:
    """Return SIGReg of embeddings that are all 0."""
    return count * (math.sqrt(2 * math.pi) - 2 * math.sqrt(math.pi) + math.sqrt(2 * math.pi / 3))


SAMPLES = {
    "normal": normal(200),
    "shifted": normal(200) + 0.7,
    "narrow": 0.1 * normal(200),
    "wide": 2 * normal(200),
    "bimodal": 0.3 * normal(200) + torch.arange(200) % 2 * 2 - 1,
    "skewed": normal(200).square() - 1,
    "constant": torch.full((200,), 0.5),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_sigreg_is_the_integral_of_epps_and_pulley(name):
    x = SAMPLES[name].double()

    def integral(limit: float, num_knots: int) -> torch.Tensor:
        t = torch.linspace(-limit, limit, num_knots, dtype=torch.float64)
        empirical = torch.exp(1j * t[:, None] * x).mean(1)
        errors = (empirical - torch.exp(-t.square() / 2)).abs().square()
        return len(x) * torch.trapezoid(errors * torch.exp(-t.square() / 2), t)

    value = sigreg(x[:, None], torch.ones(1, 1))
    assert torch.allclose(value, integral(5, 17), rtol=1e-9)  # algorithm 1
    assert torch.allclose(value, integral(12, 4801), rtol=0.04)


def test_sigreg_of_normal_embeddings_is_near_its_expectation():
    assert float(sigreg(normal(60, 500, 12), unit_vectors(64, 12))) == pytest.approx(EXPECTED, rel=0.05)


def test_sigreg_detects_every_deviation_from_an_isotropic_normal_distribution():
    x, directions = normal(1000, 8), unit_vectors(256, 8)
    scales = torch.tensor([3.0, 0.2, 1, 1, 1, 1, 1, 1])
    side = torch.zeros(1000, 8)
    side[:, 0] = 3.0 * (torch.arange(1000) % 2) - 1.5
    correlated = x.clone()
    correlated[:, 1] = x[:, 0]
    for other in (x * scales, x + side, correlated, x + 0.5, 0.5 * x, x.sign(), 0.01 * x):
        assert float(sigreg(other, directions)) > 4 * EXPECTED
    assert float(sigreg(torch.zeros(1000, 8), directions)) == pytest.approx(collapsed_sigreg(1000), rel=1e-3)


def test_sigreg_does_not_depend_on_the_axes():
    x = normal(300, 6) * torch.tensor([2.0, 1, 1, 1, 0.5, 0.1])
    rotation = torch.linalg.qr(normal(6, 6, seed=5))[0]
    directions = unit_vectors(4000, 6)
    assert torch.allclose(sigreg(x @ rotation, directions @ rotation), sigreg(x, directions), rtol=1e-4)
    assert torch.allclose(sigreg(x @ rotation, directions), sigreg(x, directions), rtol=0.05)  # in expectation


def test_sigreg_is_averaged_over_views():
    x, directions = normal(3, 50, 4) * torch.tensor([0.5, 1.0, 2.0])[:, None, None], unit_vectors(32, 4)
    assert torch.allclose(sigreg(x, directions), torch.stack([sigreg(view, directions) for view in x]).mean())


def test_sigreg_pulls_a_collapsed_sample_apart():
    x = (1 + 0.01 * normal(256, 4)).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.1)
    for step in range(100):
        loss = sigreg(x, unit_vectors(16, 4, seed=step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert x.mean(0).abs().max() < 0.1
        assert torch.allclose(torch.cov(x.T), torch.eye(4), atol=0.2)


def test_sigreg_of_two_processes_is_that_of_one(monkeypatch):
    x, directions = normal(3, 16, 5), unit_vectors(32, 5)
    expected = sigreg(x, directions)
    sums: list[torch.Tensor] = []
    monkeypatch.setattr(regularizers, "world_size", lambda: 2)
    monkeypatch.setattr(regularizers, "all_sum", lambda part: sums.append(part) or part)
    for half in x.split(8, 1):
        sigreg(half, directions)
    monkeypatch.setattr(regularizers, "all_sum", lambda _: sums[0] + sums[1])
    assert torch.allclose(sigreg(x[:, :8], directions), expected, rtol=1e-5)


def test_sigreg_is_computed_in_fp32_under_autocast():
    x, directions = normal(64, 8), unit_vectors(32, 8)
    with torch.autocast("cpu", torch.bfloat16):
        value = sigreg(x, directions)
    assert value.dtype == torch.float32
    assert torch.equal(value, sigreg(x, directions))
