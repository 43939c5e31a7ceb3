"""jepa classify: a table of predictions by the head of a fine-tuned run."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jepa.classify import classify
from jepa.cli import main
from jepa.config import InputError, SupervisedConfig
from jepa.data import open_splits
from jepa.evaluate import evaluate
from jepa.runs import Run, load_objective
from jepa.train import train
from tests.conftest import override, toy_images, write_parquet


@pytest.fixture
def tuned(tiny, tmp_path) -> Run:
    """A supervised run of the classes a (bright on the left) and b (bright on the right)."""
    config = dataclasses.replace(tiny, steps=30, objective=SupervisedConfig(head="probe"), save_every=30)
    return train(override(config, optim__lr=3e-3), tmp_path / "runs" / "tuned")


def write_folder(path: Path, images: dict[str, np.ndarray]) -> Path:
    for name, image in images.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / name)
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def call(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return int(caught.value.code or 0), output.out, output.err


def test_it_is_said_whether_images_have_been_trained_on(tuned, toy_source, tmp_path, capsys):
    """By the place of the source, if its images have changed; copies elsewhere are not recognized."""
    images, labels = toy_images(20, seed=4)
    copies = write_parquet(tmp_path / "copies" / "test-0.parquet", images, labels).parent
    unknown = "copies of images with which the head was trained are counted, too"
    for source, flags, said in ((toy_source, ("--split", "test"), ""), (copies, (), unknown)):
        code, text, err = call(capsys, "classify", tuned.path, source, "--out", tmp_path / "p.csv", *flags)
        assert code == 0, err
        assert (unknown in text) == bool(said)
        assert "the head was trained on some of them" not in text
    write_parquet(Path(toy_source) / "train-00001-of-00002.parquet", images, labels)
    _, text, _ = call(capsys, "classify", tuned.path, toy_source, "--out", tmp_path / "p.csv")
    assert "the head was trained on some of them" in text.splitlines()[0]
    assert unknown not in text


def test_an_exported_model_is_no_run(tuned, toy_source, tmp_path, capsys):
    code, _, err = call(capsys, "export", tuned.path, "--format", "safetensors", "--out", tmp_path / "exported")
    assert code == 0, err
    for words in (("classify", tmp_path / "exported", toy_source), ("evaluate", tmp_path / "exported")):
        code, _, err = call(capsys, *words)
        assert code == 2
        assert "is an exported model, not a run; 'jepa import " in err


def test_predictions_of_a_labeled_source(tuned, toy_source, tmp_path, capsys):
    out = tmp_path / "predictions.csv"
    code, text, err = call(capsys, "classify", tuned.path, toy_source, "--out", out, "--top", "2")
    assert code == 0, err
    rows = rows_of(out)
    assert [row["split"] for row in rows] == ["train"] * 80 + ["test"] * 40
    assert list(rows[0]) == [
        *("path", "split", "label", "prediction", "probability", "prediction_2", "probability_2", "error"),
    ]
    for row in rows:
        assert {row["prediction"], row["prediction_2"]} == {"a", "b"}
        assert float(row["probability"]) >= 0.5
        assert float(row["probability"]) + float(row["probability_2"]) == pytest.approx(1, abs=2e-4)
    test = [row for row in rows if row["split"] == "test"]
    accuracy = 100 * np.mean([row["prediction"] == row["label"] for row in test])
    assert accuracy > 90
    assert accuracy == pytest.approx(evaluate(tuned.path)["head"]["accuracy"])
    assert f"test: 40 images, accuracy {accuracy:.1f} ± " in text
    assert "the head was trained on some of them" in text.splitlines()[0]
    assert "the head was trained" not in text.splitlines()[1]


def test_predictions_are_those_of_the_objective(tuned, toy_source, tmp_path):
    classify(tuned.path, toy_source, tmp_path / "p.csv", split="test")
    objective = load_objective(tuned)[0].eval()
    images = open_splits(tuned.config.data, "test", tmp_path / "cache")["test"].read(torch.arange(40)).pixels
    with torch.no_grad():
        expected = objective.head(objective.encoder.embed(images)).softmax(-1).max(-1)
    rows = rows_of(tmp_path / "p.csv")
    assert [float(row["probability"]) for row in rows] == pytest.approx(expected.values.tolist(), abs=1e-4)
    assert [row["prediction"] for row in rows] == ["ab"[i] for i in expected.indices.tolist()]


def test_classes_are_compared_by_name(tuned, tmp_path):
    """In this folder, b is the first class, and zebra is unknown to the head."""
    left, right = (next(x for x, y in zip(*toy_images(20), strict=True) if y == label) for label in (0, 1))
    images = {f"train/{name}/{i}.png": image for name, image in (("b", right), ("zebra", left)) for i in range(3)}
    source = write_folder(tmp_path / "folder", images)
    (result,) = classify(tuned.path, str(source), tmp_path / "p.csv")
    assert (result.images, result.labeled, result.correct, result.unknown) == (6, 3, 3, {"zebra": 3})
    assert "accuracy 100.0" in str(result)
    assert "also 3 images of classes that the head does not have: 'zebra'" in str(result)
    other = write_folder(tmp_path / "other", {f"train/{name}/1.png": left for name in ("x", "y")})
    (result,) = classify(tuned.path, str(other), tmp_path / "p.csv")
    assert "accuracy" not in str(result)
    assert "2 images of classes that the head does not have: 'x', 'y'" in str(result)


def test_unlabeled_gray_and_unreadable_images_of_any_size(tuned, tmp_path, capsys):
    images = {"größe 1.png": np.full((30, 20), 90, np.uint8), "b.png": np.full((9, 40, 3), 90, np.uint8)}
    source = write_folder(tmp_path / "photos", images)
    for name in ("a.png", "c.png", "z.png"):
        (source / name).write_bytes(b"not an image")
    out = tmp_path / "predictions.csv"
    code, text, err = call(capsys, "classify", tuned.path, source, "--out", out)
    assert code == 0, err
    rows = {row["path"]: row for row in rows_of(out)}
    assert len(rows) == 5
    assert rows["größe 1.png"]["prediction"] in ("a", "b")
    assert all(row["label"] == "" for row in rows.values())
    for name in ("a.png", "c.png", "z.png"):
        assert (rows[name]["prediction"], rows[name]["probability"]) == ("", "")
        assert rows[name]["error"]
    assert "3 unreadable images, for example a.png: " in text
    assert "accuracy" not in text


def test_a_single_image(tuned, tmp_path):
    source = write_folder(tmp_path / "one", {"x.png": np.zeros((16, 16, 3), np.uint8)})
    (result,) = classify(tuned.path, str(source), tmp_path / "p.csv")
    assert str(result) == "train: 1 image"
    assert len(rows_of(tmp_path / "p.csv")) == 1


def test_what_cannot_be_classified_leaves_no_file(tuned, tiny, toy_source, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"no image")
    plain = train(dataclasses.replace(tiny, steps=1), tmp_path / "runs" / "plain").path
    out = tmp_path / "out" / "predictions.csv"
    out.parent.mkdir()
    capsys.readouterr()
    for arguments, sentence in (
        ([plain, toy_source], "has no head that classifies images; fine-tune it with labeled images: jepa finetune"),
        ([tmp_path / "nowhere", toy_source], "there is no run folder"),
        ([tuned.path, tmp_path / "nothing"], "nothing"),
        ([tuned.path, broken], "can"),
        ([tuned.path, toy_source, "--split", "tset"], "has no split 'tset', only train, test; did you mean 'test'?"),
        ([tuned.path, toy_source, "--top", "3"], "--top must be between 1 and 2, the number of classes, got 3"),
        ([tuned.path, toy_source, "--checkpoint", "best"], "has no checkpoint best.safetensors"),
        ([tuned.path], "SOURCE is missing"),
    ):
        code, _, err = call(capsys, "classify", *arguments, "--out", out)
        assert (code, len(err.strip().splitlines())) == (2, 1), err
        assert sentence in err
        assert list(out.parent.iterdir()) == []
    with pytest.raises(InputError, match="is a folder; give the name of a file"):
        classify(tuned.path, toy_source, tmp_path)
    with pytest.raises(InputError, match=r"the folder .*missing of --out does not exist"):
        classify(tuned.path, toy_source, tmp_path / "missing" / "p.csv")


def test_an_interrupted_classification_keeps_the_old_file(tuned, toy_source, tmp_path, monkeypatch):
    out = tmp_path / "out" / "p.csv"
    out.parent.mkdir()
    out.write_text("before", encoding="utf-8")
    monkeypatch.setattr("jepa.classify._count_label", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        classify(tuned.path, toy_source, out)
    assert out.read_text(encoding="utf-8") == "before"
    assert list(out.parent.iterdir()) == [out]


def test_images_of_other_splits_are_named(tuned, tmp_path):
    for split in ("train", "validation", "test"):
        write_parquet(tmp_path / "three" / f"{split}-0.parquet", *toy_images(5))
    results = classify(tuned.path, str(tmp_path / "three"), tmp_path / "p.csv")
    assert sorted(result.name for result in results) == ["test", "train", "validation"]
