import dataclasses

import pytest
import torch
import torch.nn.functional as F

from jepa.backbones import take
from jepa.config import Config
from jepa.data import Batch
from jepa.objectives import IJepa
from jepa.objectives.ijepa import block_mean, masked_mean
from jepa.objectives.regularizers import covariance_matrix, variance_covariance
from jepa.rng import Rng
from jepa.runs import fresh_objective


@pytest.fixture
def config(tiny: Config) -> Config:
    return dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, mean=(0.5,) * 3, std=(0.25,) * 3))


def batch_of(count: int) -> Batch:
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batch(images, None, torch.arange(count))


def plain(config: Config) -> Config:
    return dataclasses.replace(config, objective=dataclasses.replace(config.objective, variance=0.0, covariance=0.0))


def test_loss_equals_the_equation_written_out(config):
    objective = fresh_objective(plain(config))
    inputs = objective.sample(batch_of(3), Rng(0, 0, torch.arange(3)))
    masks = inputs.masks
    whole = objective.target(inputs.images).x
    targets = F.layer_norm(whole, whole.shape[-1:])
    expected = []
    for image in range(3):
        keep = masks.context[image][masks.context_valid[image]]
        context = objective.context(inputs.images[image : image + 1], keep[None]).x
        blocks = []
        for index, valid in zip(masks.targets[image], masks.targets_valid[image], strict=True):
            if not valid.any():
                continue
            wanted = index[valid]
            predictor = objective.predictor
            known = predictor.embed(context) + predictor.positions[keep]
            asked = predictor.mask_token + predictor.positions[wanted]
            tokens = predictor.trunk(torch.cat([known, asked[None]], 1))
            predicted = predictor.project(tokens[0, len(keep) :])
            blocks.append((predicted - targets[image, wanted]).square().mean())
        expected.append(torch.stack(blocks).mean())
    assert torch.allclose(objective(inputs)["loss"], torch.stack(expected).mean(), rtol=1e-5)


def test_loss_is_linear_in_images(config):
    objective = fresh_objective(plain(config))
    rng = Rng(0, 0, torch.arange(12))
    batch = batch_of(12)
    whole = objective(objective.sample(batch, rng))["loss"]
    parts = []
    for rows in torch.arange(12).split(4):
        part = Batch(batch.images[rows], None, rows)
        parts.append(objective(objective.sample(part, Rng(0, 0, rows)))["loss"])
    assert torch.allclose(whole, torch.stack(parts).mean(), rtol=1e-5)


def test_only_the_context_encoder_and_the_predictor_learn(config):
    objective = fresh_objective(config)
    objective(objective.sample(batch_of(4), Rng(0, 0, torch.arange(4))))["loss"].backward()
    assert all(parameter.grad is None for parameter in objective.target.parameters())
    for name, parameter in [*objective.context.named_parameters(), *objective.predictor.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0 or "qkv.bias" in name, name


def test_the_target_starts_equal_and_follows_with_the_half_life(config):
    objective = fresh_objective(
        dataclasses.replace(
            config, objective=dataclasses.replace(config.objective, ema_half_life=5, ema_half_life_end=5)
        )
    )
    assert isinstance(objective, IJepa)
    start = {name: value.clone() for name, value in objective.target.state_dict().items()}
    assert all(torch.equal(value, objective.context.state_dict()[name]) for name, value in start.items())
    with torch.no_grad():
        for parameter in objective.context.parameters():
            parameter.add_(1.0)
    for step in range(5):
        objective.after_step(step / 5)
    for name, parameter in objective.target.named_parameters():
        assert torch.allclose(parameter - start[name], torch.full_like(parameter, 0.5), atol=1e-5), name


def test_what_the_context_does_not_hold_cannot_reach_the_prediction(config):
    stem = dataclasses.replace(config.backbone, stem="linear")
    objective = fresh_objective(dataclasses.replace(config, backbone=stem))
    inputs = objective.sample(batch_of(2), Rng(0, 0, torch.arange(2)))
    images, masks = inputs
    hidden = torch.ones(2, 16, dtype=torch.bool)
    hidden.scatter_(1, torch.where(masks.context_valid, masks.context, masks.context[:, :1]), False)
    pixels = F.interpolate(hidden.view(2, 1, 4, 4).float(), scale_factor=4, mode="nearest")

    def predict(x: torch.Tensor) -> torch.Tensor:
        return objective.predictor(objective.context(x, masks.context, masks.context_valid).x, masks)

    assert torch.allclose(predict(images), predict(images + pixels), atol=1e-5)


def test_block_mean_by_hand():
    loss = torch.tensor([[[1.0, 3.0], [5.0, 100.0]], [[2.0, 2.0], [100.0, 100.0]]])
    valid = torch.tensor([[[True, True], [True, False]], [[True, True], [False, False]]])
    assert block_mean(loss, valid) == ((2 + 5) / 2 + 2) / 2


def test_masked_mean_leaves_padding_out():
    x = torch.tensor([[[1.0], [3.0], [100.0]]])
    assert masked_mean(x, torch.tensor([[True, True, False]])) == 2


def test_take_gathers_rows():
    tokens = torch.arange(24.0).view(2, 3, 4)
    picked = take(tokens, torch.tensor([[[2, 0]], [[1, 1]]]))
    assert torch.equal(picked[0, 0], tokens[0, [2, 0]])
    assert torch.equal(picked[1, 0], tokens[1, [1, 1]])


def test_variance_and_covariance_by_hand():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.5, 1.0], [-0.5, -1.0]])
    covariance = torch.tensor([[2.5 / 3, 1 / 3], [1 / 3, 2 / 3]])
    assert torch.allclose(covariance_matrix(x), covariance)
    variance_term, covariance_term = variance_covariance(x, hinge=1.0, eps=0.0)
    expected = ((1 - (2.5 / 3) ** 0.5) + (1 - (2 / 3) ** 0.5)) / 2
    assert torch.allclose(variance_term, torch.tensor(expected))
    assert torch.allclose(covariance_term, torch.tensor(2 * (1 / 3) ** 2 / 2))


def test_covariance_leaves_out_the_diagonal_and_variance_stops_at_the_hinge():
    x = 100 * torch.linalg.qr(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)))[0]
    x = x - x.mean(0)
    x = torch.linalg.qr(x)[0] * 100
    variance_term, covariance_term = variance_covariance(x)
    assert variance_term == 0
    assert covariance_term < 1e-3


def test_covariance_stays_in_fp32_under_autocast():
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    expected = torch.cov(x.T)
    with torch.autocast("cpu", torch.bfloat16):
        covariance = covariance_matrix(x)
    assert covariance.dtype == torch.float32
    assert torch.allclose(covariance, expected, atol=1e-5)


def test_constant_embeddings_have_a_finite_gradient():
    x = torch.ones(8, 4, requires_grad=True)
    variance, covariance = variance_covariance(x)
    (variance + covariance).backward()
    assert torch.isfinite(x.grad).all()
