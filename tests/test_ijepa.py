"""I-JEPA: loss, gradients, EMA, and regularizers."""

import pytest
import torch
import torch.nn.functional as F

from jepa.backbones import take
from jepa.config import Config
from jepa.data import Batch
from jepa.objectives.ijepa import IJepa, block_mean, masked_mean
from jepa.objectives.regularizers import correlation, covariance_matrix, variance_covariance
from jepa.rng import Rng
from jepa.runs import fresh_objective
from tests.conftest import override


@pytest.fixture
def config(tiny: Config) -> Config:
    return override(tiny, data__mean=(0.5,) * 3, data__std=(0.25,) * 3)


def batch_of(count: int) -> Batch:
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batch(images, None, torch.arange(count))


def without_regularizers(config: Config) -> Config:
    return override(config, objective__variance=0.0, objective__covariance=0.0)


def test_loss_matches_a_loop_over_images_and_targets(config):
    objective = fresh_objective(without_regularizers(config))
    inputs = objective.sample(batch_of(3), Rng(0, 0, torch.arange(3)))
    masks = inputs.masks
    whole = objective.target(inputs.images).x
    targets = F.layer_norm(whole, whole.shape[-1:])
    expected = []
    for image in range(3):
        keep = masks.context[image][masks.context_valid[image]]
        context = objective.context(inputs.images[image : image + 1], keep[None]).x
        losses = []
        for indices, valid in zip(masks.targets[image], masks.targets_valid[image], strict=True):
            if not valid.any():
                continue
            target = indices[valid]
            predictor = objective.predictor
            context_tokens = predictor.embed(context) + predictor.positions[keep]
            mask_tokens = predictor.mask_token + predictor.positions[target]
            tokens = predictor.trunk(torch.cat([context_tokens, mask_tokens[None]], 1))
            predicted = predictor.project(tokens[0, len(keep) :])
            losses.append((predicted - targets[image, target]).square().mean())
        expected.append(torch.stack(losses).mean())
    assert torch.allclose(objective(inputs)["loss"], torch.stack(expected).mean(), rtol=1e-5)


def test_loss_is_linear_in_images(config):
    objective = fresh_objective(without_regularizers(config))
    rng = Rng(0, 0, torch.arange(12))
    batch = batch_of(12)
    whole = objective(objective.sample(batch, rng))["loss"]
    losses = []
    for positions in torch.arange(12).split(4):
        microbatch = Batch(batch.images[positions], None, positions)
        losses.append(objective(objective.sample(microbatch, Rng(0, 0, positions)))["loss"])
    assert torch.allclose(whole, torch.stack(losses).mean(), rtol=1e-5)


def test_only_the_context_encoder_and_the_predictor_learn(config):
    objective = fresh_objective(config)
    objective(objective.sample(batch_of(4), Rng(0, 0, torch.arange(4))))["loss"].backward()
    assert all(parameter.grad is None for parameter in objective.target.parameters())
    for name, parameter in [*objective.context.named_parameters(), *objective.predictor.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0 or "qkv.bias" in name, name


def test_the_target_encoder_starts_equal_and_moves_halfway_in_a_half_life(config):
    objective = fresh_objective(override(config, objective__ema_half_life=5, objective__ema_half_life_end=5))
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


def test_pixels_outside_the_context_do_not_affect_the_prediction(config):
    objective = fresh_objective(override(config, backbone__stem="linear"))
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


def test_masked_mean_ignores_padding():
    x = torch.tensor([[[1.0], [3.0], [100.0]]])
    assert masked_mean(x, torch.tensor([[True, True, False]])) == 2


def test_take_gathers_tokens():
    tokens = torch.arange(24.0).view(2, 3, 4)
    gathered = take(tokens, torch.tensor([[[2, 0]], [[1, 1]]]))
    assert torch.equal(gathered[0, 0], tokens[0, [2, 0]])
    assert torch.equal(gathered[1, 0], tokens[1, [1, 1]])


def test_variance_and_covariance_by_hand():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.5, 1.0], [-0.5, -1.0]])
    covariance = torch.tensor([[2.5 / 3, 1 / 3], [1 / 3, 2 / 3]])
    assert torch.allclose(covariance_matrix(x), covariance)
    variance_term, covariance_term = variance_covariance(x, hinge=1.0, eps=0.0)
    expected = ((1 - (2.5 / 3) ** 0.5) + (1 - (2 / 3) ** 0.5)) / 2
    assert torch.allclose(variance_term, torch.tensor(expected))
    assert torch.allclose(covariance_term, torch.tensor(2 * (1 / 3) ** 2 / 2))


def test_covariance_ignores_the_diagonal_and_variance_is_0_above_the_hinge():
    x = 100 * torch.linalg.qr(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)))[0]
    x = x - x.mean(0)
    x = torch.linalg.qr(x)[0] * 100
    variance_term, covariance_term = variance_covariance(x)
    assert variance_term == 0
    assert covariance_term < 1e-3


def test_covariance_is_computed_in_fp32_under_autocast():
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    expected = torch.cov(x.T)
    with torch.autocast("cpu", torch.bfloat16):
        covariance = covariance_matrix(x)
    assert covariance.dtype == torch.float32
    assert torch.allclose(covariance, expected, atol=1e-5)


def test_the_correlation_term_does_not_depend_on_the_scale():
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 2] += x[:, 0]
    pairs = torch.corrcoef(x.T)[[0, 0, 1], [1, 2, 2]]
    expected = 2 * pairs.square().sum() / 3
    assert torch.allclose(correlation(x), expected, rtol=1e-4)
    assert torch.allclose(correlation(x * torch.tensor([50.0, 20.0, 30.0]) + 7), expected, rtol=1e-3)
    assert torch.allclose(correlation(x * 1e-3), expected, rtol=1e-4)  # shrinking does not evade it


def test_constant_embeddings_have_a_finite_gradient():
    x = torch.ones(8, 4, requires_grad=True)
    variance, covariance = variance_covariance(x)
    (variance + covariance + correlation(x)).backward()
    assert torch.isfinite(x.grad).all()
