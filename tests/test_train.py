import dataclasses
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import jepa
from jepa import distributed
from jepa.config import (
    Config,
    DataConfig,
    FixationConfig,
    IJepaConfig,
    InputError,
    LeJepaConfig,
    MAEConfig,
    MaskConfig,
    SaccadeConfig,
    SupervisedConfig,
    VICRegConfig,
    with_backbone,
)
from jepa.config.serialization import flat, from_dict, to_dict
from jepa.evaluate import evaluate
from jepa.logger import online_warning
from jepa.report.text import as_text
from jepa.runs import Run, fresh_objective
from jepa.train import better, train
from tests.conftest import last, override, toy_images, write_parquet

ROOT = Path(__file__).resolve().parent.parent


def test_an_energy_transformer_trains_and_its_energy_falls(tiny, tmp_path):
    run = train(with_backbone(tiny, "energy"), tmp_path / "run")
    result = evaluate(run.path)
    energy = result["energy"]
    assert len(energy["total"]) == 5
    assert energy["total"] == sorted(energy["total"], reverse=True)
    assert energy["falling"] == 100
    assert energy["images"] == 40
    assert energy["total"][0] == pytest.approx(energy["attention"][0] + energy["hopfield"][0], abs=0.02)
    assert "decreases at every step for 100% of them" in " ".join(as_text(result, run.path).split())
    again = jepa.load(str(run.path))
    assert again.embed(torch.rand(2, 3, 16, 16)).shape == (2, 32)
    assert not again.encoder.training


def test_training_changes_the_encoder_and_lowers_the_loss(tiny, tmp_path):
    config = dataclasses.replace(tiny, steps=60, save_every=100, optim=dataclasses.replace(tiny.optim, lr=3e-3))
    run = train(config, tmp_path / "run")
    losses = [record["prediction"] for record in run.metrics() if "prediction" in record]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    untrained = fresh_objective(run.config).state_dict()
    assert not torch.equal(untrained["target.backbone.stem.0.weight"], last(run)["model.target.backbone.stem.0.weight"])


@pytest.mark.parametrize("cache_gb", [4.0, 0.0])
def test_microbatches_equal_the_whole_batch(tiny, tmp_path, cache_gb):
    objective = dataclasses.replace(tiny.objective, variance=0.0, covariance=0.0)  # batch statistics are a part's own
    data = dataclasses.replace(tiny.data, cache_gb=cache_gb)
    config = dataclasses.replace(tiny, objective=objective, data=data, steps=3)
    whole = last(train(config, tmp_path / "whole"))
    parts = last(train(dataclasses.replace(config, accumulate=4), tmp_path / "parts"))
    for name, tensor in whole.items():
        if name.startswith("model."):
            assert torch.allclose(tensor, parts[name], atol=2e-5), name


def test_two_processes_are_one(tiny, tmp_path):
    config = dataclasses.replace(tiny, steps=3)
    one = train(config, tmp_path / "one")
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--"]
    command += ["jepa/train.py", "--config", str(tmp_path / "config.json"), "--run", str(tmp_path / "two")]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr
    two = Run.open(tmp_path / "two")
    for name, tensor in last(one).items():
        if name.startswith("model."):
            assert torch.allclose(tensor, last(two)[name], atol=2e-5), name
    assert abs(one.metrics()[-1]["loss"] - two.metrics()[-1]["loss"]) < 1e-4


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "Killed"),
        (EOFError(), "EOFError"),
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
        (ValueError("of a source"), None),
        (RuntimeError("a source has lost its worker"), None),
        (EOFError("Caught EOFError in DataLoader worker process 0."), None),
    ],
)
def test_a_worker_that_ends_saves_and_stops(tiny, tmp_path, monkeypatch, error, reason):
    """However its end is noticed; errors of a source are raised as they are."""

    class EndingLoader(DataLoader):
        def __iter__(self):
            for _, chunk in zip(range(2), super().__iter__(), strict=False):
                yield chunk
            raise error

    monkeypatch.setattr("jepa.data.workers.DataLoader", EndingLoader)
    config = override(tiny, save_every=100, data__cache_gb=0.0, data__workers=1)
    with pytest.raises(InputError if reason else type(error)) as caught:
        train(config, tmp_path / "run")
    if reason:
        assert re.search(f"has ended, perhaps for lack of memory .*{reason}.* is saved at step 2", str(caught.value))
    else:
        assert caught.value is error
    assert Run(tmp_path / "run").load()[1]["step"] == 2


def test_an_error_of_a_source_without_workers_is_raised_as_it_is(tiny, tmp_path, monkeypatch):
    """A source may lose its connection, which is not the end of a worker."""

    def read(*_, **__):
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr("jepa.data.dataset.ImageDataset.read", read)
    with pytest.raises(ConnectionResetError):
        train(override(tiny, data__mean=(0.5,) * 3, data__std=(0.2,) * 3), tmp_path / "run")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves(tiny, tmp_path, signum):
    config = dataclasses.replace(tiny, steps=100_000, save_every=100_000)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    run = Run(tmp_path / "run")
    command = [sys.executable, "-m", "jepa", "train", "--config", str(tmp_path / "config.json"), "--run", str(run.path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and len(run.metrics()) < 3:
        time.sleep(0.05)
    process.send_signal(signum)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signum, stderr
    step = run.load()[1]["step"]
    assert step == run.metrics()[-1]["step"]
    assert f"stopped at step {step} of 100000; continue with: jepa train --config " in stderr
    assert stderr.endswith(" --resume\n")


def test_online_evaluation_saves_the_best_checkpoint_and_records_that_labels_chose_it(tiny, tmp_path, capsys):
    run = train(dataclasses.replace(tiny, eval_every=3), tmp_path / "run")
    evaluations = [record for record in run.metrics() if "knn" in record]
    assert [record["step"] for record in evaluations] == [0, 3, 6]
    _, metadata = run.load("best")
    assert metadata["chosen_with_labels"]
    assert metadata["knn"] == max(record["knn"] for record in evaluations)
    assert "untrained" in capsys.readouterr().err


def test_the_best_checkpoint_is_not_chosen_within_noise():
    scores = [{"knn": knn, "knn_error": 1.0} for knn in (50.0, 50.9, 51.2, 52.1, 51.0)]
    best, chosen = None, []
    for record in [{"feature_std": 0.1}, *scores]:
        best = better(record, best)
        chosen.append(best and best["knn"])
    assert chosen == [None, 50.0, 50.0, 51.2, 51.2, 51.2]
    assert better({"knn": 30.1}, {"knn": 30.0})["knn"] == 30.1  # records of older versions have no error


@pytest.mark.parametrize("labeled", [True, False])
def test_only_labeled_images_are_held_out(labeled, tiny, tmp_path, capsys):
    images, labels = toy_images(50)
    write_parquet(tmp_path / "data" / "train.parquet", images, labels if labeled else None)
    config = override(tiny, data__source=str(tmp_path / "data"), data__holdout=DataConfig.holdout, steps=1)
    train(config, tmp_path / "run")
    assert f"tiny: {40 if labeled else 50} images" in capsys.readouterr().err


def test_a_collapse_gives_a_warning(tiny):
    objective = fresh_objective(override(tiny, data__mean=(0.5,) * 3, data__std=(0.2,) * 3))
    untrained = {"feature_std": 0.05, "rankme": 12.0, "knn": 40.0}

    def warning(feature_std: float, rankme: float, **knn: float) -> str | None:
        return online_warning({"feature_std": feature_std, "rankme": rankme, **knn}, untrained, objective)

    assert warning(0.04, 11.0, knn=41.0) is None
    assert warning(0.04, 11.0) is None
    assert "collapsed" in warning(1e-5, 11.0, knn=30.0)
    assert "collapsed" in warning(0.04, 1.2, knn=30.0)
    assert "below the 40.0 at the start" in warning(0.04, 8.0, knn=20.0)
    assert warning(0.04, 8.0, knn=20.0, knn_error=11.0) is None  # of a few images


FIXATIONS = FixationConfig(view_fraction=0.5, shift=0.2)


@pytest.mark.parametrize(
    "objective",
    [
        IJepaConfig(predictor="16x1x2", variance=0.3),
        SaccadeConfig(hidden=8, variance=0.2, fixations=FIXATIONS),
        SaccadeConfig(hidden=8, variance=25.0, fixations=FIXATIONS),
        VICRegConfig(expander=8, variance=0.0, fixations=FIXATIONS),
        VICRegConfig(expander=8, fixations=FIXATIONS),
        LeJepaConfig(hidden=8, sigreg=0.0),
        LeJepaConfig(hidden=8),
        LeJepaConfig(hidden=8, sigreg=0.9),
        MAEConfig(decoder="16x1x2"),
        SupervisedConfig(classes=2),
    ],
)
def test_advice_names_settings_that_the_objective_has_and_that_differ(tiny, objective):
    """Every flag in the advice exists, and every number in it is above the present one."""
    config = override(tiny, data__mean=(0.5,) * 3, data__std=(0.2,) * 3, data__canvas=32, objective=objective)
    advice = fresh_objective(config).collapse_advice()
    settings = flat(config)
    for flag in re.findall(r"--[a-z.-]+", advice):
        assert flag.removeprefix("--").replace("-", "_") in settings
    for flag, value in re.findall(r"--([a-z.-]+) ([0-9.]+)", advice):
        assert float(value) > settings[flag.replace("-", "_")]


def test_a_run_that_collapses_prints_a_warning(tiny, tmp_path, capsys, monkeypatch):
    """Weight decay far too strong pulls every weight to zero, so that all images look alike."""
    optim = dataclasses.replace(tiny.optim, lr=0.5, lr_start=0.5, lr_end=0.5, weight_decay=2.0, weight_decay_end=2.0)
    objective = dataclasses.replace(tiny.objective, variance=0.0, covariance=0.0, ema_half_life=1e-3)
    objective = dataclasses.replace(objective, ema_half_life_end=1e-3)
    config = dataclasses.replace(tiny, steps=20, eval_every=20, optim=optim, objective=objective)
    train(config, tmp_path / "run")
    assert "warning: " in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run(tiny, tmp_path):
    optim = dataclasses.replace(tiny.optim, lr=1e30, lr_start=1e30)
    with pytest.raises(InputError, match=r"the loss is .* at step .*--optim.lr"):
        train(dataclasses.replace(tiny, steps=20, optim=optim), tmp_path / "run")


def test_weights_that_are_not_finite_are_not_saved(tiny, tmp_path):
    optim = dataclasses.replace(tiny.optim, lr=1e30, lr_start=1e30)
    run = Run(tmp_path / "run")
    with pytest.raises(InputError, match=r"the weights are NaN or infinite at step"):
        train(dataclasses.replace(tiny, steps=20, save_every=1, log_every=20, optim=optim), run.path)
    if run.checkpoint().is_file():
        assert all(torch.isfinite(tensor).all() for tensor in last(run).values())


def test_bf16_trains(tiny, tmp_path):
    run = train(dataclasses.replace(tiny, precision="bf16"), tmp_path / "run")
    full = train(tiny, tmp_path / "full")
    losses = [[record["loss"] for record in each.metrics()] for each in (run, full)]
    assert losses[0] != losses[1]
    assert all(abs(one - other) < 0.05 for one, other in zip(*losses, strict=True))
    assert last(run)["model.context.backbone.trunk.norm.weight"].dtype == torch.float32


def test_without_labels_scores_that_need_none_are_computed(tiny, tmp_path):
    write_parquet(tmp_path / "plain" / "train.parquet", toy_images(60)[0])
    data = dataclasses.replace(tiny.data, source=str(tmp_path / "plain"))
    run = train(dataclasses.replace(tiny, data=data, eval_every=3), tmp_path / "run")
    result = evaluate(run.path)
    assert "knn" not in result["trained"]
    assert result["trained"]["rankme"] > 1
    assert "which need labels" in result["left_out"]
    assert "no test split" in result["data"]["split"]
    assert "Omitted" in " ".join(as_text(result, run.path).split())


def test_which_settings_may_change_on_resume(tiny, tmp_path, capsys):
    run = train(tiny, tmp_path / "run")
    train(dataclasses.replace(tiny, steps=5), run.path, resume=True)
    assert "is already complete at step 6; a larger --steps" in capsys.readouterr().err
    assert run.config.steps == 6
    wider = dataclasses.replace(tiny.backbone, size="64x4x2")
    with pytest.raises(InputError, match=r"backbone.size = 32x4x2 and cannot be resumed with 64x4x2"):
        train(dataclasses.replace(tiny, steps=8, backbone=wider), run.path, resume=True)
    longer = train(dataclasses.replace(tiny, steps=8), run.path, resume=True)
    assert longer.load()[1]["step"] == 8


@pytest.mark.filterwarnings("ignore")  # torch warns of its own calls while it compiles
def test_compiled_training_is_the_same(tiny, tmp_path, monkeypatch):
    """With the graphs and gradients of torch.compile, but without C++ code, whose compilation takes over a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    config = dataclasses.replace(tiny, steps=2)
    plain, compiled = (
        last(train(dataclasses.replace(config, compile=flag), tmp_path / str(flag))) for flag in (False, True)
    )
    assert plain.keys() == compiled.keys()
    for name, tensor in plain.items():
        if name.startswith("model."):
            assert torch.allclose(tensor, compiled[name], atol=1e-4), name


def test_evaluate_and_load(tiny, tmp_path):
    run = train(tiny, tmp_path / "run")
    result = evaluate(run.path)
    assert json.loads((run.path / "evaluation.json").read_text()) == result
    for row in ("trained", "context", "untrained", "pixels"):
        assert 0 <= result[row]["knn"] <= 100
    assert result["pixels"]["linear"] > 90  # the two classes differ in where the image is bright
    assert result["data"]["test"] == 40
    encoder = jepa.load(str(run.path))
    features = encoder.embed(torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8))
    assert features.shape == (2, 32)
    assert not encoder.encoder.training
    with pytest.raises(InputError, match=r"there is no encoder 'teacher'; .* has target, context"):
        jepa.load(str(run.path), "teacher")


def test_the_untrained_encoder_is_that_of_the_initial_weights(tiny, tmp_path):
    """The untrained row is the encoder that the run started from."""
    run = train(tiny, tmp_path / "run")
    assert evaluate(run.path)["untrained"] == evaluate(run.path)["untrained"]
    again = from_dict(Config, to_dict(run.config))
    assert torch.equal(
        fresh_objective(again).state_dict()["target.backbone.stem.0.weight"],
        fresh_objective(run.config).state_dict()["target.backbone.stem.0.weight"],
    )


def test_impossible_masks_are_refused_before_a_folder_is_made(tiny, tmp_path):
    objective = dataclasses.replace(tiny.objective, masks=MaskConfig(target_scale=(0.9, 1.0)))
    with pytest.raises(InputError, match="leaves fewer than"):
        train(dataclasses.replace(tiny, objective=objective), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t\t: fpu sse2 avx512f avx512_bf16 clzero\n", "bf16"),
        ("flags\t\t: fpu sse2 avx512f avx512_vnni\n", "fp32"),
        ("Features\t: fp asimd bf16\n", "fp32"),
        (None, "fp32"),  # no /proc/cpuinfo
    ],
)
def test_auto_is_bf16_on_cpus_with_instructions_for_it(text, expected, monkeypatch):
    def read_text(path, encoding):
        assert path == Path("/proc/cpuinfo")
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.undo()  # of the fixture that makes all CPUs alike
    monkeypatch.setattr(Path, "read_text", read_text)
    cpu = torch.device("cpu")
    assert distributed.pick_precision("auto", cpu) == expected
    assert distributed.pick_precision("fp32", cpu) == "fp32"
    assert distributed.pick_precision("bf16", cpu) == "bf16"
    assert distributed.pick_precision("auto", torch.device("cuda")) == "bf16"
    assert distributed.pick_precision("auto", torch.device("mps")) == "fp32"
