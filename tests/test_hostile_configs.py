"""Whatever a config file contains, it is read, or rejected in one sentence, and never takes all memory later."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jepa.config import (
    BACKBONES,
    OBJECTIVES,
    ColorConfig,
    Config,
    CropConfig,
    DataConfig,
    EnergyConfig,
    InputError,
    PlainConvNetConfig,
    SaccadeConfig,
    ViTConfig,
    parse_width,
)
from jepa.config.backbones import MAX_DIM, MAX_PARAMETERS, MAX_TOKENS
from jepa.config.data import MAX_SIDE
from jepa.config.serialization import flat, from_dict, read_config, to_dict
from jepa.files import printable

CONFIGS = [
    *(Config(backbone=ViTConfig(), objective=make()) for make in OBJECTIVES if make is not SaccadeConfig),
    *(
        Config(data=DataConfig(canvas=64), backbone=make(), objective=SaccadeConfig(color=ColorConfig(0.4, 0.1)))
        for make in BACKBONES
    ),
]
HARMLESS = {"log_every", "eval_every", "save_every", "objective.masks.min_context"}
"""Integers of any size that no memory and no time depends on."""
JUNK: list[Any] = [
    None,
    True,
    -1,
    0,
    2**70,
    10**400,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "\0",
    "x" * 10**5,
    "é\ud800\n",
]
JUNK += ["32x100000x2", "2²x1", "adm", [], [[[]]], [1, 2], [1e308] * 3, {}, {"kind": 3}, {"\x1b": 1}]
values = st.sampled_from(JUNK).map(copy.deepcopy) | st.integers() | st.floats() | st.text(max_size=8)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("configs") / "config.json"


def check(path: Path, content: bytes) -> None:
    """Read a config file, and check that it is within the limits or that the message is one line."""
    path.write_bytes(content)
    try:
        config = read_config(path)
    except InputError as error:
        assert printable(str(error)) == str(error)  # noqa: PT017
        return
    assert max(config.data.size + config.data.canvas_size) <= MAX_SIDE
    if isinstance(config.backbone, ViTConfig | EnergyConfig):
        dim, depth = config.backbone.dimensions[:2]
        assert 12 * dim**2 * depth <= MAX_PARAMETERS
        assert config.data.size[0] * config.data.size[1] / config.backbone.patch**2 <= MAX_TOKENS
    if isinstance(config.backbone, PlainConvNetConfig):
        assert config.backbone.width * config.backbone.stride <= MAX_DIM


def places(values: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the paths of all settings and groups of settings."""
    inner = (
        [p for name, value in values.items() for p in places(value, (*path, name))] if isinstance(values, dict) else []
    )
    return [path, *inner] if path else inner


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), config=st.sampled_from(CONFIGS))
def test_mutated_settings(data, config, path):
    settings_ = copy.deepcopy(to_dict(config))
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, name = data.draw(st.sampled_from(places(settings_)))
        group = settings_
        for parent in parents:
            group = group[parent]
        action = data.draw(st.sampled_from(["set", "delete", "add"]))
        if action == "delete":
            del group[name]
        else:
            group[name if action == "set" else data.draw(st.text(max_size=8))] = data.draw(values)
    check(path, json.dumps(settings_).encode())


@settings(max_examples=100, deadline=None)
@given(data=st.data(), config=st.sampled_from(CONFIGS))
def test_damaged_files(data, config, path):
    content = bytearray(json.dumps(to_dict(config)).encode())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    check(path, bytes(content[: data.draw(st.integers(0, len(content)))]))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"objective": 3}',
        b'{"data": {"mean": ' + b"[" * 500 + b"]" * 500 + b"}}",
        b'{"steps": ' + b"9" * 5000 + b"}",
        b'{"name": "a\\u0000b"}',
        b'{"data": {"source": "a\\u0000b"}}',
        b'{"data": {"source": ""}}',
        b'{"optim": {"lr": NaN}}',
        b'{"device": "\\ud800\\n"}',
        b'{"code": {"file": "\\u0000", "sha256": "x"}}',
        b'{"code": {"file": "../a.py", "sha256": "x"}}',
        b'{"code": [1]}',
        b"null",
    ],
)
def test_hostile_files(content, path):
    check(path, content)


def at(config: Config, setting: str, value: Any) -> dict[str, Any]:
    """Return the JSON values of a config with one setting replaced."""
    values = to_dict(config)
    *parents, name = setting.split(".")
    group = values
    for parent in parents:
        group = group[parent]
    group[name] = value
    return values


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.objective.kind}-{config.backbone.kind}")
def test_every_number_has_a_limit(config):
    for setting, value in flat(config).items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if setting in HARMLESS or setting.endswith("kind") or not whole:
            continue
        for number in (2**70, 10**400, -(2**70)):
            with pytest.raises(InputError):
                from_dict(Config, at(config, setting, number))


@pytest.mark.parametrize(
    "size", ["32x100000x2", "100000x2", "16384x1000", "2²x1", "99999999999999999999x1", "1x" * 5000]
)
def test_sizes_that_no_memory_holds(size):
    for make in (ViTConfig, EnergyConfig):
        with pytest.raises(InputError, match=r"backbone\.size must"):
            make(size=size)
    with pytest.raises(InputError, match="here must"):
        parse_width(size, "here")


def test_images_that_no_memory_holds():
    with pytest.raises(InputError, match=r"data\.canvas must be at most 8,192 pixels, got 1000000"):
        DataConfig(canvas=10**6)
    with pytest.raises(InputError, match=r"has 67,108,864 patches with backbone\.patch 1"):
        Config(data=DataConfig(image_size=8192), backbone=ViTConfig(patch=1), batch_size=1)
    with pytest.raises(InputError, match="a microbatch of 1,000 images of 8192x8192 pixels would take 201 GB"):
        Config(data=DataConfig(image_size=8192), batch_size=1000)
    with pytest.raises(InputError, match="two positive ratios"):
        CropConfig(aspect=(1.0, float("inf")))


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "-x",
        "a/b",
        "/a",
        "a\\b",
        "a\0b",
        "a\nb",
        "a\x1b[31m",
        " a",
        "a ",
        "x" * 201,
        "é" * 101,
        "\ud800",
    ],
)
def test_names_that_are_no_folder_names(name):
    with pytest.raises(InputError, match="name must be a plain folder name") as caught:
        Config(name=name)
    assert printable(str(caught.value)) == str(caught.value)


@pytest.mark.parametrize("name", ["demo", "ijepa-cifar10", "my run 3", "größe", "v1.2_b", "x" * 200])
def test_names_of_folders(name):
    assert Config(name=name).name == name
