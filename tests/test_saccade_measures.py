"""R² of movements and accuracies of averaged fixations, of encoders whose features are planted."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jepa.config import DataConfig, FixationConfig, SaccadeConfig
from jepa.data import ImageDataset, open_dataset
from jepa.evaluate import evaluate
from jepa.evaluation.averaged_fixations import averaged_fixations
from jepa.evaluation.features import Features, Subset
from jepa.evaluation.movement_regression import movement_r2
from jepa.report.text import as_text, fixations_text
from jepa.rng import Rng
from jepa.train import train
from jepa.transforms.saccade import Geometry
from tests.conftest import toy_images, write_parquet

SIDE = 32
FIXATIONS = FixationConfig(view_fraction=0.5, shift=0.3, rotation=20, zoom=1.5)


@pytest.fixture
def dataset(tmp_path) -> ImageDataset:
    """Images whose first channels are the coordinates, and whose third is that of their class."""
    y, x = np.meshgrid(8 * np.arange(SIDE), 8 * np.arange(SIDE), indexing="ij")
    labels = [i % 2 for i in range(400)]
    images = [
        np.stack([x, y, np.full_like(x, 200 * label + i // 10)], -1).astype(np.uint8) for i, label in enumerate(labels)
    ]
    write_parquet(tmp_path / "coordinates" / "train.parquet", images, labels)
    return open_dataset(DataConfig(source=str(tmp_path / "coordinates"), image_size=16, canvas=SIDE), "train", tmp_path)


class Planted(nn.Module):
    """Embeds views by a function, on the CPU, and checks that no gradients are kept and dropout is off."""

    device = torch.device("cpu")

    def __init__(self, embed) -> None:
        super().__init__()
        self.function = embed

    def embed(self, views: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        return self.function(views)


def pose(views: Tensor) -> Tensor:
    """Return the position, rotation and log-zoom (B, 4) of views of coordinates, in view sides at zoom 1."""
    at = 255 / 8 * views[:, :2]
    middle = at[:, :, 4:12, 4:12].mean((2, 3)) / 16
    right = at[:, :, 8, 10] - at[:, :, 8, 5]
    return torch.cat([middle, torch.atan2(right[:, 1], right[:, 0])[:, None], right.norm(dim=1).log()[:, None]], 1)


def told(views: Tensor) -> Tensor:
    """Return features of a pose from which the movement follows linearly, if neither view is rotated."""
    x, y, angle, zoom = pose(views).unbind(1)
    return torch.stack([x, y, 3 * angle + 1, 5 * zoom], 1) @ torch.randn(
        4, 12, generator=torch.Generator().manual_seed(0)
    )


def halves(dataset: ImageDataset) -> tuple[Subset, Subset]:
    return Subset(dataset, torch.arange(0, 250)), Subset(dataset, torch.arange(250, 400))


def geometry(fixations: FixationConfig = FIXATIONS) -> Geometry:
    return Geometry(fixations, (SIDE, SIDE), (16, 16))


@pytest.mark.parametrize(
    ("fixations", "names"),
    [
        (FixationConfig(view_fraction=0.5, shift=0.3, rotation=0), ["shift x", "shift y", "mean"]),
        (FixationConfig(view_fraction=0.5, shift=0, rotation=20), ["rotation", "mean"]),
        (FixationConfig(view_fraction=0.5, shift=0, rotation=20, zoom=1.5), ["rotation", "zoom", "mean"]),
    ],
)
def test_an_encoder_that_is_told_the_movement_has_an_r2_of_1(dataset, fixations, names):
    scores = movement_r2(Planted(told), geometry(fixations), *halves(dataset))
    assert list(scores["linear"]) == list(scores["mlp"]) == names
    assert all(value == pytest.approx(1, abs=0.01) for value in scores["linear"].values())
    assert all(value > 0.8 for value in scores["mlp"].values())
    assert movement_r2(Planted(told), geometry(fixations), *halves(dataset)) == scores


def test_an_encoder_that_is_invariant_has_an_r2_of_0(dataset):
    """Its features tell the image, but nothing about the view."""
    mixing = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))

    def embed(views: Tensor) -> Tensor:
        image = views[:, 2].mean((1, 2)).mul(255).round()
        return torch.stack([image, (7 * image).sin(), (13 * image).cos()], 1) @ mixing

    scores = movement_r2(Planted(embed), geometry(), *halves(dataset))
    assert list(scores["linear"]) == ["rotation", "shift x", "shift y", "zoom", "mean"]
    assert all(abs(value) <= 0.05 for regression in scores.values() for value in regression.values())


@pytest.mark.parametrize("constant", [0.0, 1e30])
def test_constant_features_have_an_r2_of_0(dataset, constant):
    scores = movement_r2(Planted(lambda views: torch.full((len(views), 8), constant)), geometry(), *halves(dataset))
    assert all(abs(value) <= 0.05 for regression in scores.values() for value in regression.values())


def class_scores(dataset: ImageDataset, embed) -> dict[str, float] | None:
    """Score averaged fixations of an encoder whose features of whole images are right."""
    whole = as_features(dataset.labels)
    whole += 0.01 * torch.randn(whole.shape, generator=torch.Generator().manual_seed(1))
    train, test = (Features(whole[s.indices], dataset.labels[s.indices], s.indices, "data") for s in halves(dataset))
    return averaged_fixations(Planted(embed), geometry(), (dataset, train), (dataset, test))


def seen(views: Tensor) -> Tensor:
    """Return the class of views as a feature."""
    return as_features((views[:, 2].mean((1, 2)) > 0.5).long())


def as_features(labels: Tensor) -> Tensor:
    """Return features (N, 8) of two classes: all 1, or all -1."""
    return (2.0 * labels - 1)[:, None].repeat(1, 8)


def test_accuracy_rises_with_fixations_if_each_tells_the_class_with_noise(dataset):
    noise = torch.Generator().manual_seed(0)
    scores = class_scores(dataset, lambda views: seen(views) + 4 * torch.randn(len(views), 8, generator=noise))
    accuracies = [scores[str(count)] for count in (1, 2, 4, 8, 16)]
    assert accuracies == sorted(accuracies)
    assert accuracies[-1] > accuracies[0] + 3 * (scores["1_error"] + scores["16_error"])
    assert scores["whole image"] == 100


def test_accuracy_is_flat_if_the_features_are_invariant(dataset):
    scores = class_scores(dataset, seen)
    assert {scores[key] for key in ("1", "2", "4", "8", "16", "whole image")} == {100.0}


def test_the_fixations_are_those_of_training(dataset):
    """The zoom of single fixations has the distribution of the first of each pair."""
    zooms = []

    def embed(views: Tensor) -> Tensor:
        zooms.append(pose(views)[:, 3])
        return seen(views)

    class_scores(dataset, embed)
    fixations = torch.cat(zooms) - float(np.log(5 * 16 / 16))
    expected = geometry().sample(Rng(7, 0, torch.arange(5000)))[0].zoom.log()
    assert float(fixations.mean()) == pytest.approx(float(expected.mean()), abs=0.02)
    assert float(fixations.std()) == pytest.approx(float(expected.std()), abs=0.02)


def test_what_cannot_be_computed_is_left_out(dataset):
    train_subset, test_subset = halves(dataset)
    few = Subset(dataset, torch.arange(31))
    for subsets in ((few, test_subset), (train_subset, Subset(dataset, torch.arange(370, 400)))):
        assert movement_r2(Planted(told), geometry(), *subsets) is None
    for value in (torch.nan, torch.inf):
        assert movement_r2(Planted(lambda views: told(views) + value), geometry(), train_subset, test_subset) is None  # noqa: B023
        assert class_scores(dataset, lambda views: seen(views) + value) is None  # noqa: B023
    x, indices = torch.randn(60, 8), torch.arange(60)
    for labels, count in ((None, 30), (torch.zeros(60, dtype=torch.long), 30), (indices % 2, 10)):
        split = [
            (dataset, Features(x[part], None if labels is None else labels[part], indices[part], "data"))
            for part in (slice(0, count), slice(count, 60))
        ]
        assert averaged_fixations(Planted(seen), geometry(), *split) is None


def test_an_evaluation_without_a_predictor_and_without_labels(tiny, tmp_path):
    for split, count in (("train", 60), ("test", 40)):
        write_parquet(tmp_path / "unlabeled" / f"{split}.parquet", toy_images(count)[0])
    fixations = FixationConfig(view_fraction=0.6, shift=0.4, rotation=10)
    objective = SaccadeConfig(hidden=16, prediction=0, cycle=0, invariance=1, fixations=fixations)
    data = dataclasses.replace(tiny.data, source=str(tmp_path / "unlabeled"))
    run = train(dataclasses.replace(tiny, objective=objective, data=data), tmp_path / "run")
    result = evaluate(run.path)
    saccades = result["saccades"]
    assert list(saccades) == ["movement_r2"]
    assert list(saccades["movement_r2"]) == ["trained", "untrained"]
    text = fixations_text(saccades)
    assert "R² of the movement" in text
    assert "kNN" not in text
    assert text in " ".join(as_text(result, run.path).split())
