"""Features pooled in quadrants, and features of equal width."""

import dataclasses

import pytest
import torch

from jepa.backbones import Tokens
from jepa.evaluate import evaluate_run, patch_scores
from jepa.evaluation import features as features_module
from jepa.evaluation.features import Features, FeatureStore, Subset, extract
from jepa.evaluation.pca import first_axes, principal_axes
from jepa.evaluation.pooled_scores import VIEWS, pooled_scores
from jepa.evaluation.pooling import QuadrantPooling, equal_width, pool_quadrants
from jepa.evaluation.scores import score
from jepa.evaluation_run import EvaluationRun
from jepa.report.text import as_text
from jepa.train import train
from tests.conftest import override
from tests.test_pictures import randn


def test_quadrants_are_the_averages_of_their_tokens():
    tokens = randn(3, 24, 5)
    grid = tokens.view(3, 4, 6, 5)
    halves = [(rows, columns) for rows in (slice(2), slice(2, 4)) for columns in (slice(3), slice(3, 6))]
    expected = [grid[:, rows, columns].mean((1, 2)) for rows, columns in halves]
    found = pool_quadrants(Tokens(tokens, (4, 6))).view(3, 5, 4)
    assert torch.allclose(found, torch.stack(expected, -1), atol=1e-6)


@pytest.mark.parametrize(("grid", "width"), [((1, 1), 5), ((1, 7), 10), ((3, 3), 20)])
def test_small_and_odd_grids(grid, width):
    tokens = randn(2, grid[0] * grid[1], 5)
    assert pool_quadrants(Tokens(tokens, grid)).shape == (2, width)


@pytest.mark.parametrize("width", [60, 1500])
def test_the_first_axes_are_the_principal_ones(width):
    x = randn(300, 8, seed=1) * torch.arange(9, 1, -1) @ randn(8, width) + 3
    axes = first_axes(x, 5)
    assert axes.shape == (width, 5)
    exact = principal_axes(x)[1][:, :5].float()
    assert torch.allclose((axes.T @ exact).abs(), torch.eye(5), atol=1e-3)
    assert first_axes(x, 20).shape == (width, 8)  # without those on which the features do not vary


def test_equal_width_keeps_the_variance_that_fits():
    x = randn(500, 200) * torch.where(torch.arange(200) < 100, 1.0, 1e-3)
    x = x @ torch.linalg.qr(randn(200, 200, seed=1))[0]
    part = Features(x, None, torch.arange(500), "x")
    narrow, same = equal_width(part, part)
    assert narrow.x.shape == (500, 128)
    assert torch.equal(narrow.x, same.x)
    assert torch.allclose(torch.pdist(narrow.x[:50]), torch.pdist(x[:50]), atol=1e-2)
    assert equal_width(dataclasses.replace(part, x=x[:, :128]), part) is None


@pytest.mark.parametrize("max_width", [512, 24])
def test_quadrants_are_stored_with_the_features(tiny, tmp_path, monkeypatch, max_width):
    monkeypatch.setattr("jepa.evaluation.pooling.MAX_WIDTH", max_width)
    opened = EvaluationRun.open(train(tiny, tmp_path / "run").path)
    encoder = opened.encoders["trained"]
    first = opened.extract("trained", encoder, opened.test)
    assert first.quadrants.shape == (40, min(4 * 32, max_width))
    pooling = QuadrantPooling(encoder, opened.train)
    again = extract(encoder, *opened.test, quadrants=pooling)
    for name in ("x", "last4", "quadrants"):
        one, other = getattr(first, name), getattr(again, name)
        assert (one is None and other is None) or torch.allclose(one, other, atol=1e-5)
    if max_width == 512:
        assert torch.allclose(first.quadrants.view(40, 32, 4).mean(-1), first.x, atol=1e-5)
    monkeypatch.setattr(features_module, "encode", None)  # fails if it is called
    opened.extract("trained", encoder, opened.test)


def test_features_with_and_without_quadrants_are_not_mixed_up(tiny, tmp_path):
    opened = EvaluationRun.open(train(tiny, tmp_path / "run").path)
    encoder, store = opened.encoders["trained"], FeatureStore(tmp_path / "features", "")
    pooling = QuadrantPooling(encoder, opened.train)
    with_quadrants = store.extract("a", encoder, *opened.test, quadrants=pooling)
    without = store.extract("a", encoder, *opened.test)
    assert without.quadrants is None
    assert torch.equal(with_quadrants.x, without.x)
    other = QuadrantPooling(encoder, Subset(opened.train.dataset, opened.train.indices[:20]))
    assert other.key != pooling.key


def where_is_it(count: int, seed: int) -> Features:
    """Features of images whose class is the side on which something is, which their average does not show."""
    labels = torch.arange(count) % 2
    side = torch.stack([1.0 - labels, labels.float()], 1)[:, None]  # (N, 1, columns)
    quadrants = side * torch.ones(1, 2, 1) + 0.01 * randn(count, 2, 2, seed=seed)
    content = randn(count, 150, seed=seed + 1)
    x = torch.cat([quadrants.mean((1, 2))[:, None], content], 1)
    return Features(x, labels, torch.arange(count), f"split {seed}", quadrants=quadrants.flatten(1))


def test_quadrants_show_where_something_is_and_averages_do_not():
    scores = score("planted", where_is_it(400, 0), where_is_it(300, 10))
    assert scores["linear_2x2"] == scores["knn_2x2"] == 100
    assert scores["linear_2x2_pca"] == scores["linear_2x2"]  # 4 numbers keep their width
    assert max(scores["linear"], scores["knn"], scores["linear_pca"], scores["knn_pca"]) < 65
    assert all(f"{name}_{view}_error" in scores for view in VIEWS for name in ("knn", "linear"))


def test_the_class_on_the_first_axes_survives_equal_width():
    labels = torch.arange(600) % 3
    x = 5 * randn(3, 300, seed=3)[labels] + randn(600, 300)
    parts = (slice(400), slice(400, 600))
    train_part, test_part = (Features(x[part], labels[part], torch.arange(600)[part], "x") for part in parts)
    scores = pooled_scores(train_part, test_part, {"knn": 1.0, "linear": 2.0})
    assert set(scores) == {"knn_pca", "linear_pca", "knn_pca_error", "linear_pca_error"}
    assert scores["knn_pca"] == scores["linear_pca"] == 100


def test_known_scores_are_not_computed_again():
    part = where_is_it(100, 0)
    narrow = dataclasses.replace(part, x=part.x[:, :100])
    known = {"knn": 1.0, "linear": 2.0, "knn_2x2": 3.0, "linear_2x2": 4.0}
    scores = pooled_scores(narrow, dataclasses.replace(narrow, source="y"), known)
    assert [scores[f"{name}_{view}"] for view in VIEWS for name in ("knn", "linear")] == [1, 2, 3, 4, 3, 4]


def test_k_means_of_patches_is_compared_averaged_and_in_quadrants():
    parts = [where_is_it(300, seed) for seed in (0, 10)]
    train_part, test_part = (dataclasses.replace(part, x=part.quadrants, quadrants=None) for part in parts)
    scores = patch_scores(train_part, test_part)
    assert scores["linear"] == scores["linear_2x2"] == scores["linear_2x2_pca"] == 100
    assert scores["linear_mean"] < 65


def test_wide_features_are_scored_in_full_only_on_request(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("jepa.evaluation.scores.MAX_WIDTH", 16)
    monkeypatch.setattr("jepa.evaluate.MAX_WIDTH", 16)
    monkeypatch.setattr("jepa.evaluation_run.MAX_WIDTH", 16)
    monkeypatch.setattr("jepa.evaluate.baselines", lambda run: {})
    config = override(tiny, backbone__size="32x4x4")
    opened = EvaluationRun.open(train(config, tmp_path / "run").path)
    result, full = evaluate_run(opened), evaluate_run(opened, full=True)
    assert "linear_last4" not in result["trained"]
    assert "linear_2x2" in result["trained"]
    assert "context" not in result
    assert "the last four layers and the context encoder, because each probe fits 32 f" in result["left_out"]
    assert "context" not in as_text(result, "run").split("±")[0]
    assert {"linear_last4", "linear_2x2", "linear_10pc"} <= full["context"].keys()
    assert "last four layers" not in full.get("left_out", "")
    shared = result["trained"].keys() & full["trained"].keys()
    assert {key: result["trained"][key] for key in shared} == {key: full["trained"][key] for key in shared}
