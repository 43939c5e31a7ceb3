"""Kept checkpoints, their scores, and the measures without labels that would choose among them."""

import dataclasses
import math

import pytest
import torch

from jepa.config import InputError
from jepa.evaluate import evaluate, evaluate_run
from jepa.evaluation.checkpoint_scores import choices, measure_values
from jepa.evaluation.clid import cluster_learnability, intrinsic_dimension
from jepa.evaluation.label_free import label_free_scores
from jepa.evaluation_run import EvaluationRun
from jepa.report.figures import draw
from jepa.report.html import write_report
from jepa.report.text import as_text
from jepa.runs import load_encoder
from jepa.train import train
from tests.conftest import last, override, same_tensors, write_parquet
from tests.test_pictures import randn
from tests.test_resume import interrupted_after


@pytest.mark.parametrize("dim", [1, 2, 4, 8])
def test_the_intrinsic_dimension_of_a_plane(dim):
    x = torch.rand(2000, dim, generator=torch.Generator().manual_seed(dim)) @ randn(dim, 40) + 7
    assert intrinsic_dimension(x) == pytest.approx(dim, rel=0.15)


def test_the_intrinsic_dimension_ignores_duplicates():
    x = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) @ randn(3, 40)
    alone = intrinsic_dimension(x)
    assert intrinsic_dimension(torch.cat([x, torch.full((20, 40), 9.0)])) == pytest.approx(alone, rel=0.05)
    for constant in (torch.ones(30, 5), torch.zeros(2, 5), torch.eye(5)[torch.arange(30) % 2]):
        assert intrinsic_dimension(constant) is None


def test_clusters_are_learned_and_noise_is_not():
    assert cluster_learnability(randn(600, 1) @ randn(1, 64, seed=1) + randn(600, 1, seed=2) @ randn(1, 64)) > 0.8
    assert cluster_learnability(randn(600, 64)) < 0.4
    assert cluster_learnability(torch.ones(600, 64)) == 1


def test_cluster_learnability_is_prequential_1_nn(monkeypatch):
    """The definition, evaluated point by point: the cluster of the nearest earlier point."""
    monkeypatch.setattr("jepa.evaluation.clid.BLOCK_SIZE", 7)
    found = {}

    def remember(x, count, generator):
        found["x"], found["centroids"] = x, x[:count]
        return found["centroids"]

    monkeypatch.setattr("jepa.evaluation.clid.kmeans", remember)
    value = cluster_learnability(randn(60, 3))
    x = found["x"]
    clusters = [int((found["centroids"] - point).norm(dim=1).argmin()) for point in x]
    nearest = [int((x[:i] - x[i]).norm(dim=1).argmin()) for i in range(1, 60)]
    assert len(set(clusters)) == 3
    assert value == pytest.approx(sum(clusters[i] == clusters[j] for i, j in enumerate(nearest, 1)) / 59)


TABLE = [  # the linear probe follows RankMe, is opposed to LiDAR, and best where α is nearest to 1
    {"step": 0, "rankme": 5, "lidar": 9, "alpha_req": 2.0, "linear": 40.0},
    {"step": 10, "rankme": 7, "lidar": 8, "alpha_req": 0.6, "linear": 50.0},
    {"step": 20, "rankme": 9, "lidar": 7, "alpha_req": 1.1, "linear": 60.0},
]


def test_which_checkpoint_each_measure_chooses():
    found = choices(TABLE)
    assert found["rankme"] == {"step": 20, "linear": 60.0, "correlation": 1.0}
    assert found["lidar"] == {"step": 0, "linear": 40.0, "correlation": -1.0}
    assert found["alpha_req"] == {"step": 20, "linear": 60.0, "correlation": 1.0}
    assert found["linear"] == {"step": 20, "linear": 60.0}
    assert "clid" not in found
    unlabeled = [{key: value for key, value in row.items() if key != "linear"} for row in TABLE]
    assert choices(unlabeled)["rankme"] == {"step": 20}
    assert "linear" not in choices(unlabeled)


def test_clid_adds_standardized_measures():
    rows = [{"cluster_learnability": a, "intrinsic_dimension": b} for a, b in ((0.1, 10), (0.2, 10), (0.3, 10))]
    assert measure_values(rows, "clid") == pytest.approx([-math.sqrt(1.5), 0, math.sqrt(1.5)])
    assert measure_values([*rows, {"cluster_learnability": 0.2}], "clid") is None


def test_checkpoints_are_kept_and_each_can_be_loaded_and_evaluated(tiny, tmp_path):
    run = train(override(tiny, keep_every=2), tmp_path / "run")
    assert run.kept_steps() == [2, 4, 6]
    shorter = train(override(tiny, steps=4), tmp_path / "shorter")
    assert not shorter.kept_steps()
    assert not same_tensors(run.load("step-2")[0], run.load("step-4")[0])
    encoder = load_encoder(run.checkpoint("step-6"))
    assert same_tensors(encoder.state_dict(), load_encoder(run.path).state_dict())
    assert evaluate_run(EvaluationRun.open(run.path, checkpoint="step-4"))["step"] == 4
    with pytest.raises(InputError, match=r"no checkpoint step-3.safetensors; it has last.safetensors, step-2.saf"):
        EvaluationRun.open(run.path, checkpoint="step-3")


def test_kept_checkpoints_of_repeated_steps_are_removed(tiny, tmp_path, monkeypatch):
    config = override(tiny, keep_every=3, save_every=2)
    run = interrupted_after(config, tmp_path / "run", "step-3", 3, monkeypatch)
    assert run.kept_steps() == [3]
    other = train(override(config, steps=5, keep_every=0), run.path, resume=True)  # goes on from step 2, keeps none
    assert other.kept_steps() == []
    again = train(config, tmp_path / "again")
    resumed = train(config, interrupted_after(config, tmp_path / "b", "step-3", 3, monkeypatch).path, resume=True)
    assert resumed.kept_steps() == again.kept_steps() == [3, 6]
    assert same_tensors(resumed.load("step-3")[0], again.load("step-3")[0])
    assert same_tensors(last(resumed), last(again))


def test_a_start_over_renames_kept_checkpoints(tiny, tmp_path):
    config = override(tiny, keep_every=2, save_every=100)
    run = train(config, tmp_path / "run")
    before = run.load("step-2")[0]
    run.checkpoint().unlink()
    run = train(override(config, seed=1), run.path)
    assert same_tensors(run.load("step-2-1")[0], before)
    assert not same_tensors(run.load("step-2")[0], before)
    assert run.kept_steps() == [2, 4, 6]


@pytest.mark.parametrize("labels", [True, False])
def test_checkpoints_are_scored_and_drawn(tiny, tmp_path, short_report, labels):
    short_report("checkpoints")
    config = override(tiny, keep_every=3)
    if not labels:
        images = [image.numpy() for image in torch.randint(0, 256, (60, 16, 16, 3), dtype=torch.uint8)]
        write_parquet(tmp_path / "bare" / "train.parquet", images)
        config = override(config, data__source=str(tmp_path / "bare"))
    opened = EvaluationRun.open(train(config, tmp_path / "run").path)
    result = evaluate_run(opened)
    scores = result["checkpoints"]["scores"]
    assert [part["step"] for part in scores] == [0, 3, 6]
    trained, untrained = result["trained"], result["untrained"]
    for part, whole in ((scores[0], untrained), (scores[-1], trained)):
        keys = ["rankme", "lidar", *(["linear", "knn"] if labels else [])]
        assert [part[key] for key in keys] == pytest.approx([whole[key] for key in keys], abs=0.02)
    text = as_text(result, opened.folder.path)
    assert "Of 3 checkpoints" in text
    assert ("the linear probe is best at step" in " ".join(text.split())) == labels
    titles = [axes.get_title("left") for axes in draw("checkpoints", opened).axes]
    assert any(title.startswith("RankMe") for title in titles)
    page = write_report(opened, result).read_text(encoding="utf-8")
    assert "<h2>Checkpoints</h2>" in page


def test_a_damaged_kept_checkpoint_is_left_out_and_named(tiny, tmp_path):
    run = train(override(tiny, keep_every=2), tmp_path / "run")
    content = bytearray(run.checkpoint("step-4").read_bytes())
    content[-5] ^= 1
    run.checkpoint("step-4").write_bytes(content)
    result = evaluate(run.path)
    assert [part["step"] for part in result["checkpoints"]["scores"]] == [0, 2, 6]
    (note,) = [note for note in result["notes"] if "step-4.safetensors is damaged" in note]
    assert note.startswith("left out of the checkpoints: ")
    figure = draw("checkpoints", EvaluationRun.open(run.path))
    assert figure.get_suptitle() == "without 1 kept checkpoint that cannot be read"


def test_a_run_without_kept_checkpoints_says_how_to_keep_them(tiny, tmp_path):
    opened = EvaluationRun.open(train(tiny, tmp_path / "run").path)
    with pytest.raises(InputError, match="no kept checkpoints; train it with --keep-every N"):
        draw("checkpoints", opened)
    assert "checkpoints" not in evaluate(opened.folder.path)


def test_measures_are_logged_during_training(tiny, tmp_path):
    run = train(override(tiny, eval_every=3), tmp_path / "run")
    records = [record for record in run.metrics() if "rankme" in record]
    names = {"rankme", "lidar", "alpha_req", "cluster_learnability", "intrinsic_dimension", "feature_std"}
    assert [record["step"] for record in records] == [0, 3, 6]
    assert all(names <= record.keys() for record in records)
    assert same_tensors(last(run), last(train(tiny, tmp_path / "silent")))  # measuring changes nothing


def test_collapsed_features_have_no_undefined_measures(tiny, tmp_path):
    opened = EvaluationRun.open(train(tiny, tmp_path / "run").path)
    encoder = opened.encoders["trained"]
    found = label_free_scores(encoder, torch.ones(40, 32), opened.test)
    assert "alpha_req" not in found
    assert "intrinsic_dimension" not in found
    assert all(math.isfinite(value) for value in found.values())


def test_keep_every_must_not_be_negative(tiny):
    with pytest.raises(InputError, match="keep_every must be an integer of at least 0, got -1"):
        dataclasses.replace(tiny, keep_every=-1)
