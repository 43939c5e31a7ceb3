"""Saccade JEPA and VICReg: loss terms, teacher, timm backbones, invalid settings, and distributed training."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jepa.backbones.convnet import ConvNet
from jepa.config import (
    ColorConfig,
    Config,
    ConvNetConfig,
    FixationConfig,
    InputError,
    SaccadeConfig,
    VICRegConfig,
    with_backbone,
)
from jepa.data import Batch
from jepa.objectives.saccade import GridPredictor, mlp
from jepa.optim import momentum
from jepa.rng import Rng
from jepa.runs import fresh_objective
from jepa.train import train
from tests.conftest import override

FIXATIONS = FixationConfig(view_fraction=0.6, shift=0.4, rotation=10)
WEIGHTS = {"prediction": 1.0, "cycle": 0.5, "invariance": 0.3, "variance": 2.0, "covariance": 0.7, "correlation": 0.4}
WEIGHTS |= {"inverse": 0.2}


def saccade_config(tiny: Config, backbone=None, **objective) -> Config:
    """Return the tiny config with Saccade JEPA instead of I-JEPA."""
    return dataclasses.replace(
        tiny,
        data=dataclasses.replace(tiny.data, mean=(0.5,) * 3, std=(0.25,) * 3),
        backbone=backbone or tiny.backbone,
        objective=SaccadeConfig(hidden=16, fixations=FIXATIONS, **objective),
    )


def inputs_of(objective, count=8, size=16):
    images = torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return objective.sample(Batch(images, None, torch.arange(count)), Rng(0, 0, torch.arange(count)))


def embeddings(objective, inputs):
    return objective.context(inputs.context).x.mean(1), objective.target(inputs.target).x.mean(1)


def test_every_term_equals_its_definition(tiny):
    objective = fresh_objective(saccade_config(tiny, **WEIGHTS))
    inputs = inputs_of(objective)
    losses = objective(inputs)
    context, target = embeddings(objective, inputs)
    geometry, predictor = objective.geometry, objective.predictor

    def predict(x, saccade):
        embedding = objective.code(geometry.normalized(saccade)) @ predictor.saccade.weight.T + predictor.saccade.bias
        return predictor.layers(x + embedding)

    def huber(x, y):
        error = (x - y).abs()
        return torch.where(error < 1, error.square() / 2, error - 0.5).mean()

    predicted = predict(context, inputs.saccade)
    centered = context - context.mean(0)
    covariance = centered.T @ centered / 7
    std = (covariance.diagonal() + 1e-4).sqrt()
    expected = {
        "prediction": huber(predicted, target),
        "cycle": huber(predict(predicted, inputs.saccade.inverse()), context),
        "invariance": (context - target).square().mean(),
        "variance": (1 - std).clamp(min=0).mean(),
        "covariance": (covariance - covariance.diag().diag()).square().sum() / 32,
        "correlation": (torch.corrcoef(context.T).square().sum() - 32) / 32,
        "inverse": F.mse_loss(objective.inverse(torch.cat([context, target], 1)), geometry.normalized(inputs.saccade)),
    }
    for name, value in expected.items():
        assert torch.allclose(losses[name], value, rtol=1e-4, atol=1e-6), name
    assert torch.allclose(losses["loss"], sum(WEIGHTS[name] * value for name, value in expected.items()), rtol=1e-4)


def test_huber_is_linear_for_large_errors(tiny):
    objective = fresh_objective(saccade_config(tiny))
    with torch.no_grad():
        objective.predictor.layers[-1].bias += 100
    assert 95 < float(objective(inputs_of(objective))["prediction"]) < 105


@pytest.mark.parametrize("name", WEIGHTS)
def test_terms_with_weight_0_are_not_computed(tiny, name):
    weights = dict.fromkeys(WEIGHTS, 0.0) | {name: 1.0}
    objective = fresh_objective(saccade_config(tiny, **weights))
    losses = objective(inputs_of(objective))
    terms = {"variance", "covariance"} if name in ("variance", "covariance") else {name}
    assert losses.keys() == {"loss", "feature_std"} | terms
    assert torch.allclose(losses["loss"], losses[name])
    assert (objective.predictor is not None) == (name in ("prediction", "cycle"))
    assert (objective.inverse is not None) == (name == "inverse")
    losses["loss"].backward()  # DDP requires a gradient for all parameters
    assert all(parameter.grad is not None for parameter in objective.parameters() if parameter.requires_grad)


def test_the_layers_of_the_mlp_do_not_share_weights():
    layers = [module for module in mlp(8, 8, 8) if isinstance(module, nn.Linear)]
    assert len(layers) == 3
    assert len({layer.weight.data_ptr() for layer in layers}) == 3
    assert not torch.equal(layers[0].weight, layers[1].weight)


def test_the_prediction_depends_on_the_movement(tiny):
    objective = fresh_objective(saccade_config(tiny))
    inputs = inputs_of(objective)
    other = inputs._replace(saccade=inputs.saccade._replace(shift=torch.zeros_like(inputs.saccade.shift)))
    assert not torch.allclose(objective(inputs)["prediction"], objective(other)["prediction"])


def test_only_student_and_predictor_have_gradients_and_the_teacher_is_their_average(tiny):
    config = saccade_config(tiny, ConvNetConfig("resnet18", small_stem=True), ema_half_life=3, ema_half_life_end=3)
    objective = fresh_objective(config).train()
    before = {name: value.clone() for name, value in objective.target.state_dict().items()}
    objective(inputs_of(objective))["loss"].backward()
    assert all(parameter.grad is None for parameter in objective.target.parameters())
    for parameter in objective.context.parameters():
        with torch.no_grad():
            parameter.sub_(0.1 * parameter.grad)
    objective.after_step(0.5)
    decay = momentum(0.5, 3, 3)
    student, num_statistics = objective.context.state_dict(), 0
    for name, value in objective.target.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, decay * before[name] + (1 - decay) * student[name], atol=1e-6), name
            num_statistics += "running_mean" in name and not torch.equal(value, before[name])
        else:
            assert torch.equal(value, student[name])
    assert num_statistics == 20  # one per BatchNorm


def test_the_teacher_uses_its_running_statistics(tiny):
    objective = fresh_objective(saccade_config(tiny, ConvNetConfig("resnet18", small_stem=True))).train()
    before = {name: value.clone() for name, value in objective.target.state_dict().items()}
    objective(inputs_of(objective))
    assert all(torch.equal(value, before[name]) for name, value in objective.target.state_dict().items())


def test_the_grid_predictor_predicts_tokens(tiny):
    objective = fresh_objective(saccade_config(tiny, predictor="16x2x2", **WEIGHTS))
    assert isinstance(objective.predictor, GridPredictor)
    inputs = inputs_of(objective)
    predicted = objective.predict(objective.context(inputs.context).x, inputs.saccade)
    assert predicted.shape == (8, 16, 32)
    target = objective.target(inputs.target).x
    assert torch.allclose(objective(inputs)["prediction"], F.huber_loss(predicted, target), rtol=1e-5)


NAMES = (
    *("convnext_atto", "convnextv2_atto", "resnet18", "resnet50", "efficientnet_b0", "mobilenetv3_small_100"),
    *("regnety_002", "densenet121", "vgg11_bn", "edgenext_xx_small", "vit", "energy"),
)


@pytest.mark.parametrize("name", [*NAMES[:10], "dpn68", "resnetv2_50", "nf_resnet50", "fasternet_t0"])
def test_layers_end_with_the_output_of_the_forward_pass(name):
    encoder = ConvNet(ConvNetConfig(name), 3, (64, 64)).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens, with_layers = encoder(images), encoder(images, layers=(-2, -1))
    assert torch.allclose(tokens.x, with_layers.x, rtol=1e-4, atol=1e-5)
    assert torch.equal(with_layers.x, with_layers.layers[-1])
    assert tokens.x.shape == (2, tokens.grid[0] * tokens.grid[1], encoder.dim)
    assert tokens.grid == (64 // encoder.stride, 64 // encoder.stride)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "convnext_atto", "mobilenetv3_small_100", "resnet10t"])
def test_a_small_stem_has_a_finer_grid(name):
    large, small = (ConvNet(ConvNetConfig(name, small_stem=stem), 3, (64, 64)).eval() for stem in (False, True))
    images = torch.zeros(1, 3, 64, 64)
    factor = large.stride // small.stride
    has_pooling = name in ("resnet18", "densenet121", "resnet10t")  # after the first layer
    assert factor == (4 if has_pooling else 2)
    assert large(images).grid == (2, 2)
    assert small(images).grid == (2 * factor, 2 * factor)
    convolutions = [module for module in small.modules() if isinstance(module, nn.Conv2d) and module.kernel_size[0] > 1]
    assert all(layer.weight.is_contiguous(memory_format=torch.channels_last) for layer in convolutions)


@pytest.mark.parametrize("name", NAMES)
def test_twelve_backbones_train_two_steps(tiny, tmp_path, name):
    config = saccade_config(tiny, predictor="16x1x2" if name in ("densenet121", "energy") else "mlp")
    config = override(config, steps=2, data__image_size=32)
    if name in ("vit", "energy"):
        config = with_backbone(config, name)
    else:
        config = dataclasses.replace(config, backbone=ConvNetConfig(name, small_stem=name != "vgg11_bn"))
    records = train(config, tmp_path / "run").metrics()
    assert records[-1]["step"] == 2
    assert all(torch.isfinite(torch.tensor(records[-1][term])) for term in ("loss", "prediction", "cycle", "variance"))


def test_vicreg_equals_its_definition(tiny):
    config = dataclasses.replace(saccade_config(tiny), objective=VICRegConfig(expander=12, fixations=FIXATIONS))
    objective = fresh_objective(config).train()
    inputs = inputs_of(objective)
    losses = objective(inputs)
    first, second = (objective.expander(objective.encoder(x).x.mean(1)) for x in (inputs.context, inputs.target))
    variance, covariance = [], []
    for x in (first, second):
        matrix = torch.cov(x.T)
        variance.append((1 - (matrix.diagonal() + 1e-4).sqrt()).clamp(min=0).mean() / 2)
        covariance.append((matrix - matrix.diag().diag()).square().sum() / 12)
    expected = 25 * (first - second).square().mean() + 25 * sum(variance) + sum(covariance)
    assert torch.allclose(losses["loss"], expected, rtol=1e-4)


@pytest.mark.parametrize("objective", [SaccadeConfig, VICRegConfig])
@pytest.mark.parametrize("canvas", [(40, 40), (40, 60), (60, 40)])
def test_the_saccade_maps_the_context_view_to_the_target_view(tiny, objective, canvas):
    """Pixel values are the coordinates of the pixels, so views reveal their position."""
    fixations = FixationConfig(view_fraction=0.4, shift=0.3, rotation=20, zoom=1.5)
    config = dataclasses.replace(saccade_config(tiny), objective=objective(fixations=fixations))
    y, x = torch.meshgrid(*(4 * torch.arange(side) for side in canvas), indexing="ij")
    images = torch.stack([x, y, x]).to(torch.uint8).expand(8, -1, -1, -1)
    inputs = fresh_objective(config).sample(Batch(images, None, torch.arange(8)), Rng(0, 0, torch.arange(8)))
    context, target = (255 / 4 * view[:, :2].movedim(1, -1) for view in (inputs.context, inputs.target))  # (B, h, w, 2)
    for view in (context, target):
        right, down = view[:, 8, 9] - view[:, 8, 8], view[:, 9, 8] - view[:, 8, 8]
        assert (right * down).sum(-1).abs().max() < 1e-3  # right angles
        assert torch.allclose(right.norm(dim=-1), down.norm(dim=-1), rtol=1e-3)  # square pixels
    points = torch.tensor([[-0.25, -0.25], [0.25, 0.125]])  # points in the target view, in view sides
    for point, (row, column) in zip(points, ((3.5, 3.5), (9.5, 11.5)), strict=True):
        mapped = inputs.saccade(point.expand(8, 2))  # the same points in sides of the context view
        right, down = context[:, 8, 9] - context[:, 8, 8], context[:, 9, 8] - context[:, 8, 8]
        center = (context[:, 7, 7] + context[:, 8, 8]) / 2
        position = center + 16 * (mapped[:, :1] * right + mapped[:, 1:] * down)
        low, high = target[:, int(row), int(column)], target[:, int(row) + 1, int(column) + 1]
        assert torch.allclose(position, (low + high) / 2, atol=0.02)


def test_both_objectives_have_the_same_fixations(tiny):
    config = saccade_config(tiny)
    other = dataclasses.replace(config, objective=VICRegConfig(fixations=FIXATIONS))
    first, second = (inputs_of(fresh_objective(x)) for x in (config, other))
    assert torch.equal(first.context, second.context)
    assert torch.equal(first.target, second.target)


def test_only_the_colors_of_the_students_view_are_changed(tiny):
    plain = inputs_of(fresh_objective(saccade_config(tiny)))
    colored = inputs_of(fresh_objective(saccade_config(tiny, color=ColorConfig(strength=0.4, gray=0.5))))
    assert torch.equal(plain.target, colored.target)
    assert not torch.isclose(plain.context, colored.context).flatten(1).all(1).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": dict.fromkeys(WEIGHTS, 0.0)}, "are 0; set at least one of them"),
        ({"objective": {"cycle": -1.0}}, "objective.cycle must be at least 0, got -1.0"),
        ({"objective": {"hinge": 0.0}}, "objective.hinge must be positive, got 0.0"),
        ({"objective": {"predictor": "big"}}, "objective.predictor must be mlp, DIMxDEPTH"),
        ({"objective": {"hinge": float("inf")}}, "objective.hinge must be positive, got inf"),
        (
            {"objective": {"fixations": FixationConfig(view_fraction=0.9)}},
            "fixations.shift is 0.28, but with view_fraction 0.9",
        ),
        ({"data": {"canvas": 12}}, "smaller than the view of 16x16"),
        ({"batch_size": 1}, "but the losses compare the images of a microbatch"),
        (
            {"batch_size": 1, "objective": {"variance": 0.0, "covariance": 0.0}},
            "a BatchNorm needs at least 2 images per microbatch, got batch_size 1 for 1 microbatch(es)",
        ),
        (
            {"backbone": ConvNetConfig("resnet81")},
            "'resnet81' is not a timm model; did you mean 'resnet18'?",
        ),
        ({"backbone": ConvNetConfig("RESNET18")}, "did you mean 'resnet18'?"),
        (
            {"backbone": ConvNetConfig("resnet18.nonsense")},
            "timm cannot build the backbone 'resnet18.nonsense': Invalid pretrained tag",
        ),
        ({"backbone": ConvNetConfig("vit_tiny_patch16_224")}, "does not return feature maps for 16x16 images"),
        (
            {"backbone": ConvNetConfig("mambaout_femto"), "data": {"image_size": 32}},
            "does not return feature maps for 32x32 images",
        ),
        (
            {"backbone": ConvNetConfig("hrnet_w18_small"), "data": {"image_size": 32}},
            "does not return feature maps for 32x32 images",
        ),
        (
            {"backbone": ConvNetConfig("vgg11_bn", small_stem=True), "data": {"image_size": 32}},
            "remove --backbone.small-stem",
        ),
        (
            {"backbone": ConvNetConfig("repvgg_a0", small_stem=True)},
            "does not return feature maps for 16x16 images with backbone.small_stem",
        ),
        (
            {"backbone": ConvNetConfig("resnet18")},
            "the backbone 'resnet18' has stride 32, larger than the image of 16x16",
        ),
    ],
)
def test_messages_about_invalid_settings_are_one_sentence(tiny, change, message):
    def build():
        config = saccade_config(tiny, ConvNetConfig("resnet18", small_stem=True))
        objective = SaccadeConfig(**({"fixations": FIXATIONS} | change.get("objective", {})))
        data = dataclasses.replace(config.data, **change.get("data", {}))
        fresh_objective(dataclasses.replace(config, **(change | {"objective": objective, "data": data})))

    with pytest.raises(InputError) as caught:
        build()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ijepa_rejects_a_convnet(tiny):
    with pytest.raises(InputError, match="masks the input of its encoder, which a convnet does not support"):
        dataclasses.replace(tiny, backbone=ConvNetConfig())
