"""Run folders of version 0.1.0, two of which are checked in, still load."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import jepa
from jepa.checkpoints import load_tensors, to_tensors
from jepa.config import FixationConfig, SaccadeConfig
from jepa.evaluate import evaluate
from jepa.runs import Run, fresh_objective
from jepa.train import train
from tests.conftest import override

RUNS = Path(__file__).resolve().parent / "data" / "run-0.1.0"
IMAGE = torch.arange(3 * 16 * 16).view(1, 3, 16, 16) % 256 / 255


@pytest.fixture(params=["ijepa", "saccade"])
def old_run(request, tmp_path) -> Run:
    return Run(shutil.copytree(RUNS / request.param, tmp_path / "runs" / request.param))


def test_its_encoders_return_what_they_returned(old_run):
    expected = json.loads((old_run.path / "embedding.json").read_text())
    for name, values in expected.items():
        embedding = jepa.load(old_run.path, name).embed(IMAGE)[0]
        assert torch.allclose(embedding, torch.tensor(values), atol=1e-5)


def test_its_settings_and_metrics_have_their_present_names(old_run):
    config = old_run.config
    if isinstance(config.objective, SaccadeConfig):
        assert config.objective.fixations == FixationConfig(view_fraction=1.0, shift=0.25, rotation=15.0, zoom=1.4)
    records = old_run.metrics()
    assert [record["step"] for record in records] == [0, 1, 1, 2, 2]
    assert all("feature_std" in record and "spread" not in record for record in records)


def test_it_is_evaluated_and_resumed(old_run, toy_source):
    result = evaluate(old_run.path, toy_source)
    assert 0 <= result["trained"]["knn"] <= 100
    config = override(old_run.config, steps=4, data__source=toy_source)
    resumed = train(config, old_run.path, resume=True)
    assert resumed.load()[1]["step"] == 4
    assert all(torch.isfinite(tensor).all() for tensor in resumed.load()[0].values())
    assert "view_fraction" in (old_run.path / "config.json").read_text() or old_run.path.name == "ijepa"


def test_the_predictor_of_an_old_saccade_run_keeps_its_frequencies(tmp_path):
    """The code of a saccade had a lowest frequency of π, to which the weights of its predictor were fitted."""
    run = Run(shutil.copytree(RUNS / "saccade", tmp_path / "run"))
    tensors, _ = run.load()
    assert not any("frequencies" in name for name in tensors)
    fresh, old = fresh_objective(run.config), fresh_objective(run.config)
    load_tensors(tensors, old, where=run.checkpoint())
    assert torch.equal(old.code.frequencies, 2 * fresh.code.frequencies)
    again = fresh_objective(run.config)
    load_tensors(to_tensors(old), again, where=run.checkpoint())
    assert torch.equal(again.code.frequencies, old.code.frequencies)
