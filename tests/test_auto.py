import dataclasses
import json
import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from jepa.config import Config, InputError, is_power_of_two, recipe
from jepa.config.arguments import parse_train_arguments
from jepa.config.auto import CPU_SIZES, GPU_SIZES, MIN_CROP_AREA, DataSummary, auto_config
from jepa.config.serialization import from_dict, to_dict
from jepa.rng import Rng
from jepa.transforms.masks import MaskSampler

sides = st.integers(1, 10_000)
summaries = st.builds(
    DataSummary,
    count=st.integers(4, 10_000_000),
    height=sides,
    width=sides,
    one_aspect=st.booleans(),
    gray=st.booleans(),
    device=st.sampled_from(["cpu", "cuda", "mps"]),
    memory_gb=st.floats(4, 192),
)


lengths = st.sampled_from([28, 32, 48, 50, 64, 90, 96, 128, 160, 224, 384, 512])
given_sizes = st.none() | lengths.map(lambda side: (side, side)) | st.sampled_from([(96, 128), (128, 64), (60, 90)])


@given(summaries, given_sizes)
def test_every_summary_gives_a_config_that_fits(summary, given_size):
    config, settings = auto_config("photos", summary, given_size)  # an impossible one would raise
    view, canvas = config.data.size, config.data.canvas_size
    assert given_size is None or view == given_size
    assert all(length % config.backbone.patch == 0 for length in view)
    assert all(mine >= seen for mine, seen in zip(canvas, view, strict=True))
    assert config.batch_size & (config.batch_size - 1) == 0
    assert config.batch_size <= max(2, summary.count / 4)
    assert config.steps >= 500
    assert config.data.channels == (1 if summary.gray else 3)
    assert len({setting.flag for setting in settings}) == len(settings)
    assert all(setting.reason for setting in settings)


@given(summaries)
def test_a_canvas_is_no_larger_than_crops_need_or_images_are(summary):
    config, _ = auto_config("photos", summary)
    view, canvas = config.data.size[0], min(config.data.canvas_size)
    assert canvas <= max(view, min(summary.height, summary.width))
    assert canvas <= view / MIN_CROP_AREA**0.5 + 8


@given(summaries, st.floats(1, 4))
def test_more_memory_never_means_a_smaller_batch(summary, factor):
    more = dataclasses.replace(summary, memory_gb=summary.memory_gb * factor)
    assert auto_config("photos", more)[0].batch_size >= auto_config("photos", summary)[0].batch_size


def test_one_aspect_is_kept_in_the_canvas():
    photos = DataSummary(1000, 3000, 4000, one_aspect=True)
    assert auto_config("photos", photos)[0].data.canvas == (112, 149)
    assert auto_config("photos", dataclasses.replace(photos, one_aspect=False))[0].data.canvas == 112


@pytest.mark.parametrize(("device", "size"), [("cpu", 64), ("cuda", 224)])
def test_the_device_decides_the_size(device, size):
    config, _ = auto_config("photos", DataSummary(20_000, 1200, 1600, device=device, memory_gb=80))
    assert config.data.size == (size, size)
    assert (size // config.backbone.patch) ** 2 in (64, 196)


small_images = st.builds(
    dataclasses.replace, summaries, height=st.integers(1, 300), width=st.integers(1, 300), count=st.integers(4, 100)
)


def grid_of(config: Config) -> tuple[int, int]:
    height, width = config.data.size
    return height // config.backbone.patch, width // config.backbone.patch


@given(summaries | small_images, given_sizes)
def test_configs_go_to_json_and_back_and_their_schedules_fit_the_run(summary, given_size):
    config, settings = auto_config("photos", summary, given_size)
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config
    assert 2 <= config.batch_size <= summary.count / 2
    assert config.optim.warmup <= config.steps / 4
    assert config.objective.ema_half_life <= config.objective.ema_half_life_end < config.steps
    assert 0 < config.save_every <= config.steps
    assert 0 < config.eval_every <= config.steps
    repetitions = 800 if summary.device == "cuda" else 400
    assert config.steps * config.batch_size <= max(500 * config.batch_size, repetitions * summary.count)
    assert all("\n" not in setting.flag + setting.value + setting.reason for setting in settings)


@given(summaries | small_images)
@example(DataSummary(1000, 64, 80))
@example(DataSummary(1000, 300, 192, device="cuda"))
def test_a_view_is_the_largest_square_that_the_images_fill(summary):
    config, _ = auto_config("photos", summary)
    known = GPU_SIZES if summary.device == "cuda" else CPU_SIZES
    filled = [size for size in known if size <= min(summary.height, summary.width)]
    assert config.data.image_size == max(filled, default=known[0])
    assert max(grid_of(config)) <= (16 if summary.device == "cuda" else 8)


@given(summaries | small_images, given_sizes)
def test_a_canvas_has_no_side_that_the_images_do_not_have(summary, given_size):
    config, _ = auto_config("photos", summary, given_size)
    view, canvas, image = config.data.size, config.data.canvas_size, (summary.height, summary.width)
    filled = all(has >= seen for has, seen in zip(image, view, strict=True))
    if filled or not summary.one_aspect or view[0] != view[1] or max(image) > 2 * min(image):
        assert all(mine <= max(seen, has) for mine, seen, has in zip(canvas, view, image, strict=True))
    else:
        assert min(canvas) == view[0]  # enlarged as far as it must be


@given(summaries | small_images, given_sizes)
def test_the_smallest_crop_is_enlarged_only_where_the_images_are_too_small(summary, given_size):
    config, _ = auto_config("photos", summary, given_size)
    needed = [math.ceil(seen / math.sqrt(MIN_CROP_AREA)) for seen in config.data.size]
    if summary.height >= needed[0] + 8 and summary.width >= needed[1] + 8:
        assert all(mine >= least for mine, least in zip(config.data.canvas_size, needed, strict=True))


@given(summaries | small_images)
def test_a_canvas_of_one_aspect_has_that_of_the_images(summary):
    down, across = auto_config("photos", dataclasses.replace(summary, one_aspect=True))[0].data.canvas_size
    if max(summary.height, summary.width) <= 2 * min(summary.height, summary.width):
        assert (
            abs(down * summary.width - across * summary.height) <= (summary.height + summary.width) / 2 + 1e-3
        )  # to half a pixel
    else:
        assert down == across


@pytest.mark.parametrize("view", [(1, 1), (3, 3), (37, 37), (97, 97), (90, 97)])
def test_views_that_no_patch_suits_are_refused_with_one_that_does(view):
    summary = DataSummary(1000, 1200, 1600)
    with pytest.raises(InputError, match="choose --data") as refused:
        auto_config("photos", summary, view)
    sizes = [int(word) for word in str(refused.value).split("--data.image-size ")[1].split()]
    assert auto_config("photos", summary, (sizes[0], sizes[-1]))[0].data.size == (sizes[0], sizes[-1])


@given(summaries, given_sizes)
def test_on_the_cpu_the_method_is_that_of_ijepa_cifar10(summary, given_size):
    config = auto_config("photos", dataclasses.replace(summary, device="cpu"), given_size)[0]
    tuned = recipe("ijepa-cifar10")
    views = {"crop": config.objective.crop, "masks": config.objective.masks}
    assert dataclasses.replace(tuned.objective, **views) == config.objective
    assert config.optim == dataclasses.replace(tuned.optim, warmup=config.optim.warmup)
    if is_power_of_two(config.backbone.patch):
        assert config.backbone.stem == tuned.backbone.stem


def test_memory_and_number_of_images_decide_the_batch():
    def batch(count: int, memory: float, device: str = "cuda") -> int:
        return auto_config("photos", DataSummary(count, 500, 500, device=device, memory_gb=memory))[0].batch_size

    assert batch(10**6, 8) < batch(10**6, 24) < batch(10**6, 80)
    assert batch(10**7, 10_000) == 1024
    assert [batch(count, 10_000) for count in (4, 8, 11, 400, 4096, 4097)] == [2, 2, 2, 64, 1024, 1024]
    assert [batch(count, 16, "cpu") for count in (4, 100, 512, 10**7)] == [2, 16, 128, 128]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_automatic_configs_can_be_masked(device):
    views = [None, (96, 128), (90, 90), (100, 75), (28, 28), (50, 50), (99, 99), (128, 64), (256, 256), (8, 8)]
    summaries = [DataSummary(1000, side, side, device=device) for side in (1, 40, 64, 100, 130, 170, 200, 500)]
    planned = [auto_config("photos", summary)[0] for summary in summaries]
    planned += [auto_config("photos", summaries[-1], view)[0] for view in views]
    for config in {(grid_of(config), config.objective.masks): config for config in planned}.values():
        sampler = MaskSampler(config.objective.masks, grid_of(config))
        masks = sampler.sample(Rng(0, 0, torch.arange(16)))
        assert masks.context_valid.sum(-1).min() >= config.objective.masks.min_context
        assert masks.targets_valid.any((1, 2)).all()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("one_aspect", [False, True])
@pytest.mark.parametrize("view", [None, (96, 128), (90, 90)])
def test_settings_on_the_command_line_give_the_same_config(device, one_aspect, view, tmp_path):
    summary = DataSummary(5000, 300, 400, one_aspect, gray=one_aspect, device=device)
    config, settings = auto_config("photos", summary, view)
    data = dataclasses.replace(config.data, image_size=32, canvas=None, channels=4 - config.data.channels)
    other = dataclasses.replace(
        config,
        steps=1,
        batch_size=1024,
        data=data,
        backbone=dataclasses.replace(config.backbone, size="32x1", patch=32),
    )
    flags = [word for setting in settings for word in (setting.flag, *setting.value.split())]
    (tmp_path / "other.json").write_text(json.dumps(to_dict(other)))
    arguments = ["--config", str(tmp_path / "other.json"), *flags]
    assert parse_train_arguments(arguments, summarize=None).config == config


def test_gray_images_have_one_channel_and_larger_sets_larger_models():
    def planned(count: int, **changes) -> Config:
        return auto_config("photos", DataSummary(count, 500, 500, device="cuda", memory_gb=80, **changes))[0]

    assert planned(1000, gray=True).data.channels == 1
    widths = [planned(count).backbone.dimensions[0] for count in (1000, 100_000, 10**6)]
    assert widths == sorted(set(widths))
    steps = [planned(count).steps for count in (10**5, 10**6, 10**7)]
    assert steps == sorted(steps)
