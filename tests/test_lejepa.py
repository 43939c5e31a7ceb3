"""LeJEPA: views, loss, invalid settings, and several processes."""

import dataclasses

import pytest
import torch

import jepa
from jepa.config import Config, ConvNetConfig, CropConfig, EnergyConfig, InputError, LeJepaConfig
from jepa.config.arguments import parse_train_arguments
from jepa.data import Batch
from jepa.objectives.regularizers import sigreg
from jepa.rng import Rng
from jepa.runs import fresh_objective
from jepa.train import train
from tests.conftest import override

SMALL = {"slices": 16, "hidden": 24, "projection": 8, "num_local": 3, "local_size": 8}


@pytest.fixture
def config(tiny: Config) -> Config:
    tiny = dataclasses.replace(tiny, objective=LeJepaConfig(**SMALL))
    return override(tiny, data__mean=(0.5,) * 3, data__std=(0.25,) * 3)


def batch_of(positions: torch.Tensor, size: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, size, size), dtype=torch.uint8, generator=generator)
    return Batch(images[positions], None, positions)


def inputs_of(objective, positions=None, step: int = 0, size: int = 16):
    positions = torch.arange(8) if positions is None else positions
    return objective.sample(batch_of(positions, size), Rng(0, step, positions))


def test_views_are_crops_of_their_size_and_scale(config):
    """Pixel values are the coordinates of the pixels, so views reveal their position."""
    objective = fresh_objective(
        override(config, objective__global_crop=CropConfig(scale=(0.5, 0.6)), objective__num_global=3)
    )
    y, x = torch.meshgrid(*(4 * torch.arange(64),) * 2, indexing="ij")
    images = torch.stack([x, y, x]).to(torch.uint8).expand(32, -1, -1, -1)
    inputs = objective.sample(Batch(images, None, torch.arange(32)), Rng(0, 0, torch.arange(32)))
    assert inputs.global_views.shape == (3, 32, 3, 16, 16)
    assert inputs.local_views.shape == (3, 32, 3, 8, 8)
    for views, low, high in ((inputs.global_views, 0.5, 0.6), (inputs.local_views, 0.05, 0.3)):
        coordinates = views[:, :, :2] * 255 / 4 / 64
        sides = coordinates.amax((-1, -2)) - coordinates.amin((-1, -2))
        areas = sides.prod(-1) * (views.shape[-1] / (views.shape[-1] - 1)) ** 2  # the centers of the outer pixels
        assert 0.85 * low < float(areas.min())
        assert float(areas.max()) < 1.1 * high
        assert float(views.std(0).mean()) > 0.01  # views of an image differ
        assert float(views.std(1).mean()) > 0.01  # and so do images


def test_directions_are_those_of_the_step_and_views_those_of_the_image(config):
    objective = fresh_objective(config)
    whole = inputs_of(objective)
    assert whole.directions.shape == (16, 8)
    assert torch.allclose(whole.directions.norm(dim=-1), torch.ones(16))
    parts = [inputs_of(objective, positions) for positions in torch.arange(8).split(4)]
    assert all(torch.equal(part.directions, whole.directions) for part in parts)
    for name in ("global_views", "local_views"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts], 1))
    assert (inputs_of(objective, step=1).directions - whole.directions).abs().max() > 0.1


@pytest.mark.parametrize("backbone", [None, EnergyConfig(size="32x2x2", patch=4, positions="learned")])
def test_the_loss_and_its_gradient_are_those_of_the_paper(config, backbone):
    objective = fresh_objective(override(config, objective__sigreg=0.3, backbone=backbone or config.backbone)).train()
    inputs = inputs_of(objective)
    losses = objective(inputs)
    losses["loss"].backward()
    gradients = {name: parameter.grad.clone() for name, parameter in objective.named_parameters()}
    objective.zero_grad()
    features = torch.cat([objective.encoder(view).x.mean(1) for views in inputs[:2] for view in views])
    projected = objective.projector(features).view(5, 8, 8)
    center = (projected[0] + projected[1]) / 2
    prediction = torch.stack([(view - center).square().mean() for view in projected]).mean()
    regularizer = torch.stack([sigreg(view, inputs.directions) for view in projected]).mean()
    expected = 0.7 * prediction + 0.3 * regularizer
    for name, value in (("prediction", prediction), ("sigreg", regularizer), ("loss", expected)):
        assert torch.allclose(losses[name], value, rtol=1e-4), name
    expected.backward()
    for name, parameter in objective.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, rtol=1e-3, atol=1e-5), name
        assert parameter.grad.abs().sum() > 0 or "qkv.bias" in name, name


def test_views_of_the_same_size_are_encoded_together(config):
    objective = fresh_objective(config)
    batches: list[int] = []
    objective.encoder.register_forward_pre_hook(lambda _, arguments: batches.append(len(arguments[0])))
    objective(inputs_of(objective))
    assert batches == [16, 24]
    batches.clear()
    objective.local_size = objective.size
    objective(inputs_of(objective))
    assert batches == [40]
    batches.clear()
    objective(inputs_of(objective)._replace(local_views=torch.empty(0, 8, 3, 16, 16)))
    assert batches == [16]


def test_without_local_views_global_views_predict_their_mean(config):
    objective = fresh_objective(override(config, objective__num_local=0)).eval()
    inputs = inputs_of(objective)
    assert len(inputs.local_views) == 0
    first, second = objective.projector(objective.encoder(inputs.global_views.flatten(0, 1)).x.mean(1)).split(8)
    assert torch.allclose(objective(inputs)["prediction"], (first - second).square().mean() / 4, rtol=1e-4)


def test_training_lowers_the_loss_without_collapse(config, tmp_path):
    config = override(config, steps=40, batch_size=16, save_every=100, optim__lr=3e-3, objective__sigreg=0.5)
    run = train(config, tmp_path / "run")
    records = run.metrics()
    losses = [record["loss"] for record in records]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert records[-1]["sigreg"] < 3.3  # half of the value for collapsed projections
    assert jepa.load(str(run.path)).embed(torch.zeros(2, 3, 20, 20)).shape == (2, 32)


def test_a_convnet_encodes_both_sizes(config):
    objective = fresh_objective(override(config, backbone=ConvNetConfig("resnet10t", small_stem=True))).train()
    objective(inputs_of(objective))["loss"].backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in objective.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigreg": 1.0}, "objective.sigreg must be at least 0 and below 1, got 1.0"),
        ({"slices": 0}, "objective.slices must be an integer of at least 1, got 0"),
        ({"num_global": 0}, "objective.num_global must be an integer of at least 1, got 0"),
        ({"num_local": -1}, "objective.num_local must be an integer of at least 0, got -1"),
        ({"num_global": 1, "num_local": 0}, "a view predicts other views, but objective.num_global is 1"),
        ({"local_size": 10}, "objective.local_size is 10x10, but the backbone vit cannot encode images of this size"),
        ({"local_size": (8, 20)}, "objective.local_size must be between 1 pixel and the image size of 16x16, got 8x20"),
        ({"local_size": 0}, "objective.local_size must be between 1 pixel and the image size of 16x16, got 0x0"),
        ({"batch_size": 1}, "the losses compare the images of a microbatch, which needs at least 2"),
        (
            {"backbone": ConvNetConfig("resnet18", small_stem=True), "local_size": 4},
            "objective.local_size is 4x4, smaller than the stride of the backbone, 8",
        ),
    ],
)
def test_messages_about_invalid_settings_are_one_sentence(config, change, message):
    settings = {name: change.pop(name) for name in ("batch_size", "backbone") if name in change}
    with pytest.raises(InputError) as caught:
        fresh_objective(
            dataclasses.replace(config, objective=dataclasses.replace(config.objective, **change), **settings)
        )
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_are_flags():
    flags = ["--objective.sigreg", "0.1", "--objective.local-size", "8", "16", "--objective.local-crop.scale", "0.1"]
    objective = parse_train_arguments(["lejepa-cifar10", *flags, "0.2"], lambda *_: None).config.objective
    assert (objective.sigreg, objective.local_size, objective.local_crop.scale) == (0.1, (8, 16), (0.1, 0.2))
    arguments = parse_train_arguments(["lejepa-cifar10", "--objective.local-size", "None"], lambda *_: None)
    assert arguments.config.objective.local_size is None
    assert arguments.config.objective.supervised_crop() == arguments.config.objective.global_crop
