"""A run that is interrupted and resumed ends bitwise like one that is not."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jepa.config import (
    Config,
    ConvNetConfig,
    EnergyConfig,
    FixationConfig,
    PlainConvNetConfig,
    SaccadeConfig,
    VICRegConfig,
)
from jepa.config.recipes import RECIPES
from jepa.config.serialization import to_dict
from jepa.runs import Run
from jepa.train import train
from tests.conftest import last, override, reduced, same_tensors

ROOT = Path(__file__).resolve().parent.parent
FIXATIONS = FixationConfig(view_fraction=0.6, shift=0.3, rotation=10)
DIE_AFTER_SAVING = """
import os, signal, sys
import jepa.train
from jepa.runs import Run
save = Run.save
def save_and_die(self, name, tensors, **metadata):
    save(self, name, tensors, **metadata)
    os.kill(os.getpid(), signal.SIGKILL)
Run.save = save_and_die
jepa.train.main(sys.argv[1:])
"""


class KilledError(Exception):
    """Raised in place of a kill."""


STD = {"feature_std": 0.1}


def interrupted_after(config: Config, path: Path, name: str, step: int, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Train a run that ends just after it has saved a checkpoint of a step."""
    with monkeypatch.context() as patch:
        save = Run.save

        def save_and_die(self, saved, tensors, **metadata):
            save(self, saved, tensors, **metadata)
            if (saved, metadata["step"]) == (name, step):
                raise KilledError

        patch.setattr(Run, "save", save_and_die)
        with pytest.raises(KilledError):
            train(config, path)
    return Run(path)


def interrupted_and_resumed(config: Config, path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Train a run that ends just after its first checkpoint, and resume it."""
    interrupted_after(config, path, "last", 2, monkeypatch)
    assert Run(path).load()[1]["step"] == 2
    return train(config, path, resume=True)


def assert_same(whole: Run, resumed: Run) -> None:
    losses = [[record["loss"] for record in run.metrics() if "loss" in record] for run in (whole, resumed)]
    assert losses[0] == losses[1]
    assert same_tensors(last(whole), last(resumed))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe(name, toy_source, tmp_path, monkeypatch):
    config = reduced(RECIPES[name](), toy_source)
    config = dataclasses.replace(config, steps=3, save_every=2, log_every=1, eval_every=0)
    whole = train(config, tmp_path / "whole")
    assert all(torch.isfinite(tensor).all() for tensor in last(whole).values())
    assert_same(whole, interrupted_and_resumed(config, tmp_path / "resumed", monkeypatch))


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "mobilenetv3_small_050"])
@pytest.mark.parametrize("objective", [SaccadeConfig(hidden=16, fixations=FIXATIONS), VICRegConfig(expander=16)])
def test_convnets_with_and_without_batchnorm(name, objective, tiny, tmp_path, monkeypatch):
    """Their weights are in the channels-last layout, and so must be the moments of the optimizer."""
    objective = dataclasses.replace(objective, fixations=FIXATIONS)
    backbone = ConvNetConfig(name, small_stem=True)
    config = override(tiny, data__canvas=32, data__image_size=32, objective=objective, backbone=backbone, steps=3)
    whole = train(config, tmp_path / "whole")
    assert_same(whole, interrupted_and_resumed(config, tmp_path / "resumed", monkeypatch))


def test_layers_that_are_fitted_to_images(tiny, tmp_path, monkeypatch):
    objective = SaccadeConfig(hidden=16, patch_codes=1, fixations=FIXATIONS)
    backbone = PlainConvNetConfig(width=8, stages=2, dim=32)
    config = override(tiny, data__canvas=32, data__image_size=32, objective=objective, backbone=backbone, steps=3)
    whole = train(config, tmp_path / "whole")
    assert_same(whole, interrupted_and_resumed(config, tmp_path / "resumed", monkeypatch))


@pytest.mark.parametrize("kind", ["vit", "plain-convnet"])
def test_muon(kind, tiny, tmp_path, monkeypatch):
    config = override(tiny, optim__kind="muon", steps=5)
    if kind == "plain-convnet":
        config = override(config, objective=SaccadeConfig(hidden=16, fixations=FIXATIONS), data__canvas=32)
        config = override(config, backbone=PlainConvNetConfig(width=8, stages=2, dim=32))
    whole = train(config, tmp_path / "whole")
    assert_same(whole, interrupted_and_resumed(config, tmp_path / "resumed", monkeypatch))


def test_two_processes(tiny, tmp_path):
    """With BatchNorm, whose statistics are those of both."""
    config = override(tiny, steps=5, accumulate=2)
    config = override(config, objective=SaccadeConfig(hidden=16, fixations=FIXATIONS), data__canvas=32)
    config = override(config, backbone=ConvNetConfig("test_resnet", small_stem=True))
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    (tmp_path / "die.py").write_text(DIE_AFTER_SAVING)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def run(script: str, folder: str, *flags: str) -> int:
        command = [*launch, script, "--config", str(tmp_path / "config.json"), "--run", str(tmp_path / folder), *flags]
        return subprocess.run(command, cwd=ROOT, capture_output=True, check=False, env=environment).returncode

    assert run("jepa/train.py", "whole") == 0
    assert run(str(tmp_path / "die.py"), "resumed") != 0
    assert Run(tmp_path / "resumed").load()[1]["step"] == 2
    assert run("jepa/train.py", "resumed", "--resume") == 0
    assert_same(Run(tmp_path / "whole"), Run(tmp_path / "resumed"))


@pytest.mark.parametrize("backbone", [None, EnergyConfig(size="32x4x2", patch=4, noise=0.1)])
def test_a_killed_process(tiny, tmp_path, backbone):
    tiny = dataclasses.replace(tiny, backbone=backbone or tiny.backbone)
    whole = train(tiny, tmp_path / "whole")
    interrupted = dataclasses.replace(tiny, save_every=4)
    halfway = tmp_path / "halfway"
    (tmp_path / "config.json").write_text(json.dumps(to_dict(interrupted)))
    command = [sys.executable, "-c", DIE_AFTER_SAVING, "--config", str(tmp_path / "config.json"), "--run", str(halfway)]
    threads = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums depend on the number of threads
    killed = subprocess.run(command, capture_output=True, text=True, check=False, env=threads)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert Run(halfway).load()[1]["step"] == 4
    resumed = train(interrupted, halfway, resume=True)
    assert same_tensors(last(whole), last(resumed))
    assert [record["step"] for record in resumed.metrics()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("before", "after"), [(4, 8), (20, 40)])
def test_more_steps_stretch_the_schedule_which_is_said(tiny, tmp_path, capsys, before, after):
    path = tmp_path / "run"
    train(override(tiny, steps=before), path)
    assert "schedules" not in capsys.readouterr().err
    rates = [record["lr"] for record in train(override(tiny, steps=after), path, resume=True).metrics()]
    message = capsys.readouterr().err
    assert f"the run has {after} steps instead of {before}" in message
    assert f"the learning rate goes from {rates[before - 1]:.1e} to {rates[before]:.1e} at step {before + 1}" in message


def test_a_best_checkpoint_of_a_repeated_step_is_removed(tiny, tmp_path, monkeypatch):
    scores = iter([20.0, 90.0])  # before training, and after step 3
    monkeypatch.setattr(
        "jepa.train.evaluate_online", lambda *_: {"knn": next(scores), "knn_error": 1.0, "rankme": 2.0} | STD
    )
    config = override(tiny, eval_every=3, steps=4, save_every=2)
    run = interrupted_after(config, tmp_path / "run", "best", 3, monkeypatch)
    assert (run.load()[1]["step"], run.load("best")[1]["step"]) == (2, 3)
    monkeypatch.setattr("jepa.train.evaluate_online", lambda *_: {"knn": 30.0, "knn_error": 1.0, "rankme": 2.0} | STD)
    run = train(override(config, steps=6), run.path, resume=True)
    assert run.load("best")[1]["knn"] == max(record["knn"] for record in run.metrics() if "knn" in record)
