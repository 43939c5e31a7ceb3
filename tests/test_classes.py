"""Accuracies of classes and confusions, on planted predictions, features and images."""

import json
from dataclasses import replace

import pytest
import torch

from jepa.config import InputError
from jepa.evaluate import evaluate_run
from jepa.evaluation import class_predictions
from jepa.evaluation.class_predictions import (
    ClassPredictions,
    class_accuracy,
    class_table,
    predict_classes,
    top_confusions,
)
from jepa.evaluation.features import Features
from jepa.evaluation.knn import knn, predict_knn
from jepa.evaluation.linear_probe import linear_probe, predict_linear
from jepa.evaluation.scores import score
from jepa.evaluation_run import EvaluationRun
from jepa.report.html import write_report
from jepa.report.plot_classes import classes, draw_classes
from jepa.train import train
from tests.conftest import override, toy_images, write_parquet


def planted(count: int, num_classes: int = 5, seed: int = 0) -> Features:
    """Draw features of well separated classes, except that the classes 1 and 3 are the same."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % num_classes
    means = 8 * torch.eye(num_classes, 12)
    means[3] = means[1]
    x = means[labels] + torch.randn(count, 12, generator=generator)
    return Features(x, labels, torch.arange(count), f"split {seed}")


def test_classes_that_are_the_same_are_confused_with_each_other():
    train_features, test_features = planted(500), planted(250, seed=1)
    for predicted in (predict_linear(train_features, test_features)[0], predict_knn(train_features, test_features)[20]):
        first, second, *others = top_confusions(test_features.labels, predicted, 20)
        assert {first[:2], second[:2]} == {(1, 3), (3, 1)}
        assert all(count <= 1 for _, _, count in others)
        accuracy = class_accuracy(test_features.labels, predicted, 5)
        for label in range(5):
            chosen = test_features.labels == label
            assert float(accuracy[label]) == pytest.approx(100 * float((predicted[chosen] == label).float().mean()))
        assert float(accuracy[[0, 2, 4]].min()) >= 98


def test_predictions_have_the_accuracy_of_the_scores():
    train_features, test_features = planted(500), planted(250, seed=1)
    mean = class_accuracy(test_features.labels, predict_linear(train_features, test_features)[0], 5).mean()
    assert float(mean) == pytest.approx(linear_probe(train_features, test_features)[0])
    predicted = predict_knn(train_features, test_features, (20, 1))
    assert list(predicted) == [20, 1]
    for k, accuracy in knn(train_features, test_features, (1, 20)).items():
        assert float(class_accuracy(test_features.labels, predicted[k], 5).mean()) == pytest.approx(accuracy)


def test_predictions_are_stored_by_the_scores_and_fitted_again_for_other_features(tmp_path, monkeypatch):
    train_features, test_features = planted(500), planted(250, seed=1)
    partly = replace(test_features, labels=test_features.labels.masked_fill(test_features.indices < 50, -1))
    score("planted", train_features, partly, tmp_path)
    fitted = []
    original = class_predictions.predict_linear
    monkeypatch.setattr(class_predictions, "predict_linear", lambda *x: (fitted.append(1), original(*x))[1])
    stored = predict_classes(tmp_path, "planted", train_features, partly)
    assert not fitted
    assert torch.equal(stored.labels, test_features.labels[50:])
    assert torch.equal(stored.linear, original(train_features, replace(test_features, x=test_features.x))[0][50:])
    assert torch.equal(stored.knn, predict_knn(train_features, test_features)[20][50:])
    other = replace(partly, x=-partly.x)
    again = predict_classes(tmp_path, "planted", train_features, other)
    assert fitted == [1]
    assert not torch.equal(again.linear, stored.linear)
    few = predict_classes(tmp_path / "missing", "planted", planted(10), partly)
    assert few.knn is None
    assert fitted == [1, 1]


def test_a_table_has_a_row_for_each_class_with_test_images_whatever_its_name(monkeypatch):
    labels = torch.tensor([0, 0, 2, 2, 2, 3])
    found = ClassPredictions(labels, torch.tensor([0, 1, 2, 2, 2, 0]), None)
    names = ["crane", "crow", "crane", "only in test"]
    assert class_table({"trained": found}, names) == [
        {"class": "crane", "test_images": 2, "trained": {"linear": 50.0}},
        {"class": "crane", "test_images": 3, "trained": {"linear": 100.0}},
        {"class": "only in test", "test_images": 1, "trained": {"linear": 0.0}},
    ]
    monkeypatch.setattr(class_predictions, "MAX_CLASSES", 2)
    assert [row["trained"]["linear"] for row in class_table({"trained": found}, names)] == [50.0, 0.0]


def test_no_errors_are_no_confusions():
    labels = torch.arange(60)
    assert top_confusions(labels, labels, 20) == []
    right = ClassPredictions(labels, labels, labels)
    draw_classes({"trained": right, "untrained": right}, [str(i) for i in range(60)]).draw_without_rendering()


@pytest.mark.parametrize(("count", "rows", "bars"), [(2, 2, 0), (10, 10, 0), (40, 40, 0), (50, 40, 0), (51, 40, 20)])
def test_classes_are_drawn_however_many_there_are(count, rows, bars):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(20 * count) % count
    wrong = torch.rand(len(labels), generator=generator) < 0.3
    predicted = torch.where(wrong, (labels + 1) % count, labels)
    found = ClassPredictions(labels, predicted, predicted)
    figure = draw_classes({"trained": found, "untrained": found}, [f"class ${i}" for i in range(count)])
    figure.draw_without_rendering()
    accuracies, errors = figure.axes[0], figure.axes[2]
    assert len(accuracies.get_yticklabels()) == rows
    assert len(errors.patches) == bars
    assert bool(errors.images) == (bars == 0)
    assert len(errors.texts) == (count**2 if count <= 12 else bars)


def labeled_run(tiny, folder, train_labels: list[int], test_labels: list[int]) -> EvaluationRun:
    """Train a run on images with the given labels, repeated, of four classes."""
    for split, labels, count, seed in (("train", train_labels, 60, 0), ("test", test_labels, 40, 1)):
        chosen = [labels[i % len(labels)] for i in range(count)]
        write_parquet(folder / "data" / f"{split}.parquet", toy_images(count, seed=seed)[0], chosen, "abcd")
    return EvaluationRun.open(train(override(tiny, data__source=str(folder / "data")), folder / "run").path)


@pytest.mark.parametrize(
    ("train_labels", "test_labels", "expected"),
    [
        ([0, 1], [0, 1], ["a", "b"]),
        ([0, 1, 2], [0, 1, 3], ["a", "b", "d"]),  # 'c' only in train, 'd' only in test
        ([0, 1, -1], [0, -1], ["a"]),
    ],
)
def test_classes_of_a_run(tiny, tmp_path, train_labels, test_labels, expected, short_report):
    short_report("classes")
    run = labeled_run(tiny, tmp_path, train_labels, test_labels)
    figure = classes(run)  # before the evaluation
    assert sorted(label.get_text() for label in figure.axes[0].get_yticklabels()) == expected
    result = evaluate_run(run)
    assert result == json.loads((run.output.path / "evaluation.json").read_text())
    rows = result["class_accuracy"]
    assert [row["class"] for row in rows] == expected
    images = torch.tensor([row["test_images"] for row in rows])
    for name in ("trained", "untrained"):
        for key in ("knn", "linear"):
            accuracy = torch.tensor([row[name][key] for row in rows])
            assert float((accuracy * images).sum() / images.sum()) == pytest.approx(result[name][key], abs=0.01)
    assert all(row["trained"]["linear"] == 0 for row in rows if row["class"] == "d")
    assert "<h2>Classes</h2>\n<figure>" in write_report(run, result).read_text()


def test_without_classes_there_are_no_accuracies_of_them(tiny, tmp_path, short_report):
    short_report("classes")
    run = labeled_run(tiny, tmp_path, [0], [0, 1])
    with pytest.raises(InputError, match="labels of two or more classes"):
        classes(run)
    result = evaluate_run(run)
    assert "class_accuracy" not in result
    assert "Not available: accuracies of classes need labels" in write_report(run, result).read_text()
