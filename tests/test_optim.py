"""Schedules of the learning rate, weight decay and EMA momentum, and parameter groups."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from jepa.config import OptimConfig
from jepa.optim import build_optimizer, learning_rate, momentum, progress, set_schedule, weight_decay

CONFIG = OptimConfig(lr=1.0, lr_start=0.1, lr_end=0.01, warmup=10, weight_decay=0.04, weight_decay_end=0.4)


@pytest.mark.parametrize("steps", [40, 110, 1000])
def test_learning_rate_has_a_warmup_and_a_cosine_that_ends_at_the_last_step(steps):
    lrs = [learning_rate(step, steps, CONFIG) for step in range(steps)]
    assert math.isclose(lrs[0], 0.1)
    assert math.isclose(lrs[5], 0.55)
    assert math.isclose(lrs[10], 1.0)
    assert math.isclose(lrs[-1], 0.01)
    assert math.isclose((lrs[12] + lrs[-3]) / 2, (1.0 + 0.01) / 2)  # a cosine is symmetric about its center
    assert max(lrs) == lrs[10]
    assert lrs[10:] == sorted(lrs[10:], reverse=True)


def test_without_warmup_the_first_step_has_the_peak_learning_rate():
    config = dataclasses.replace(CONFIG, warmup=0)
    assert [learning_rate(step, 3, config) for step in range(3)] == pytest.approx([1.0, 0.505, 0.01])
    assert learning_rate(0, 1, config) == 1.0


def test_warmup_takes_at_most_a_quarter_of_a_short_run():
    assert math.isclose(learning_rate(1, 4, CONFIG), 1.0)


@pytest.mark.parametrize("steps", [2, 101])
def test_weight_decay_and_momentum_reach_both_ends(steps):
    first, last = 0, steps - 1
    assert math.isclose(weight_decay(first, steps, CONFIG), 0.04)
    assert math.isclose(weight_decay(last, steps, CONFIG), 0.4)
    assert math.isclose(momentum(progress(first, steps), 7, 70), 0.5 ** (1 / 7))
    assert math.isclose(momentum(progress(last, steps), 7, 70), 0.5 ** (1 / 70))
    assert math.isclose(weight_decay(50, 101, CONFIG), 0.22)


def test_momentum_with_the_half_lives_of_the_paper():
    assert abs(momentum(0, 173, 1e9) - 0.996) < 1e-4
    assert abs(momentum(1, 173, 1e9) - 1.0) < 1e-8
    assert abs(momentum(0.5, 173, 1e9) - 0.998) < 1e-4
    assert math.isclose(momentum(0, 7, 7) ** 7, 0.5)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_biases_norms_and_single_tokens_have_no_weight_decay(kind):
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    model.mask_token = nn.Parameter(torch.zeros(5))
    optimizer = build_optimizer(model, dataclasses.replace(CONFIG, kind=kind))
    set_schedule(optimizer, 99, 100, CONFIG)
    with_decay, without_decay = optimizer.param_groups
    assert [tuple(parameter.shape) for parameter in with_decay["params"]] == [(3, 4)]
    assert len(without_decay["params"]) == 4
    assert with_decay["weight_decay"] == 0.4
    assert without_decay["weight_decay"] == 0
    assert with_decay["lr"] == without_decay["lr"]


def test_muon_orthogonalizes_the_updates_of_matrices_and_convolutions():
    model = nn.ModuleList([nn.Linear(16, 8), nn.Conv2d(4, 8, 3), nn.LayerNorm(8)])
    optimizer = build_optimizer(model, OptimConfig(kind="muon", lr=0.1, weight_decay=0))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) + torch.randn(parameter.shape, generator=generator) / 4
    optimizer.step()
    updates = [parameter.detach() - old for parameter, old in zip(model.parameters(), before, strict=True)]
    for update, parameter in ((updates[0], model[0].weight), (updates[2].flatten(1), model[1].weight)):
        for matrix, in_balance in ((parameter.grad.flatten(1), False), (update, True)):
            values = torch.linalg.svdvals(matrix)
            assert (values.min() > 0.6 * values.max()) == in_balance
        assert 0.005 < update.square().mean().sqrt() < 0.04  # 0.2 · lr, that of AdamW
    assert torch.allclose(updates[1], torch.full((8,), -0.1), atol=1e-3)  # AdamW


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_muon_orthogonalizes_in_fp32_where_bf16_is_slow(bf16, dtype, monkeypatch):
    from timm.optim import muon

    monkeypatch.setattr("jepa.distributed.has_bf16_instructions", lambda: bf16)
    used = []
    original = muon.zeropower_via_newtonschulz

    def orthogonalize(*arguments, **options):
        result = original(*arguments, **options)
        used.append(result.dtype)
        return result

    monkeypatch.setattr(muon, "zeropower_via_newtonschulz", orthogonalize)
    model = nn.Linear(8, 4)
    optimizer = build_optimizer(model, OptimConfig(kind="muon"))
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    assert used == [dtype]
    assert muon.zeropower_via_newtonschulz is orthogonalize
