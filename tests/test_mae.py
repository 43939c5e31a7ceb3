"""Masked autoencoder: masks, targets, loss, and what the encoder sees."""

import dataclasses
import math

import pytest
import torch

from jepa.config import Config, ConvNetConfig, CropConfig, EnergyConfig, InputError, MAEConfig
from jepa.data import Batch
from jepa.evaluation_run import EvaluationRun
from jepa.objectives.mae import patch_pixels
from jepa.report.figures import draw
from jepa.rng import Rng
from jepa.runs import fresh_objective
from jepa.train import train
from tests.conftest import override


@pytest.fixture
def config(tiny: Config) -> Config:
    tiny = dataclasses.replace(tiny, objective=MAEConfig(decoder="16x1x2"))
    return override(tiny, data__mean=(0.5, 0.4, 0.3), data__std=(0.25, 0.2, 0.3), backbone__stem="patch-conv")


def inputs_of(objective, count: int = 3, channels: int = 3, size: tuple[int, int] = (16, 16)):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, *size), dtype=torch.uint8, generator=generator)
    positions = torch.arange(count)
    return objective.sample(Batch(images, None, positions), Rng(0, 0, positions))


@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_is_the_error_of_the_pixels_of_masked_patches(config, normalize):
    objective = fresh_objective(override(config, objective__normalize_pixels=normalize))
    inputs = inputs_of(objective)
    decoder, expected = objective.decoder, []
    for image, visible, masked in zip(*inputs, strict=True):
        encoded = objective.encoder(image[None], visible[None]).x
        tokens = [decoder.embed(encoded) + decoder.positions[visible]]
        tokens.append((decoder.mask_token + decoder.positions[masked])[None])
        predicted = decoder.project(decoder.trunk(torch.cat(tokens, 1))[0, 4:])
        for index, prediction in zip(masked.tolist(), predicted, strict=True):
            top, left = 4 * (index // 4), 4 * (index % 4)
            mean, std = (torch.tensor(values)[:, None, None] for values in (config.data.mean, config.data.std))
            pixels = ((image[:, top : top + 4, left : left + 4] - mean) / std).permute(1, 2, 0).flatten()
            if normalize:
                pixels = (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt()
            expected.append((prediction - pixels).square().mean())
    assert len(expected) == 3 * 12
    assert torch.allclose(objective(inputs)["loss"], torch.stack(expected).mean(), rtol=1e-5)


def test_every_image_has_its_own_mask_and_every_patch_is_masked_equally_often(config):
    inputs = inputs_of(fresh_objective(config), 800)
    order = torch.cat([inputs.visible, inputs.masked], 1)
    assert torch.equal(order.sort(1).values, torch.arange(16).expand(800, -1))
    assert inputs.masked.shape == (800, 12)
    masked = torch.zeros(800, 16).scatter_(1, inputs.masked, 1.0)
    assert len(masked.unique(dim=0)) > 500
    assert (masked.mean(0) - 0.75).abs().max() < 0.06  # four standard errors


@pytest.mark.parametrize(("ratio", "num_visible"), [(0.75, 4), (0.5, 8), (0.8, 3), (0.01, 15), (0.99, 1)])
def test_the_mask_ratio_leaves_at_least_one_patch_of_each_kind(config, ratio, num_visible):
    objective = fresh_objective(override(config, objective__mask_ratio=ratio))
    assert inputs_of(objective).visible.shape == (3, num_visible)
    assert f"{num_visible} of 16 patches are visible" in objective.describe()


@pytest.mark.parametrize("backbone", ["linear", "patch-conv", "energy"])
def test_pixels_of_masked_patches_do_not_affect_the_prediction(config, backbone):
    if backbone == "energy":
        config = override(config, backbone=EnergyConfig(size="32x2x2", patch=4))
    else:
        config = override(config, backbone__stem=backbone)
    objective = fresh_objective(config)
    images, visible, masked = inputs_of(objective)
    hidden = torch.zeros(3, 16).scatter_(1, masked, 1.0).view(3, 1, 4, 4)
    noise = 0.3 * torch.nn.functional.interpolate(hidden, scale_factor=4) * torch.rand_like(images)

    def predict(x: torch.Tensor) -> torch.Tensor:
        return objective.decoder(objective.encoder(x, visible).x, visible, masked)

    assert torch.equal(predict(images), predict(images + noise))
    assert not torch.allclose(objective.targets(images), objective.targets(images + noise))


def test_predictions_depend_on_the_position_and_on_the_visible_patches(config):
    objective = fresh_objective(config)
    images, visible, masked = inputs_of(objective)
    encoded = objective.encoder(images, visible).x
    predicted = objective.decoder(encoded, visible, masked)
    assert predicted.shape == (3, 12, 48)
    assert predicted.std(1).max() > 1e-4
    assert torch.allclose(objective.decoder(encoded, visible, masked.flip(1)), predicted.flip(1), atol=1e-5)
    assert not torch.equal(objective.decoder(-encoded, visible, masked), predicted)


def test_patches_are_in_raster_order():
    images = torch.arange(2 * 3 * 8 * 12).view(2, 3, 8, 12)
    patches = patch_pixels(images, 4)
    assert patches.shape == (2, 6, 48)
    for index in range(6):
        top, left = 4 * (index // 3), 4 * (index % 3)
        patch = images[:, :, top : top + 4, left : left + 4]
        assert torch.equal(patches[:, index].view(2, 4, 4, 3).permute(0, 3, 1, 2), patch)


def test_normalized_targets_have_mean_0_and_std_1_and_flat_patches_are_0(config):
    objective = fresh_objective(config)
    targets = objective.targets(inputs_of(objective).images)
    assert targets.mean(-1).abs().max() < 1e-5
    assert torch.allclose(targets.std(-1), torch.ones(3, 16), atol=1e-3)
    data = dataclasses.replace(config.data, channels=1, mean=(0.5,), std=(0.25,))
    gray = fresh_objective(dataclasses.replace(config, data=data))
    assert torch.equal(gray.targets(torch.full((1, 1, 16, 16), 0.7)), torch.zeros(1, 16, 16))


def test_the_loss_is_linear_in_images(config):
    objective = fresh_objective(config)
    inputs = inputs_of(objective, 8)
    parts = [type(inputs)(*part) for part in zip(*(x.split(4) for x in inputs), strict=True)]
    mean = torch.stack([objective(part)["loss"] for part in parts]).mean()
    assert torch.allclose(objective(inputs)["loss"], mean, rtol=1e-5)


def test_every_parameter_learns(config):
    objective = fresh_objective(config)
    objective(inputs_of(objective))["loss"].backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0 or "qkv.bias" in name, name


def test_training_lowers_the_loss(config, tmp_path):
    config = override(config, steps=60, save_every=100, optim__lr=3e-3, objective__crop=CropConfig(kind="full"))
    losses = [record["loss"] for record in train(config, tmp_path / "run").metrics()]
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])


def test_the_figure_of_masks_shows_the_visible_patches(config, tmp_path):
    figure = draw("masks", EvaluationRun.open(train(override(config, steps=1), tmp_path / "run").path))
    for view, visible in zip(figure.axes[:4], figure.axes[4:], strict=True):
        before, after = (torch.as_tensor(axes.images[0].get_array()) for axes in (view, visible))
        changed = (before != after).any(-1).view(4, 4, 4, 4).any(3).any(1)
        assert int(changed.sum()) == 12


def test_an_energy_transformer_trains_on_gray_images_of_any_grid(config, tmp_path):
    data = dataclasses.replace(config.data, channels=1, mean=None, std=None, image_size=(16, 24))
    config = dataclasses.replace(config, backbone=EnergyConfig(size="32x2x2", patch=4), data=data, steps=2)
    assert math.isfinite(train(config, tmp_path / "run").metrics()[-1]["loss"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective__mask_ratio": 1.0}, "objective.mask_ratio must be above 0 and below 1, got 1.0"),
        ({"objective__decoder": "big"}, "objective.decoder must be DIMxDEPTH"),
        ({"backbone": ConvNetConfig()}, "masks the input of its encoder, which a convnet does not support"),
        ({"backbone__patch": 16}, "needs at least 2 patches, but an image of 16x16 pixels has one patch of 16 pixels"),
    ],
)
def test_messages_about_invalid_settings_are_one_sentence(config, change, message):
    with pytest.raises(InputError) as caught:
        fresh_objective(override(config, **change))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
