import dataclasses

import pytest
import torch

from jepa.backbones import build_encoder
from jepa.config import DataConfig, InputError, PlainConvNetConfig, SaccadeConfig
from jepa.evaluate import evaluate
from jepa.train import train


def data(size=32, channels=3):
    return DataConfig(image_size=size, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)


@pytest.mark.parametrize(
    ("config", "size", "dim", "grid"),
    [
        (PlainConvNetConfig(), 32, 1024, (4, 4)),
        (PlainConvNetConfig(width=8, stages=1, dim=16), 32, 16, (16, 16)),
        (PlainConvNetConfig(width=16, stages=2, dim=8), (24, 40), 8, (6, 10)),
        (PlainConvNetConfig(width=4, stages=5, dim=128), 128, 128, (4, 4)),
        (PlainConvNetConfig(width=8, dim=64), 28, 64, (3, 3)),
    ],
)
def test_shapes(config, size, dim, grid):
    encoder = build_encoder(config, data(size)).eval()
    tokens = encoder(torch.rand(2, 3, *encoder.size), layers=range(encoder.backbone.num_layers))
    assert tokens.grid == grid
    assert tokens.x.shape == (2, grid[0] * grid[1], dim)
    assert encoder.backbone.dim == dim
    assert torch.equal(tokens.layers[-1], tokens.x)
    assert len(tokens.layers) == config.stages + 2
    assert encoder.embed(torch.rand(2, 3, 50, 70)).shape == (2, dim)


def test_grayscale_and_only_the_filters_are_not_learned():
    encoder = build_encoder(PlainConvNetConfig(width=8), data(channels=1))
    encoder(torch.rand(4, 1, 32, 32)).x.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    assert "backbone.filters.filters" not in dict(encoder.named_parameters())


def test_too_many_stages_and_invalid_settings():
    with pytest.raises(InputError, match=r"stride is 64, larger than the image of 32x32; choose fewer stages"):
        build_encoder(PlainConvNetConfig(stages=6), data())
    with pytest.raises(InputError, match=r"backbone\.width must be an integer of at least 1, got 0"):
        PlainConvNetConfig(width=0)
    with pytest.raises(InputError, match=r"backbone\.dim must be an integer of at least 1, got 0"):
        PlainConvNetConfig(dim=0)
    with pytest.raises(InputError, match=r"backbone\.stages must be an integer between 1 and 8, got 9"):
        PlainConvNetConfig(stages=9)


def test_train_and_evaluate(tiny, tmp_path):
    config = dataclasses.replace(
        tiny, backbone=PlainConvNetConfig(width=8, stages=2, dim=32), objective=SaccadeConfig(hidden=16, patch_codes=1)
    )
    train(config, tmp_path / "run")
    result = evaluate(tmp_path / "run")
    assert {"trained", "context", "untrained", "pixels"} <= result.keys()
    assert 0 <= result["trained"]["knn"] <= 100
