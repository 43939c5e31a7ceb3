import dataclasses

import pytest
import torch
import torch.nn.functional as F

from jepa.backbones import Encoder, FittedLayer, copy_fitted_layers, fit_layers, has_fitted_layers
from jepa.backbones.patch_embed import build_stem
from jepa.backbones.whitening import WhiteningFilters
from jepa.config import EnergyConfig, ViTConfig
from jepa.evaluation_run import EvaluationRun
from jepa.runs import Run, fresh_objective, load_objective
from jepa.train import train


def smooth_images(count=300, channels=3, size=16, seed=0):
    """Draw images whose pixels and channels are correlated."""
    noise = torch.rand(count, channels, size + 2, size + 2, generator=torch.Generator().manual_seed(seed))
    smooth = F.avg_pool2d(noise, 3, 1) + noise.mean(1, keepdim=True)[..., 1:-1, 1:-1]
    return smooth / 2


def fitted_filters(images, kernel=3):
    layer = WhiteningFilters(images.shape[1], kernel, stride=1, padding=0)
    layer.fit(images)
    return layer


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_filter_responses_are_white(channels):
    images = smooth_images(channels=channels) - 0.5
    layer = fitted_filters(images)
    count = layer.out_channels // 2
    responses = F.conv2d(images, layer.filters[:count]).permute(1, 0, 2, 3).flatten(1)
    second_moments = responses @ responses.T / responses.shape[1]
    off_diagonal = second_moments - second_moments.diag().diag()
    assert off_diagonal.abs().max() < 0.05
    variances = second_moments.diag()
    assert (variances < 1.1).all()
    assert variances[0] > 0.9  # the filters are sorted by variance of the patches
    assert len(layer.filters) == 2 * channels * 9


def test_output_is_the_positive_and_the_negative_part():
    images = smooth_images(8)
    layer = fitted_filters(images)
    positive, negative = layer(images).chunk(2, 1)
    response = F.conv2d(images, layer.filters[: layer.out_channels // 2])
    torch.testing.assert_close(positive - negative, response)
    assert (positive * negative == 0).all()


def test_constant_images_give_finite_filters():
    layer = fitted_filters(torch.zeros(10, 3, 16, 16))
    assert layer.filters.isfinite().all()


@pytest.mark.parametrize("patch", [2, 4, 8, 16])
def test_stem_shape(patch):
    stem = build_stem("whitening", 3, 32, patch)
    assert stem(torch.rand(2, 3, 32, 16)).shape == (2, 32, 32 // patch, 16 // patch)


@pytest.mark.parametrize("backbone", [ViTConfig("16x2x2", patch=4), EnergyConfig("16x2x2", patch=4)])
def test_training_keeps_the_fitted_filters(tiny, tmp_path, backbone):
    config = dataclasses.replace(tiny, backbone=dataclasses.replace(backbone, stem="whitening"))
    path = tmp_path / "run"
    train(config, path)
    run = EvaluationRun.open(path)
    fresh = fresh_objective(Run.open(path).config).main_encoder
    filters = [encoder.backbone.stem[0].filters for encoder in (*run.encoders.values(), fresh)]
    assert all(torch.equal(filters[0], other) for other in filters[1:-1])  # trained, context and untrained encoder
    assert not torch.allclose(filters[0], filters[-1])
    untrained = run.encoders["untrained"]
    assert torch.equal(untrained.backbone.stem[1].weight, fresh.backbone.stem[1].weight)


def test_fit_is_the_same_for_every_encoder_of_an_objective(tiny):
    config = dataclasses.replace(tiny, backbone=ViTConfig("16x2x2", patch=4, stem="whitening"))
    data = dataclasses.replace(config.data, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1))
    objective = fresh_objective(dataclasses.replace(config, data=data))
    assert has_fitted_layers(objective)
    fit_layers(objective, (smooth_images() * 255).byte())
    layers = [module for module in objective.modules() if isinstance(module, FittedLayer)]
    assert len(layers) == 2
    assert torch.equal(layers[0].filters, layers[1].filters)
    other = fresh_objective(dataclasses.replace(config, data=data)).main_encoder
    copy_fitted_layers(other, objective.main_encoder)
    assert isinstance(other, Encoder)
    assert torch.equal(other.backbone.stem[0].filters, layers[0].filters)


def test_load_objective_gives_the_untrained_encoder_the_fitted_filters(tiny, tmp_path):
    config = dataclasses.replace(tiny, backbone=ViTConfig("16x2x2", patch=4, stem="whitening"))
    objective, untrained, metadata = load_objective(train(config, tmp_path / "run"))
    stem, trained = untrained.backbone.stem, objective.main_encoder.backbone.stem
    assert torch.equal(stem[0].filters, trained[0].filters)
    assert not torch.equal(stem[1].weight, trained[1].weight)
    assert metadata["step"] == config.steps
