"""`ijepa-folder` and `saccade-folder` on the command line: automatic settings, and flags that override them."""

import dataclasses
import re
from pathlib import Path

import pytest

from jepa.config import Config
from jepa.config.arguments import AUTO_RECIPES
from jepa.data import CACHE
from jepa.data.inspect import summarize_source
from jepa.runs import Run
from tests.test_cli import call
from tests.zoo import write_pets


@pytest.fixture
def pets(tmp_path) -> Path:
    return write_pets(tmp_path / "pets")


@pytest.fixture
def started(monkeypatch) -> list[tuple[Config, Path]]:
    """Record the runs started by `jepa train`, without training."""
    runs: list[tuple[Config, Path]] = []
    monkeypatch.setattr("jepa.train.train", lambda config, path, resume: runs.append((config, path)))
    return runs


@pytest.mark.parametrize("recipe", AUTO_RECIPES)
@pytest.mark.parametrize(
    ("flags", "size"),
    [
        ([], None),
        (["--data.image-size", "96"], (96, 96)),
        (["--data.image-size=90"], (90, 90)),
        (["--data.image-size", "96", "128"], (96, 128)),
        (["--data.image-size", "96", "128", "--seed", "3"], (96, 128)),
        (["--seed", "3", "--data.image-size", "28"], (28, 28)),
    ],
)
def test_settings_are_chosen_from_the_images_and_printed(capsys, started, pets, tmp_path, recipe, flags, size):
    run = tmp_path / "runs" / "r"
    command = ["train", recipe, "--data", str(pets), "--run", str(run), "--device", "cpu", *flags]
    code, _, err = call(capsys, *command)
    assert code == 0, err
    assert (run.parent / CACHE.name).is_dir()  # the index is next to the run
    summary, line = summarize_source(str(pets), "cpu")
    config, settings = AUTO_RECIPES[recipe](str(pets), summary, size)
    seed = 3 if "--seed" in flags else 0
    assert started == [(dataclasses.replace(config, device="cpu", seed=seed), run)]
    lines = err.splitlines()
    assert line in lines[0]
    assert [text.split() for text in lines[1:]] == [
        [setting.flag, *setting.value.split(), *setting.reason.split()]
        for setting in settings
        if setting.flag != "--data.image-size" or size is None  # which was given
    ]


def test_flags_override_automatic_settings(capsys, started, pets, tmp_path):
    command = ["train", "ijepa-folder", f"--data={pets}", "--device=cpu", f"--run={tmp_path / 'r'}"]
    flags = ["--steps=7", "--batch-size=4", "--backbone.patch=16", "--data.canvas", "50", "40", "--data.channels", "1"]
    code, _, err = call(capsys, *command, *flags)
    assert code == 0, err
    assert not re.search(r"^  --(steps|batch-size|backbone.patch|data.canvas|data.channels) ", err, re.MULTILINE)
    config = started[0][0]
    assert (config.steps, config.batch_size, config.backbone.patch) == (7, 4, 16)
    assert (config.data.canvas, config.data.channels) == ((50, 40), 1)


def test_images_are_required_and_inspected_for_these_recipes_only(capsys, started, monkeypatch, pets, tmp_path):
    for recipe in AUTO_RECIPES:
        code, _, err = call(capsys, "train", recipe, "--run", str(tmp_path / "r"))
        assert code == 2
        assert err.startswith(f"jepa: {recipe} derives its settings from your images; ")
        assert err.endswith("--data PATH/TO/FOLDER\n")
    monkeypatch.setattr("jepa.data.inspect.summarize_source", None)  # fails if it is called
    assert not call(capsys, "train", "ijepa-folder", "--help")[0]
    assert call(capsys, "train", "demo", "--data", str(pets), "--run", str(tmp_path / "r"))[0] == 0
    assert started[0][0].name == "demo"


def test_only_the_first_process_prints_the_settings(capsys, started, monkeypatch, pets, tmp_path):
    monkeypatch.setenv("RANK", "1")
    command = ["train", "ijepa-folder", "--data", str(pets), "--device", "cpu", "--run", str(tmp_path / "r")]
    code, _, err = call(capsys, *command)
    assert (code, err) == (0, "")
    assert len(started) == 1


def test_a_run_is_resumed_with_its_own_settings(capsys, monkeypatch, pets, tmp_path):
    command = ["train", "ijepa-folder", "--data", str(pets), "--run", str(tmp_path / "run")]
    small = ["--device", "cpu", "--backbone.size", "32x1x2", "--objective.predictor", "16x1x2", "--eval-every", "0"]
    code, _, err = call(capsys, *command, "--steps", "2", *small)
    assert code == 0, err
    before = Run.open(tmp_path / "run").config
    monkeypatch.setattr("jepa.data.inspect.summarize_source", None)
    code, _, err = call(capsys, *command, "--resume", "--steps", "3")
    assert code == 0, err
    after = Run.open(tmp_path / "run")
    assert after.config == dataclasses.replace(before, steps=3)
    assert after.load()[1]["step"] == 3
