import math

import pytest
import torch
import torch.nn.functional as F

from jepa.objectives import contrastive
from jepa.objectives.contrastive import info_nce


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_info_nce_is_the_mean_of_both_cross_entropies():
    predicted, targets = normal(6, 4), normal(6, 4, seed=1)
    losses = []
    for i in range(6):
        rows = [float(F.cosine_similarity(predicted[i], targets[j], dim=0)) / 0.2 for j in range(6)]
        columns = [float(F.cosine_similarity(predicted[j], targets[i], dim=0)) / 0.2 for j in range(6)]
        losses += [math.log(sum(map(math.exp, side))) - side[i] for side in (rows, columns)]
    assert float(info_nce(predicted, targets, 0.2)) == pytest.approx(sum(losses) / 12, rel=1e-5)


def test_scale_has_no_effect_and_a_collapse_is_at_chance():
    predicted, targets = normal(8, 4), normal(8, 4, seed=1)
    torch.testing.assert_close(info_nce(3 * predicted, 0.1 * targets), info_nce(predicted, targets))
    constant = torch.ones(8, 4)
    assert float(info_nce(constant, constant)) == pytest.approx(math.log(8))
    assert float(info_nce(8 * torch.eye(8), torch.eye(8))) < 0.01


def test_gradients_match_predictions_with_their_targets():
    targets = normal(16, 8)
    predicted = torch.nn.Parameter(normal(16, 8, seed=1))
    optimizer = torch.optim.Adam([predicted], lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        info_nce(predicted, targets).backward()
        optimizer.step()
    similarity = F.normalize(predicted, dim=1) @ F.normalize(targets, dim=1).T
    assert similarity.argmax(1).tolist() == list(range(16))


def test_two_processes_compute_the_loss_of_one(monkeypatch):
    """Each process fills in its rows; a sum over processes puts them together."""
    predicted, targets = normal(8, 4), normal(8, 4, seed=1)
    expected = info_nce(predicted, targets)
    halves = [[F.normalize(half, dim=-1) for half in x.split(4)] for x in (predicted, targets)]
    monkeypatch.setattr(contrastive, "world_size", lambda: 2)
    for rank in range(2):
        order = iter(halves)
        monkeypatch.setattr(contrastive, "rank", lambda rank=rank: rank)

        def all_sum(rows, rank=rank, order=order):
            own, others = rows.split(4)[rank], rows.split(4)[1 - rank]
            assert not others.any()
            first, second = next(order)
            assert torch.equal(own, (first, second)[rank])
            return torch.cat([first, second])

        monkeypatch.setattr(contrastive, "all_sum", all_sum)
        torch.testing.assert_close(info_nce(predicted.split(4)[rank], targets.split(4)[rank]), expected)


def test_info_nce_is_computed_in_fp32_under_autocast():
    predicted, targets = normal(8, 4), normal(8, 4, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(info_nce(predicted, targets), info_nce(predicted, targets))
        assert info_nce(predicted.bfloat16(), targets.bfloat16()).dtype == torch.float32
