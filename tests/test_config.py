import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepa.config import (
    Config,
    CropConfig,
    DataConfig,
    IJepaConfig,
    InputError,
    MaskConfig,
    OptimConfig,
    ViTConfig,
    parse_width,
    suggest,
)
from jepa.config.recipes import RECIPES, documentation
from jepa.config.serialization import flat, from_dict, read_config, to_dict


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_go_to_json_and_back(name):
    config = RECIPES[name]()
    assert config.name == name
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config
    assert {"what", "command", "time", "result"} <= documentation(RECIPES[name]).keys()


@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    clip=st.none() | st.floats(0.1, 10),
    mean=st.none() | st.tuples(*[st.floats(0, 1)] * 3),
    shared=st.booleans(),
)
def test_any_config_goes_to_json_and_back(size, clip, mean, shared):
    config = Config(
        data=DataConfig(image_size=(16 * size[0], 16 * size[1]), mean=mean),
        objective=IJepaConfig(masks=MaskConfig(shared=shared)),
        optim=OptimConfig(clip=clip),
    )
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config


def test_parts_carry_their_kind():
    values = to_dict(Config())
    assert values["backbone"]["kind"] == "vit"
    assert values["objective"]["kind"] == "ijepa"
    assert flat(Config())["objective.masks.targets"] == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepz": 3}, "config has no setting 'stepz'; did you mean 'steps'?"),
        ({"steps": "many"}, "config.steps must be an integer, got 'many'"),
        ({"steps": True}, "config.steps must be an integer, got true"),
        (
            {"backbone": {"kind": "vitt"}},
            "config.backbone.kind must be one of vit, energy, convnet, timm-vit, plain-convnet, got 'vitt'; did you "
            "mean 'vit'?",
        ),
        ({"precision": "fp8"}, "config.precision must be one of auto, fp32, bf16, got 'fp8'"),
        ({"objective": {"crop": {"scale": [0.5]}}}, "config.objective.crop.scale must be"),
        ({"data": {"channels": 1.0}}, "config.data.channels must be one of 1, 3, got 1.0"),
        ([], "config must be a JSON object of settings, got []"),
    ],
)
def test_bad_json_is_refused_in_one_sentence(values, message):
    with pytest.raises(InputError, match=re.escape(message)):
        from_dict(Config, values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Config(steps=0), "steps must be an integer of at least 1, got 0"),
        (lambda: Config(batch_size=10, accumulate=3), "batch_size must be a multiple of accumulate (3), got 10"),
        (lambda: Config(backbone=ViTConfig(patch=5), data=DataConfig(image_size=32)), "--data.image-size 30"),
        (lambda: Config(eval_every=-1), "eval_every must be an integer of at least 0, got -1"),
        (lambda: ViTConfig(size="bas"), "did you mean 'base'?"),
        (lambda: ViTConfig(size="100x4x3"), "100 is not divisible by 3 heads"),
        (lambda: ViTConfig(size="12"), "DIMxDEPTH"),
        (lambda: ViTConfig(patch=14, stem="conv"), "power of 2"),
        (lambda: CropConfig(scale=(0.5, 0.2)), "crop.scale"),
        (lambda: MaskConfig(target_scale=(0.0, 0.2)), "masks.target_scale"),
        (lambda: MaskConfig(targets=0), "masks.targets must be an integer of at least 1, got 0"),
        (lambda: IJepaConfig(variance=-1), "objective.variance must be at least 0, got -1"),
        (lambda: IJepaConfig(ema_half_life=0), "objective.ema_half_life must be positive, got 0"),
        (lambda: OptimConfig(lr=-1), "optim.lr must be finite and at least 0, got -1"),
        (lambda: DataConfig(channels=3, mean=(0.5,)), "data.mean must have 3 values, one per channel, got 1"),
        (lambda: DataConfig(canvas=0), "data.canvas must be at least 1 pixel, got 0"),
        (lambda: DataConfig(std=(0.0, 1.0, 1.0)), "data.std must be positive"),
        (lambda: OptimConfig(betas=(0.9, 1.0)), "optim.betas must be two values in [0, 1)"),
        (lambda: Config(seed=-1), "seed must be an integer"),
        (lambda: Config(batch_size=4, accumulate=4, objective=IJepaConfig(variance=1)), "give --batch-size 8 or more"),
        (lambda: DataConfig(holdout=0.7), "data.holdout must be at least 0 and below 0.5, got 0.7"),
    ],
)
def test_impossible_settings_are_refused_in_one_sentence(make, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_widths():
    assert parse_width("192x6", "here") == (192, 6, 3)
    assert parse_width("96x4", "here") == (96, 4, 3)
    assert parse_width("64x2x4", "here") == (64, 2, 4)


def test_suggestions():
    assert suggest("dmeo", ["demo", "other"]) == "; did you mean 'demo'?"
    assert suggest("zzz", ["demo"]) == ""


def test_a_config_file_that_cannot_be_used(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        read_config(tmp_path / "bad.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_config(tmp_path / "none.json")
    (tmp_path / "good.json").write_text(json.dumps(to_dict(dataclasses.replace(Config(), steps=3))))
    assert read_config(tmp_path / "good.json").steps == 3
