"""Automatic settings of Saccade JEPA."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepa.config import BACKBONES, Config, InputError, recipe
from jepa.config.arguments import parse_train_arguments
from jepa.config.auto import CPU_SIZES, GPU_SIZES, DataSummary
from jepa.config.auto_saccade import CODED, auto_saccade_config
from jepa.config.serialization import from_dict, to_dict
from jepa.runs import fresh_objective
from tests.test_auto import given_sizes, small_images, summaries


@given(summaries | small_images, given_sizes)
def test_every_summary_gives_a_config_that_fits(summary, given_size):
    config, settings = auto_saccade_config("photos", summary, given_size)  # an impossible one would raise
    view, canvas, on_gpu = config.data.size, config.data.canvas_size, summary.device == "cuda"
    known = GPU_SIZES if on_gpu else CPU_SIZES
    filled = [size for size in known if size <= min(summary.height, summary.width)]
    assert view == (given_size or (max(filled, default=known[0]),) * 2)
    longest = 2 if summary.one_aspect else 1  # a canvas with the aspect ratio of the images
    assert all(
        seen <= mine <= longest * (seen * CODED.fixations.zoom + 8) for mine, seen in zip(canvas, view, strict=True)
    )
    assert 4 <= min(view) // config.backbone.stride < 8
    assert config.batch_size & (config.batch_size - 1) == 0
    assert 2 <= config.batch_size <= min(512 if on_gpu else 256, summary.count / 2)
    assert config.steps * config.batch_size <= max(500 * config.batch_size, 400 * summary.count)
    assert config.data.channels == (1 if summary.gray else 3)
    assert config.optim.warmup <= config.steps / 4
    assert 0 < config.save_every <= config.steps
    assert 0 < config.eval_every <= config.steps
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config
    assert len({setting.flag for setting in settings}) == len(settings)
    assert all(setting.reason and "\n" not in setting.value + setting.reason for setting in settings)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_method_is_that_of_the_recipe_for_cifar10(device):
    tuned = recipe("saccade-cifar10" if device == "cpu" else "saccade-cifar10-gpu")
    config = auto_saccade_config("photos", DataSummary(50_000, 32, 32, device=device, memory_gb=80))[0]
    for name in ("backbone", "objective", "batch_size"):
        assert getattr(config, name) == getattr(tuned, name)
    assert config.optim == dataclasses.replace(tuned.optim, warmup=config.optim.warmup)
    assert 0.9 < config.steps / tuned.steps < 1.1


def test_wider_views_have_more_stages_of_fewer_channels():
    configs = [
        auto_saccade_config("photos", DataSummary(9000, 500, 500), (side, side))[0].backbone for side in (32, 64, 128)
    ]
    assert [(x.stages, x.width) for x in configs] == [(3, 64), (4, 32), (5, 16)]


def test_long_views_are_rotated_less_and_longer_ones_refused():
    photos = DataSummary(1000, 900, 900)
    rotations = [
        auto_saccade_config("photos", photos, view)[0].objective.fixations.rotation
        for view in ((64, 64), (64, 96), (128, 64), (64, 256))
    ]
    assert rotations == sorted(rotations, reverse=True)
    assert rotations[0] == 15
    assert rotations[-1] < 10
    with pytest.raises(InputError, match=r"data\.image_size is 16x512, .* choose one that is closer to a square"):
        auto_saccade_config("photos", photos, (16, 512))
    with pytest.raises(InputError, match="photos has 1 training image; training requires at least 2"):
        auto_saccade_config("photos", DataSummary(1, 900, 900))


def test_tiny_views_have_no_codes_of_patches():
    config = auto_saccade_config("photos", DataSummary(100, 6, 6), (6, 6))[0]
    assert config.objective.patch_codes == 0
    fresh_objective(dataclasses.replace(config, data=dataclasses.replace(config.data, mean=(0.5,) * 3, std=(0.2,) * 3)))


@pytest.mark.parametrize("view", [(1, 1), (3, 3), (3, 5)])
def test_views_smaller_than_a_whitening_filter_are_refused(view):
    height, width = view
    for device in ("cpu", "cuda"):
        with pytest.raises(
            InputError, match=f"at least 4x4 pixels, got {height}x{width}; choose a larger --data.image"
        ):
            auto_saccade_config("photos", DataSummary(100, 6, 6, device=device), view)
    for kind in ("vit", "energy"):
        tiny = dataclasses.replace(recipe("demo").data, image_size=(2, 2))
        with pytest.raises(InputError, match="at least 4x4 pixels, got 2x2"):
            BACKBONES.config_class(kind, "backbone")(patch=2, stem="whitening").check_data(tiny)


@given(st.floats(1, 4))
def test_less_memory_means_a_smaller_batch(factor):
    def batch(memory: float) -> int:
        summary = DataSummary(10**6, 500, 500, device="cuda", memory_gb=memory)
        return auto_saccade_config("photos", summary)[0].batch_size

    assert batch(4) <= batch(4 * factor) <= batch(1000) == 512
    assert batch(4) < 512


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("view", [None, (96, 128), (90, 90)])
def test_settings_on_the_command_line_give_the_same_config(device, view, tmp_path):
    config, settings = auto_saccade_config("photos", DataSummary(5000, 300, 400, device=device), view)
    data = dataclasses.replace(config.data, image_size=32, canvas=None, channels=1)
    backbone = dataclasses.replace(config.backbone, width=8, stages=1)
    other = dataclasses.replace(config, steps=1, batch_size=1024, data=data, backbone=backbone)
    flags = [word for setting in settings for word in (setting.flag, *setting.value.split())]
    (tmp_path / "other.json").write_text(json.dumps(to_dict(other)))
    arguments = ["--config", str(tmp_path / "other.json"), *flags]
    assert parse_train_arguments(arguments, summarize=None).config == config
