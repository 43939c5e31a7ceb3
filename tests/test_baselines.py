import dataclasses
import json

import pytest
import torch

from jepa.baselines import supervised_config
from jepa.cli import main
from jepa.config import Config, FixationConfig, InputError, SaccadeConfig, SupervisedConfig
from jepa.config_json import from_dict, to_dict
from jepa.data import Batch
from jepa.evaluation import Features, PatchDictionary, principal_features
from jepa.evaluation.patches import kmeans
from jepa.objectives import Supervised
from jepa.rng import Rng
from jepa.runs import fresh_objective
from jepa.subject import Subject
from jepa.train import train
from tests.conftest import toy_images, write_parquet


def test_full_adds_the_baselines_and_takes_the_network_that_was_trained_before(tiny, tmp_path, capsys):
    run = train(dataclasses.replace(tiny, steps=40), tmp_path / "run").path
    saved = []
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", str(run), "--full"])
        assert stop.value.code == 0
        out = capsys.readouterr().out
        assert all(title in out for title in ("PCA of pixels", "k-means of patches", "the same, trained with labels"))
        (checkpoint,) = (run / "baselines").glob("supervised-*/checkpoints/last.safetensors")
        saved.append(checkpoint.stat().st_mtime_ns)
    assert saved[0] == saved[1]
    found = json.loads((run / "evaluation.json").read_text())
    for row in ("pca", "patches", "supervised"):
        assert found[row]["linear"] > 80  # bright left or bright right
    assert "the same, trained with labels" in (run / "report.html").read_text()


def test_full_without_labels_says_so(tiny, tmp_path, capsys):
    for split, count in (("train", 40), ("test", 30)):
        write_parquet(tmp_path / "bare" / f"{split}.parquet", toy_images(count)[0])
    config = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, source=str(tmp_path / "bare")))
    run = train(config, tmp_path / "run").path
    with pytest.raises(SystemExit):
        main(["evaluate", str(run), "--full"])
    assert "the baselines of --full" in capsys.readouterr().out
    assert not (run / "baselines").exists()


def test_the_supervised_loss_is_the_cross_entropy_of_its_head(tiny):
    data = dataclasses.replace(tiny.data, mean=(0.5,) * 3, std=(0.2,) * 3)
    config = dataclasses.replace(tiny, data=data, objective=SupervisedConfig(classes=3))
    objective = fresh_objective(config)
    assert isinstance(objective, Supervised)
    images, labels = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8), torch.arange(8) % 3
    inputs = objective.sample(Batch(images, labels, torch.arange(8)), Rng(0, 0, torch.arange(8)))
    logits = objective.head(objective.encoder(inputs.images).x.mean(1))
    expected = -logits.log_softmax(-1)[torch.arange(8), labels].mean()
    assert torch.allclose(objective(inputs)["loss"], expected)
    with pytest.raises(InputError, match="needs labels"):
        objective.sample(Batch(images, None, torch.arange(8)), Rng(0, 0, torch.arange(8)))


def test_the_supervised_network_is_that_of_the_run(tiny):
    asked = supervised_config(tiny, 5)
    assert asked.backbone == tiny.backbone
    assert asked.steps == tiny.steps
    assert asked.objective == SupervisedConfig(5, tiny.objective.crop)
    assert from_dict(Config, to_dict(asked)) == asked
    fixations = FixationConfig(field=0.6, shift=0.2, rotation=10)
    saccade = dataclasses.replace(tiny, objective=SaccadeConfig(fixations=fixations))
    assert supervised_config(saccade, 5).objective.crop.scale == (0.36, 1.0)
    with pytest.raises(InputError, match="takes a number from 2"):
        SupervisedConfig(classes=1)


def test_kmeans_finds_planted_clusters():
    generator = torch.Generator().manual_seed(0)
    centres = 20 * torch.eye(4)
    x = centres.repeat(50, 1) + torch.randn(200, 4, generator=generator)
    found = kmeans(x, 12, generator)
    assert float(torch.cdist(centres, found).min(1).values.max()) < 1.5


def test_patch_features_are_nonnegative_and_tell_quadrants(tiny, tmp_path):
    subject = Subject.open(train(tiny, tmp_path / "run").path)
    images, rows = subject.train
    dictionary = PatchDictionary(images, rows)
    found = dictionary.features(images, rows)
    assert found.x.shape == (80, 4 * len(dictionary.centroids))
    assert bool((found.x >= 0).all())
    assert float((found.x == 0).float().mean()) > 0.2  # the triangle activation is sparse
    mirrored = dictionary.encode(torch.rand(1, 3, 16, 16))
    assert mirrored.shape == (1, found.x.shape[1])
    assert torch.equal(found.rows, rows)


def test_principal_features_keep_the_axes_of_train():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 5, generator=generator) * torch.tensor([1.0, 9, 1, 4, 1]) + 3
    train_x, test_x = (Features(part, None, torch.arange(len(part)), "planted") for part in (x[:300], x[300:]))
    fitted, scored = principal_features(train_x, test_x, 2)
    assert torch.allclose(fitted.x.mean(0), torch.zeros(2), atol=1e-4)
    assert torch.allclose(scored.x[:, 0].abs(), (x[300:, 1] - x[:300, 1].mean()).abs(), atol=0.7)
