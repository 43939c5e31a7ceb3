"""Damaged, hostile and contested run folders: a sentence or no harm, never a traceback or a wrong result in silence."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from jepa.checkpoints import load_tensors, read_checkpoint, to_tensors
from jepa.config import Config, DataConfig, InputError
from jepa.config.arguments import RunArguments, TrainArguments
from jepa.data import open_dataset
from jepa.data.index import read_index
from jepa.evaluate import evaluate, evaluate_run, train_supervised
from jepa.evaluation_run import EvaluationRun
from jepa.files import Locked, atomic_write, lock, read_record, write_record
from jepa.optim import build_optimizer
from jepa.report.plot_curves import curves
from jepa.runs import Run, fresh_objective, load_objective
from jepa.train import run_training, train
from tests.conftest import override, same_tensors, toy_images, write_parquet

ROOT = Path(__file__).resolve().parent.parent
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["step", "loss"]) | st.text(), inner),
    max_leaves=5,
)
DIGITS = st.sampled_from("123")
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_the_short_form_of_the_benchmark():
    command = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "--short"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr


@quick
@given(st.lists(st.binary() | JSON.map(lambda value: json.dumps(value).encode()) | st.just(b"[" * 100_000)))
def test_any_metrics_can_be_read_and_resumed(tmp_path, lines):
    run = Run(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + b"\n".join(lines) + b"\n")
    records = run.metrics()
    assert {"step": 1} in records
    assert all(type(record["step"]) is int for record in records)
    run.forget_after(1)
    run.log({"step": 2})
    assert run.metrics()[-1] == {"step": 2}


@quick
@given(st.dictionaries(st.sampled_from(["format", "metadata", "facts", "checksum"]) | st.text(), st.text() | DIGITS))
def test_any_header_of_a_checkpoint_is_refused_in_one_sentence(tmp_path, header):
    path = tmp_path / "last.safetensors"
    save_file({"x": torch.zeros(2)}, path, header)
    with pytest.raises(InputError) as error:
        read_checkpoint(path)
    assert len(str(error.value).splitlines()) == 1


@pytest.fixture(scope="module")
def index_file(tmp_path_factory) -> tuple[Path, str]:
    """The index of a parquet file, and its source."""
    folder = tmp_path_factory.mktemp("index")
    images, labels = toy_images(12)
    write_parquet(folder / "toy" / "train.parquet", images, labels)
    source = str(folder / "toy")
    open_dataset(DataConfig(source=source, image_size=16, cache_gb=0), cache=folder / "cache")
    return next(folder.rglob("train.arrow")), source


@quick
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
@example(place=0.998046875, bit=0, cut=False)  # the name of a nested column
def test_a_damaged_index_is_none_or_what_it_was(index_file, tmp_path, place, bit, cut):
    file, _ = index_file
    content = bytearray(file.read_bytes())
    intact = read_index(file, Path())
    position = int(place * len(content))
    content[position] ^= 1 << bit
    damaged = tmp_path / "damaged.arrow"
    damaged.write_bytes(content[:position] if cut else content)
    index = read_index(damaged, Path())
    if index is not None:
        assert not cut
        assert [index.files.read(i) for i in range(12)] == [intact.files.read(i) for i in range(12)]
        assert torch.equal(index.labels, intact.labels)
        assert (index.classes, index.metadata) == (intact.classes, intact.metadata)


def test_a_damaged_index_is_written_again(index_file):
    file, source = index_file
    content = file.read_bytes()
    cache = file.parent.parent.parent if file.parent.name == "parquet" else file.parent.parent
    for damaged in (b"", content[: len(content) // 2], content.replace(b"IHDR", b"IHDX", 1)):
        file.write_bytes(damaged)
        dataset = open_dataset(DataConfig(source=source, image_size=16, cache_gb=0), cache=cache)
        assert not dataset.read(torch.arange(12)).unreadable
        assert read_index(file, Path()) is not None


# Files


def test_a_record_is_what_was_written_or_none(tmp_path):
    path = tmp_path / "record.json"
    assert read_record(path) is None
    write_record(path, {"text": "é", "number": 3})
    content = path.read_bytes()
    assert read_record(path) == {"text": "é", "number": 3}
    for position in range(len(content)):
        path.write_bytes(content[:position])
        assert read_record(path) is None
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        assert read_record(path) is None


def test_a_new_file_has_the_permissions_of_the_umask_and_replaces_links(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_text("unchanged")
    path.symlink_to(victim)
    (tmp_path / ".file.0.tmp").symlink_to(victim)
    for mask, mode in ((0o077, 0o600), (0o022, 0o644)):
        before = os.umask(mask)
        try:
            with atomic_write(path) as temporary:
                temporary.write_text("new")
            run = Run.create(tmp_path / f"run-{mask}", Config())
            run.save("last", {"x": torch.zeros(1)}, step=1)
        finally:
            os.umask(before)
        assert path.stat().st_mode & 0o777 == mode
        assert run.checkpoint().stat().st_mode & 0o777 == mode
    assert victim.read_text() == "unchanged"
    assert not path.is_symlink()


def test_files_of_killed_processes_are_removed_and_those_of_others_are_not(tmp_path):
    path = tmp_path / "file"
    (tmp_path / ".file.1234.tmp").write_text("left behind")
    with atomic_write(path) as first:
        assert not (tmp_path / ".file.1234.tmp").exists()
        with atomic_write(path) as second:
            assert first.exists()
            second.write_text("second")
        first.write_text("first")
    assert path.read_text() == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_lock_is_held_once(tmp_path):
    path = tmp_path / ".lock"
    with lock(path):
        with pytest.raises(Locked, match=f"process {os.getpid()} on "), lock(path):
            pass
        assert path.exists()
    with lock(path):
        pass
    assert not path.exists()


# Runs


def test_a_second_training_is_refused(tiny, tmp_path):
    run = Run(tmp_path / "run")
    with run.lock():
        with pytest.raises(InputError, match=rf"is being trained by process {os.getpid()} on "):
            train(tiny, run.path)
        assert not run.exists
    assert not run.path.exists()
    train(tiny, run.path)
    with pytest.raises(InputError, match="already exists"):
        train(tiny, run.path)


def test_a_run_without_a_checkpoint_is_started_again(tiny, tmp_path):
    run = Run.create(tmp_path / "run", tiny)
    run.log({"step": 2, "loss": 1.0})  # killed while its first checkpoint was saved
    train(tiny, run.path)
    assert run.load()[1]["step"] == 6
    assert (run.path / "metrics-1.jsonl").read_text() == '{"step": 2, "loss": 1.0}\n'


def test_a_start_over_keeps_what_there_was(tiny, tmp_path, capsys, unscored):
    """The only checkpoint of a short run has disappeared, but there are a `best` one and scores."""
    config = override(tiny, eval_every=3, save_every=100)
    run = train(config, tmp_path / "run")
    evaluate(run.path)
    files = {run.checkpoint("best"), run.path / "evaluation.json", run.path / "metrics.jsonl"}
    before = {file: file.read_bytes() for file in files}
    run.checkpoint().unlink()
    train(override(config, seed=1), run.path)
    assert all(file.with_stem(f"{file.stem}-1").read_bytes() == content for file, content in before.items())
    assert not (run.path / "evaluation.json").exists()
    assert "is trained from the start; metrics-1.jsonl, evaluation-1.json and best-1" in capsys.readouterr().err


def test_commands_in_messages_can_be_pasted(tiny, tmp_path, monkeypatch):
    run = train(tiny, tmp_path / "a b; c")
    for program, on_path, command in (
        ("/x/.venv/bin/jepa", None, "/x/.venv/bin/jepa"),
        ("/x/.venv/bin/jepa", "/bin/jepa", "jepa"),
        ("train.py", None, "jepa"),
    ):
        monkeypatch.setattr("sys.argv", [program])
        monkeypatch.setattr("shutil.which", lambda _, found=on_path: found)
        with pytest.raises(InputError) as refused:
            run.check_unused()
        assert f"'{command} evaluate '{run.path}'' evaluates it" in str(refused.value)
        assert f"'rm -r '{run.path}'' removes it" in str(refused.value)


def test_resuming_says_whether_there_was_a_run(tiny, tmp_path, capsys):
    train(override(tiny, steps=4), tmp_path / "run", resume=True)
    assert "holds no run to resume, so a new one is started" in capsys.readouterr().err
    train(tiny, tmp_path / "run", resume=True)
    assert "6 steps, continued after step 4, cpu" in capsys.readouterr().err


@pytest.mark.parametrize("resume", [True, False])
def test_a_missing_checkpoint_is_no_reason_to_start_again(tiny, tmp_path, resume):
    run = train(tiny, tmp_path / "run")
    metrics = (run.path / "metrics.jsonl").read_bytes()
    run.checkpoint().unlink()
    with pytest.raises(InputError, match=r"last.safetensors is missing, although .* step 6" if resume else "already"):
        train(override(tiny, steps=8), run.path, resume=resume)
    assert (run.path / "metrics.jsonl").read_bytes() == metrics


def test_the_state_of_the_optimizer_must_be_complete(tiny, tmp_path):
    run = train(tiny, tmp_path / "run")
    tensors, _ = run.load()
    names = [name for name in tensors if name.startswith("optimizer.")]
    for gone in ([names[0]], [name for name in names if name.endswith("exp_avg_sq")], names):
        objective = fresh_objective(run.config)
        optimizer = build_optimizer(objective, tiny.optim)
        kept = {name: tensor for name, tensor in tensors.items() if name not in gone}
        with pytest.raises(InputError, match="no complete state of the optimizer"):
            load_tensors(kept, objective, optimizer, where=run.checkpoint())


def test_weights_that_are_not_finite_are_refused(tmp_path):
    run = Run.create(tmp_path / "run", Config())
    run.save("last", {"x": torch.ones(3)}, step=1)
    with pytest.raises(InputError, match="x contains NaN or infinite values"):
        run.save("last", {"x": torch.tensor([1.0, torch.nan])}, step=2)
    assert run.load()[1]["step"] == 1


def test_a_checkpoint_that_was_written_wrongly_does_not_replace_the_last(tmp_path, monkeypatch):
    run = Run.create(tmp_path / "run", Config())
    run.save("last", {"x": torch.ones(3)}, step=1)

    def faulty_disk(tensors, path, header):
        save_file({"x": torch.ones(3).mul(2)}, path, header)

    monkeypatch.setattr("jepa.checkpoints.save_file", faulty_disk)
    with pytest.raises(InputError, match="does not match its checksum"):
        run.save("last", {"x": torch.ones(3)}, step=2)
    assert run.load()[1]["step"] == 1
    assert [file.name for file in run.checkpoint().parent.iterdir()] == ["last.safetensors"]


def test_a_config_that_is_not_that_of_the_checkpoint_is_refused(tiny, tmp_path):
    run = train(tiny, tmp_path / "run")
    file = run.path / "config.json"
    text = file.read_text()
    for old, new in (('"predictor": "16x1x2"', '"predictor": "16x1x1"'), ('"seed": 0', '"seed": 1')):
        assert old in text
        file.write_text(text.replace(old, new))
        with pytest.raises(InputError, match=r"config.json has .* but the checkpoint was trained with .*; restore"):
            load_objective(run)
    file.write_text(text.replace('"log_every": 1', '"log_every": 3'))  # makes no difference
    load_objective(run)


@pytest.fixture
def unscored(monkeypatch) -> None:
    """Evaluate without computing scores."""
    scores = {"rankme": 9.0, "feature_std": 1.0}
    monkeypatch.setattr("jepa.evaluate.score_encoders", lambda *_, **__: {"trained": scores, "untrained": scores})


def test_changed_metrics_are_said(tiny, tmp_path, capsys, unscored):
    run = train(tiny, tmp_path / "run")
    assert "notes" not in evaluate(run.path)
    file = run.path / "metrics.jsonl"
    file.write_text(file.read_text().replace('"loss": 1', '"loss": 0', 1))
    assert "metrics.jsonl has changed since the checkpoint was saved" in evaluate(run.path)["notes"][0]
    train(override(tiny, steps=8), run.path, resume=True)
    assert "metrics.jsonl has changed since the checkpoint" in capsys.readouterr().err


def test_a_diverged_run_is_marked(tiny, tmp_path, unscored):
    config = override(tiny, optim__lr=1e8, optim__lr_start=1e8, optim__warmup=0, steps=300, save_every=1)
    with pytest.raises(InputError, match="training has diverged"):
        train(config, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run.warning().startswith("training has diverged")
    assert evaluate(run.path)["warning"].startswith("training has diverged")
    assert run.load()[1]["step"] < run.metrics()[-1]["step"]


def test_a_collapsed_run_is_marked_in_metrics_evaluation_and_message(tiny, tmp_path, monkeypatch, capsys, unscored):
    monkeypatch.setattr("jepa.train.evaluate_online", lambda *_: {"rankme": 1.0, "feature_std": 0.0})
    path = tmp_path / "run"
    given = TrainArguments(RunArguments(run=path), override(tiny, eval_every=3))
    assert run_training(given, []) == 0
    assert capsys.readouterr().err.count("warning: the features have collapsed") == 2  # steps 3 and 6
    assert run_training(dataclasses.replace(given, run=RunArguments(run=path, resume=True)), []) == 0
    assert "jepa: warning: the features have collapsed" in capsys.readouterr().err  # said again by a complete run
    assert Run(path).metrics()[-1]["warning"].startswith("the features have collapsed")
    assert evaluate(path)["warning"].startswith("the features have collapsed")


def test_tensorboard_has_no_steps_twice(tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(tiny, tmp_path / "run")
    os.truncate(run.path / "metrics.jsonl", 0)
    tensors, metadata = run.load()
    metadata.pop("metrics")
    run.save("last", tensors, **metadata | {"step": 3})  # as if it had been killed at step 6
    train(tiny, run.path, resume=True)
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


# Evaluation


@pytest.mark.parametrize("name", ["features.bin", "indices.npy", "metadata.json"])
def test_damaged_features_are_extracted_again(tiny, tmp_path, name):
    opened = EvaluationRun.open(train(tiny, tmp_path / "run").path)
    expected = opened.features("trained")
    (file,) = opened.folder.path.glob(f"features/*/{name}")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 64
    for damaged in (content, content[:10], b""):
        file.write_bytes(damaged)
        features = opened.features("trained")
        assert torch.equal(features.x, expected.x)
        assert torch.equal(features.indices, expected.indices)


def test_results_do_not_go_into_another_run(tiny, tmp_path, unscored):
    first, second = (train(tiny, tmp_path / name).path for name in "ab")
    with pytest.raises(InputError, match=r"--out .*b is another run, whose scores would be replaced"):
        EvaluationRun.open(first, out=second)
    evaluate_run(EvaluationRun.open(first, out=first))
    assert (first / "evaluation.json").exists()


def test_other_images_than_those_of_the_training_are_said(tiny, tmp_path, monkeypatch, unscored):
    """A relative source is another folder after a change of the working directory."""
    for place in "ab":
        write_parquet(tmp_path / place / "photos" / "train.parquet", *toy_images(60, seed=ord(place)))
    monkeypatch.chdir(tmp_path / "a")
    run = train(override(tiny, data__source="photos"), tmp_path / "run")
    assert "notes" not in evaluate(run.path)
    monkeypatch.chdir(tmp_path / "b")
    assert "the files of photos are not those that the run was trained on" in evaluate(run.path)["notes"][0]
    assert "notes" not in evaluate(run.path, str(tmp_path / "b" / "photos"))


def test_the_supervised_network_goes_to_the_folder_of_the_results(tiny, tmp_path):
    run = train(tiny, tmp_path / "run")
    opened = EvaluationRun.open(run.path, out=tmp_path / "results")
    train_supervised(opened)
    assert len(list((tmp_path / "results" / "baselines").glob("supervised-*"))) == 1
    assert not (run.path / "baselines").exists()


def test_best_is_evaluated_and_results_go_elsewhere(tiny, tmp_path, unscored):
    run = train(override(tiny, eval_every=3, save_every=6), tmp_path / "run")
    before = sorted(run.path.rglob("*"))
    opened = EvaluationRun.open(run.path, out=tmp_path / "results", checkpoint="best")
    assert opened.metadata["step"] == run.load("best")[1]["step"]
    assert same_tensors(to_tensors(opened.objective), run.load("best")[0])
    assert opened.features("trained").x.shape == (40, 32)
    assert (tmp_path / "results" / "features").is_dir()
    assert sorted(run.path.rglob("*")) == before
    note = "the checkpoint 'best', which was chosen with labels"
    assert note in evaluate_run(opened)["notes"][0]
    with pytest.raises(InputError, match="has no checkpoint first"):
        EvaluationRun.open(run.path, checkpoint="first")


def test_without_a_writable_folder_features_are_not_kept(tiny, tmp_path, monkeypatch):
    run = train(tiny, tmp_path / "run")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "run" not in str(path).split("/")[-2:] and access(path, mode))
    opened = EvaluationRun.open(run.path)
    assert opened.features("trained").x.shape == (40, 32)
    with pytest.raises(InputError, match=r"cannot be written to; pass --out DIR"):
        evaluate(run.path)


def test_curves_of_damaged_metrics_are_drawn(tiny, tmp_path):
    run = train(tiny, tmp_path / "run")
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\n[1, 2]\n{"step": 7, "loss": NaN}\n')
    curves(run)


def test_training_in_a_thread(tiny, tmp_path):
    """Handlers of signals can be set in the main thread only."""
    thread = threading.Thread(target=train, args=(tiny, tmp_path / "run"))
    thread.start()
    thread.join()
    assert Run(tmp_path / "run").load()[1]["step"] == 6
