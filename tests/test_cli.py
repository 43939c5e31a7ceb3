import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import jepa
from jepa.cli import main
from jepa.config import EnergyConfig
from jepa.config.arguments import expand_home
from jepa.config.recipes import RECIPES
from jepa.config.serialization import read_config, to_dict
from jepa.runs import Run

ROOT = Path(__file__).resolve().parent.parent


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    """Run the command in this process; return exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    output = capsys.readouterr()
    return int(caught.value.code or 0), output.out, output.err


@pytest.fixture
def config_file(tiny, tmp_path) -> str:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(to_dict(tiny)))
    return str(path)


def test_train_evaluate_and_train_again(capsys, config_file, tmp_path, short_report):
    run = str(tmp_path / "run")
    code, out, _ = call(capsys, "train", "--config", config_file, "--run", run, "--steps", "4")
    assert (code, Run.open(run).config.steps) == (0, 4)
    assert f"jepa evaluate {run}" in out
    code, out, err = call(capsys, "evaluate", run)
    assert code == 0
    assert "raw pixels" in out
    assert not re.search(r"[\r\x1b]", out + err)
    assert "untrained" in out
    short_report("spectrum")
    code, out, _ = call(capsys, "evaluate", run, "--json")
    assert json.loads(out) == json.loads((tmp_path / "run" / "evaluation.json").read_text())
    code, _, err = call(capsys, "train", "--config", config_file, "--run", run)
    assert code == 2
    assert all(word in err for word in ("already exists", "jepa evaluate", "--resume", "--run DIR"))
    code, _, err = call(capsys, "train", "--run", run, "--resume", "--steps", "6")
    assert code == 0
    assert Run.open(run).load()[1]["step"] == 6


def test_resume_finds_the_run_by_its_name(capsys, monkeypatch, tmp_path, tiny):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.json").write_text(json.dumps(to_dict(tiny)))
    call(capsys, "train", "--config", "tiny.json", "--run", "runs/mine", "--steps", "3", "--optim.lr", "2e-3")
    code, _, err = call(capsys, "train", "demo", "--name", "mine", "--resume", "--steps", "4")
    assert (code, Run("runs/mine").load()[1]["step"]) == (0, 4), err


def test_resume_does_not_write_into_a_folder_that_is_no_run(capsys, tmp_path):
    (tmp_path / "photo.jpg").touch()
    code, _, err = call(capsys, "train", "--resume", "--run", str(tmp_path))
    assert code == 2
    assert "is not a run folder" in err
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_data_is_short_for_data_source(capsys, config_file, tmp_path):
    for flag in (["--data", "nowhere"], ["--data=nowhere"], ["--data.source", "nowhere"]):
        code, _, err = call(capsys, "train", "--config", config_file, "--run", str(tmp_path / "run"), *flag)
        assert code == 2
        assert err.startswith("jepa: nowhere does not exist; --data takes 'sample', a folder of images, ")
        assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_one_flag_replaces_the_backbone(capsys, config_file, tmp_path):
    run = tmp_path / "run"
    flags = ["--backbone", "energy", "--backbone.alpha", "0.2"]
    assert call(capsys, "train", "--config", config_file, "--run", str(run), *flags)[0] == 0
    backbone, before = Run(run).config.backbone, read_config(config_file).backbone
    assert backbone == EnergyConfig(size=before.size, patch=before.patch, stem=before.stem, alpha=0.2)
    code, _, err = call(capsys, "train", "--run", str(run), "--resume", "--steps", "9", "--backbone", "vit")
    assert code == 2
    assert "was trained with backbone.kind = energy and cannot be resumed with vit" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "there is no command 'trian'; did you mean 'train'?"),
        (["train", "dmeo"], "there is no recipe 'dmeo'; did you mean 'demo'?"),
        (["train", "--stepz", "3"], "--steps"),
        (["train", "--steps", "0"], "steps must be an integer of at least 1, got 0"),
        (["train", "--steps", "many"], "many"),
        (
            ["train", "--backbone.stem", "linear", "--backbone.patch", "5"],
            "the image size 28x28 is not divisible by backbone.patch, which is 5",
        ),
        (
            ["train", "--backbone", "enrgy"],
            "--backbone must be one of vit, energy, convnet, timm-vit, plain-convnet, got 'enrgy'; did you mean "
            "'energy'?",
        ),
        (
            ["train", "--backbone", "energy", "--backbone.alpha", "-1"],
            "backbone.alpha must be between 1e-06 and 1e+06, got -1.0",
        ),
        (
            ["train", "--backbone", "--steps", "1"],
            "--backbone has no value; give one of vit, energy, convnet, timm-vit, plain-convnet",
        ),
        (["train", "--backbone", "energy", "--backbone.size", "96x4x5"], "96 is not divisible by 5 heads"),
        (["train", "--batch-size", "20000"], "choose --batch-size"),
        (["train", "--device", "tpu9"], "device must be auto, cpu, cuda, cuda:1 or mps, got 'tpu9'"),
        (["train", "--config", "nowhere.json"], "the config nowhere.json cannot be read"),
        (["train", "demo", "--config", "x.json"], "not both"),
        (["train", "--run", "."], "exists and is not a run folder"),
        (["evaluate", "nowhere"], "there is no run folder nowhere"),
        (["evaluate", "."], "is not a run folder"),
        (["evaluate"], "RUN"),
    ],
)
def test_bad_input_is_one_sentence_without_a_traceback(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    code, out, err = call(capsys, *arguments)
    assert code == 2
    words = re.sub(r"[\s│]+", " ", out + err)
    assert message in words
    assert "Traceback" not in words
    assert {path.name for path in tmp_path.iterdir()} <= {"something", "runs"}
    assert not (tmp_path / "runs").exists() or [path.name for path in (tmp_path / "runs").iterdir()] == [".jepa-cache"]


def test_a_damaged_checkpoint_is_one_sentence(capsys, config_file, tmp_path):
    run = tmp_path / "run"
    call(capsys, "train", "--config", config_file, "--run", str(run))
    checkpoint = Run(run).checkpoint()
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    for arguments in (["evaluate", str(run)], ["train", "--run", str(run), "--resume", "--steps", "9"]):
        code, _, err = call(capsys, *arguments)
        assert code == 2
        assert "is damaged" in err.splitlines()[-1]


def test_recipes_lists_every_recipe_with_its_command(capsys):
    code, out, _ = call(capsys, "recipes")
    assert code == 0
    for name in RECIPES:
        assert re.search(rf"command: .*(jepa train|jepa/train.py) {name}\b", out)


def test_help_does_not_wait_for_torch():
    for arguments in (["--help"], ["train", "--help"], ["recipes"], ["evaluate", "--help"]):
        code = (
            "import sys; from jepa.cli import main\n"
            f"try: main({arguments})\nexcept SystemExit: pass\n"
            "assert 'torch' not in sys.modules and 'pyarrow' not in sys.modules"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert "usage" in result.stdout or "jepa train demo" in result.stdout


def test_the_loop_runs_as_a_file():
    command = [sys.executable, str(ROOT / "jepa" / "train.py"), "demo", "--steps", "0"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "jepa: steps must be an integer of at least 1, got 0\n"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("~/photos", "{home}/photos"),
        ("--run=~/runs/x", "--run={home}/runs/x"),
        ("--data.source=~", "--data.source={home}"),
        ("--name=a~b", "--name=a~b"),
        ("~other/x", "~other/x"),
        ("runs/~", "runs/~"),
    ],
)
def test_the_home_folder_is_expanded_in_every_argument(argument, expected, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_home([argument]) == [expected.format(home=tmp_path)]


def test_a_run_in_the_home_folder(monkeypatch, tmp_path, tiny):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(tiny)))
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config=~/config.json", "--run=~/runs/x", "--steps", "1"])
    assert stop.value.code == 0
    assert (tmp_path / "runs" / "x" / "config.json").is_file()
    assert not (tmp_path / "~").exists()
    assert jepa.load("~/runs/x").embed(torch.zeros(1, 3, 16, 16)).shape == (1, 32)
