import dataclasses
import json

import numpy as np
import pytest
import torch

from jepa.cli import main
from jepa.config import (
    Config,
    CropConfig,
    FixationConfig,
    InputError,
    OptimConfig,
    SaccadeConfig,
    SupervisedConfig,
)
from jepa.config.serialization import from_dict, to_dict
from jepa.data import Batch, split_holdout
from jepa.evaluate import evaluate_run, supervised_config, train_supervised
from jepa.evaluation.features import Features
from jepa.evaluation.pixel_baselines import PatchDictionary, kmeans, pca_features
from jepa.evaluation_run import EvaluationRun
from jepa.objectives.supervised import Supervised
from jepa.rng import Rng
from jepa.runs import Run, fresh_objective
from jepa.train import train
from tests.conftest import override, toy_images, write_parquet


@pytest.fixture
def few_centroids(monkeypatch):
    """K-means with 800 centroids takes most of the time of these tests."""
    monkeypatch.setattr("jepa.evaluation.pixel_baselines.NUM_CENTROIDS", 50)


@pytest.mark.usefixtures("few_centroids")
def test_full_adds_the_baselines_and_trains_the_network_once(tiny, tmp_path, capsys, short_report):
    short_report("spectrum")
    run = train(dataclasses.replace(tiny, steps=40), tmp_path / "run").path
    saved_at = []
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", str(run), "--full"])
        assert stop.value.code == 0
        out = capsys.readouterr().out
        for title in ("PCA of pixels", "k-means of patches", "supervised (same architecture)"):
            assert title in out
        (checkpoint,) = (run / "baselines").glob("supervised-*/checkpoints/last.safetensors")
        saved_at.append(checkpoint.stat().st_mtime_ns)
    assert saved_at[0] == saved_at[1]
    result = json.loads((run / "evaluation.json").read_text())
    for row in ("pca", "patches", "supervised"):
        assert result[row]["linear"] > 80  # the classes differ in which half is bright
    assert "supervised (same architecture)" in (run / "report.html").read_text()


def test_full_without_labels_omits_the_baselines(tiny, tmp_path, capsys, short_report):
    short_report("spectrum")
    for split, count in (("train", 40), ("test", 30)):
        write_parquet(tmp_path / "bare" / f"{split}.parquet", toy_images(count)[0])
    run = train(override(tiny, data__source=str(tmp_path / "bare")), tmp_path / "run").path
    with pytest.raises(SystemExit):
        main(["evaluate", str(run), "--full"])
    assert "the baselines of --full" in capsys.readouterr().out
    assert not (run / "baselines").exists()


@pytest.mark.usefixtures("few_centroids")
def test_random_labels_score_at_chance_in_every_row(tiny, tmp_path):
    """No row is scored on images whose labels it has seen, although there is no test split."""
    classes, size = 2, 100
    labels = np.random.default_rng(0).integers(0, classes, size).tolist()
    write_parquet(tmp_path / "random" / "train.parquet", toy_images(size, seed=size)[0], labels, "ab")
    optim = OptimConfig(lr=3e-3, warmup=5)
    config = override(
        tiny, data__source=str(tmp_path / "random"), steps=200, save_every=200, batch_size=32, optim=optim
    )
    config = override(config, data__holdout=0.02, objective__crop=CropConfig(kind="full"))
    result = evaluate_run(EvaluationRun.open(train(config, tmp_path / "run").path), full=True)
    supervised = Run(next((tmp_path / "run" / "baselines").glob("supervised-*")))
    last_loss = [record["loss"] for record in supervised.metrics() if "loss" in record][-1]
    assert last_loss < 0.3  # it has learned its training images by heart
    chance, spread = 100 / classes, 100 * (classes - 1) ** 0.5 / classes / result["data"]["test"] ** 0.5
    for row in ("trained", "context", "untrained", "pixels", "pca", "patches", "supervised"):
        for key in ("knn", "linear", "linear_10pc"):
            assert abs(result[row][key] - chance) < 4 * spread, (row, key)


def test_a_supervised_run_without_a_test_split_is_scored_on_its_held_out_images(tiny, tmp_path):
    images, labels = toy_images(100)
    write_parquet(tmp_path / "data" / "train.parquet", images, labels)
    config = override(tiny, data__source=str(tmp_path / "data"), data__holdout=0.1, objective=SupervisedConfig(2))
    run = EvaluationRun.open(train(config, tmp_path / "run").path)
    assert len(run.test.indices) == 10
    assert torch.equal(run.test.indices, split_holdout(100, 0.1)[1])
    unsplit = train(override(config, data__holdout=0.0), tmp_path / "unsplit")
    with pytest.raises(InputError, match="no test split, and only 0 of its 100 images can be held out"):
        EvaluationRun.open(unsplit.path)


def test_images_seen_with_their_labels_are_not_scored(tiny, tmp_path):
    """Neither through another path of the same images, nor after images have been added."""
    images, labels = toy_images(100)
    write_parquet(tmp_path / "data" / "train.parquet", images, labels)
    config = override(tiny, data__source=str(tmp_path / "data"), data__holdout=0.1, objective=SupervisedConfig(2))
    path = train(config, tmp_path / "run").path
    same_images = EvaluationRun.open(path, f"{tmp_path}/data/../data")
    assert torch.equal(same_images.test.indices, split_holdout(100, 0.1)[1])
    write_parquet(tmp_path / "other" / "train.parquet", *toy_images(50, seed=5))
    assert len(EvaluationRun.open(path, str(tmp_path / "other")).test.indices) == 10
    write_parquet(tmp_path / "data" / "train.parquet", *toy_images(120))
    with pytest.raises(InputError, match="have changed since the weights were trained with their labels"):
        EvaluationRun.open(path)


def test_the_supervised_baseline_is_trained_again_when_images_are_added(tiny, tmp_path):
    for count in (60, 70):
        write_parquet(tmp_path / "data" / "train.parquet", *toy_images(count))
        if count == 60:
            path = train(override(tiny, data__source=str(tmp_path / "data"), batch_size=50), tmp_path / "run").path
        run = EvaluationRun.open(path)
        train_supervised(run)
        networks = [Run(folder).config for folder in sorted((path / "baselines").glob("supervised-*"))]
        assert len(networks) == (1 if count == 60 else 2)
    assert {network.batch_size for network in networks} == {48, 50}  # no more than the images to fit on
    assert all(network.data.holdout == 0.2 for network in networks)


@pytest.mark.parametrize("train_labels", [None, "one class"])
def test_a_labeled_test_split_alone_gives_no_accuracies(train_labels, tiny, tmp_path):
    images, labels = toy_images(40)
    write_parquet(tmp_path / "data" / "train.parquet", images, None if train_labels is None else [0] * 40)
    write_parquet(tmp_path / "data" / "test.parquet", images[:20], labels[:20])
    run = EvaluationRun.open(train(override(tiny, data__source=str(tmp_path / "data")), tmp_path / "run").path)
    result = evaluate_run(run, full=True)
    assert "linear" not in result["trained"]
    assert "linear" not in result["pixels"]
    assert "labels" in result["left_out"]


@pytest.mark.parametrize("holdout", [0.05, 0.4])
def test_the_supervised_baseline_holds_out_all_images_that_are_scored(holdout, tiny, tmp_path):
    write_parquet(tmp_path / "data" / "train.parquet", *toy_images(60))
    config = override(tiny, data__source=str(tmp_path / "data"), data__holdout=holdout, objective=SupervisedConfig(2))
    run = EvaluationRun.open(train(override(config, steps=1), tmp_path / "run").path)
    train_supervised(run)
    baseline = Run(next((tmp_path / "run" / "baselines").glob("supervised-*"))).config
    trained_on, _ = split_holdout(60, baseline.data.holdout)
    assert not torch.isin(run.test.indices, trained_on).any()


def test_unlabeled_images_have_no_supervised_loss(tiny):
    config = override(tiny, data__mean=(0.5,) * 3, data__std=(0.2,) * 3, objective=SupervisedConfig(classes=3))
    objective = fresh_objective(config)
    images, labels = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8), torch.arange(8) % 3

    def loss(some_labels):
        inputs = objective.sample(Batch(images, some_labels, torch.arange(8)), Rng(0, 0, torch.arange(8)))
        return objective(inputs)["loss"]

    half = labels.clone()
    half[4:] = -1
    inputs = objective.sample(Batch(images, labels, torch.arange(8)), Rng(0, 0, torch.arange(8)))
    logits = objective.head(objective.encoder(inputs.images).x.mean(1))
    assert torch.allclose(loss(half), -logits.log_softmax(-1)[torch.arange(4), labels[:4]].sum() / 8)
    assert loss(torch.full((8,), -1)) == 0


def test_the_supervised_loss_is_the_cross_entropy_of_its_head(tiny):
    config = override(tiny, data__mean=(0.5,) * 3, data__std=(0.2,) * 3, objective=SupervisedConfig(classes=3))
    objective = fresh_objective(config)
    assert isinstance(objective, Supervised)
    images, labels = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8), torch.arange(8) % 3
    inputs = objective.sample(Batch(images, labels, torch.arange(8)), Rng(0, 0, torch.arange(8)))
    logits = objective.head(objective.encoder(inputs.images).x.mean(1))
    expected = -logits.log_softmax(-1)[torch.arange(8), labels].mean()
    assert torch.allclose(objective(inputs)["loss"], expected)
    with pytest.raises(InputError, match="requires labels"):
        objective.sample(Batch(images, None, torch.arange(8)), Rng(0, 0, torch.arange(8)))


def test_the_supervised_config_has_the_network_of_the_run(tiny):
    config = supervised_config(tiny, 5)
    assert config.backbone == tiny.backbone
    assert config.steps == tiny.steps
    assert config.objective == SupervisedConfig(5, tiny.objective.crop)
    assert supervised_config(config, 7).objective == SupervisedConfig(7, tiny.objective.crop)  # of other images
    assert from_dict(Config, to_dict(config)) == config
    fixations = FixationConfig(view_fraction=0.6, shift=0.2, rotation=10)
    saccade = dataclasses.replace(tiny, objective=SaccadeConfig(fixations=fixations))
    assert supervised_config(saccade, 5).objective.crop.scale == (0.36, 1.0)
    with pytest.raises(InputError, match="must be an integer of at least 2"):
        SupervisedConfig(classes=1)


def test_kmeans_finds_planted_clusters():
    generator = torch.Generator().manual_seed(0)
    centers = 20 * torch.eye(4)
    x = centers.repeat(50, 1) + torch.randn(200, 4, generator=generator)
    centroids = kmeans(x, 12, generator)
    assert float(torch.cdist(centers, centroids).min(1).values.max()) < 1.5


def test_patch_features_are_nonnegative_and_sparse(tiny, tmp_path):
    dataset, indices = EvaluationRun.open(train(tiny, tmp_path / "run").path).train
    dictionary = PatchDictionary(dataset, indices)
    features = dictionary.features(dataset, indices)
    assert features.x.shape == (80, 4 * len(dictionary.centroids))
    assert bool((features.x >= 0).all())
    assert float((features.x == 0).float().mean()) > 0.2  # the triangle activation is sparse
    assert dictionary.encode(torch.rand(1, 3, 16, 16)).shape == (1, features.x.shape[1])
    assert torch.equal(features.indices, indices)


def test_pca_is_fitted_on_the_training_features():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 5, generator=generator) * torch.tensor([1.0, 9, 1, 4, 1]) + 3
    train_features, test_features = (
        Features(split, None, torch.arange(len(split)), "planted") for split in (x[:300], x[300:])
    )
    train_pca, test_pca = pca_features(train_features, test_features, 2)
    assert torch.allclose(train_pca.x.mean(0), torch.zeros(2), atol=1e-4)
    assert torch.allclose(test_pca.x[:, 0].abs(), (x[300:, 1] - x[:300, 1].mean()).abs(), atol=0.7)
