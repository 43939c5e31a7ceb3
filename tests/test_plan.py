import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepa.plan import LEAST_CROP, Situation, plan

sides = st.integers(1, 10_000)
situations = st.builds(
    Situation,
    count=st.integers(4, 10_000_000),
    height=sides,
    width=sides,
    one_aspect=st.booleans(),
    grey=st.booleans(),
    device=st.sampled_from(["cpu", "cuda", "mps"]),
    cores=st.integers(1, 64),
    memory_gb=st.floats(4, 192),
)


@given(situations, st.none() | st.tuples(*[st.sampled_from([8, 32, 64, 90, 96, 97, 128, 224])] * 2))
def test_every_plan_is_a_config_that_fits(now, given_size):
    config, choices = plan("photos", now, given_size)  # an impossible one would raise
    view, canvas = config.data.size, config.data.canvas_size
    assert given_size is None or view == given_size
    assert all(length % config.backbone.patch == 0 for length in view)
    assert all(mine >= seen for mine, seen in zip(canvas, view, strict=True))
    assert config.batch_size & (config.batch_size - 1) == 0
    assert config.batch_size <= max(2, now.count / 4)
    assert config.steps >= 500
    assert config.data.channels == (1 if now.grey else 3)
    assert len({choice.flag for choice in choices}) == len(choices)
    assert all(choice.reason for choice in choices)


@given(situations)
def test_a_canvas_is_no_larger_than_crops_need_or_images_are(now):
    config, _ = plan("photos", now)
    view, canvas = config.data.size[0], min(config.data.canvas_size)
    assert canvas <= max(view, min(now.height, now.width))
    assert canvas <= view / LEAST_CROP**0.5 + 8


@given(situations, st.floats(1, 4))
def test_more_memory_never_means_a_smaller_batch(now, factor):
    more = dataclasses.replace(now, memory_gb=now.memory_gb * factor)
    assert plan("photos", more)[0].batch_size >= plan("photos", now)[0].batch_size


def test_one_aspect_is_kept_in_the_canvas():
    photos = Situation(1000, 3000, 4000, one_aspect=True)
    assert plan("photos", photos)[0].data.canvas == (112, 149)
    assert plan("photos", dataclasses.replace(photos, one_aspect=False))[0].data.canvas == 112


@pytest.mark.parametrize(("device", "size"), [("cpu", 64), ("cuda", 224)])
def test_the_device_decides_the_size(device, size):
    config, _ = plan("photos", Situation(20_000, 1200, 1600, device=device, memory_gb=80))
    assert config.data.size == (size, size)
    assert (size // config.backbone.patch) ** 2 in (64, 196)
