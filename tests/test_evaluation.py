import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from jepa.config import InputError
from jepa.evaluation import linear_probe as linear_probe_module
from jepa.evaluation import logistic_regression, pca, penalty_selection
from jepa.evaluation.collapse import feature_std, rankme, spectrum
from jepa.evaluation.features import Features
from jepa.evaluation.knn import knn, largest
from jepa.evaluation.labels import standard_error
from jepa.evaluation.linear_probe import draw_stratified, few_labels, linear_probe
from jepa.evaluation.logistic_regression import (
    Preconditioner,
    accuracy,
    feature_statistics,
    fit_folds,
    fit_logistic,
)
from jepa.evaluation.pca import principal_axes
from jepa.evaluation.penalty_selection import fit_draws, is_tie
from jepa.evaluation.scores import score
from jepa.report.text import score_table


def features(x: torch.Tensor, labels: torch.Tensor, split: str) -> Features:
    return Features(x, labels, torch.arange(len(x)), split)


def planted(count: int, dim: int, classes: int, gap: float, seed: int) -> Features:
    """Draw Gaussian classes with means at distance `gap` from the origin. Each seed is a separate split."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    means = torch.nn.functional.normalize(torch.randn(classes, dim, generator=torch.Generator().manual_seed(99)), dim=1)
    return features(gap * means[labels] + torch.randn(count, dim, generator=generator), labels, f"split {seed}")


def test_separated_classes_are_found_and_identical_ones_are_at_chance():
    for gap, low, high in ((8.0, 99, 100), (0.0, 17, 33)):
        train, test = planted(2000, 20, 4, gap, 0), planted(1000, 20, 4, gap, 1)
        assert low <= knn(train, test)[20] <= high
        assert low <= linear_probe(train, test)[0] <= high


def test_knn_agrees_with_scikit_learn():
    train, test = planted(1500, 16, 5, 2.0, 0), planted(700, 16, 5, 2.0, 1)
    mean = train.x.mean(0)
    unit = [torch.nn.functional.normalize(x - mean, dim=1).numpy() for x in (train.x, test.x)]
    accuracies = knn(train, test, (1, 20, 200))
    for k, percent in accuracies.items():
        reference = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
        reference.fit(unit[0], train.labels)
        assert math.isclose(percent, 100 * reference.score(unit[1], test.labels), abs_tol=0.15)


@pytest.mark.parametrize(("columns", "count"), [(50_000, 20), (12_810, 20), (12_801, 1), (1000, 20), (70, 64)])
def test_the_largest_values_are_found_in_blocks(columns, count):
    x = torch.randn(30, columns, generator=torch.Generator().manual_seed(0))
    x[0, -5:] += 100  # after the last whole block
    x[1, 64:84] += 100  # all in one block
    values, positions = largest(x, count)
    expected = x.topk(count)
    assert torch.equal(values, expected.values)
    assert torch.equal(positions, expected.indices)


def test_the_probe_agrees_with_scikit_learn_at_the_same_penalty():
    train, test = planted(1200, 16, 5, 2.0, 0), planted(2000, 16, 5, 2.0, 1)
    x, y = train.x, train.labels
    penalty = 1e-2
    reference = LogisticRegression(C=1 / (penalty * len(x)), max_iter=1000, tol=1e-8).fit(x, y)
    weights = fit_logistic(x, y, torch.zeros(5, 17), penalty)
    assert math.isclose(accuracy(test.x, test.labels, weights), 100 * reference.score(test.x, test.labels), abs_tol=0.3)


def test_scores_do_not_depend_on_scale_or_offset_of_the_features():
    train, test = planted(1000, 8, 3, 2.0, 0), planted(500, 8, 3, 2.0, 1)
    moved = [replace(features, x=3 * features.x + 100) for features in (train, test)]
    assert abs(knn(train, test)[20] - knn(*moved)[20]) < 0.5
    scale = torch.logspace(-3, 3, 8)
    stretched = [replace(features, x=features.x * scale) for features in (train, test)]
    assert abs(linear_probe(train, test)[0] - linear_probe(*stretched)[0]) < 0.5


def test_shifted_test_labels_give_zero_accuracy():
    train, test = planted(2000, 20, 4, 8.0, 0), planted(1000, 20, 4, 8.0, 1)
    shifted = replace(test, labels=(test.labels + 1) % 4)
    assert knn(train, shifted)[20] < 1
    assert linear_probe(train, shifted)[0] < 1
    assert max(few_labels(train, shifted, 0.1)) < 1


def test_images_in_both_train_and_test_are_rejected():
    train = planted(200, 20, 4, 8.0, 0)
    overlap = Features(train.x[150:], train.labels[150:], train.indices[150:], train.source)
    for measure in (knn, linear_probe):
        with pytest.raises(InputError, match="are in both train and test"):
            measure(train, overlap)


def test_missing_labels_and_too_few_images_are_errors():
    train, test = planted(30, 4, 2, 8.0, 0), planted(10, 4, 2, 8.0, 1)
    with pytest.raises(InputError, match=r"k = 50 exceeds the number of training images \(30\)"):
        knn(train, test, (50,))
    with pytest.raises(InputError, match="no labels"):
        knn(replace(train, labels=None), test)
    with pytest.raises(InputError, match="have the same label"):
        linear_probe(replace(train, labels=torch.ones_like(train.labels)), test)


def test_few_labels_score_below_all_labels():
    train, test = planted(2000, 20, 4, 4.0, 0), planted(1000, 20, 4, 4.0, 1)
    one_percent, full = few_labels(train, test, 0.01), linear_probe(train, test)[0]
    assert len(set(one_percent)) > 1  # each probe is fitted on different images
    assert all(60 < accuracy < full for accuracy in one_percent)
    assert few_labels(planted(300, 20, 4, 4.0, 0), test, 0.001) == []


def test_few_labels_are_drawn_from_every_class():
    labels = torch.tensor([0] * 30 + [1] * 100 + [3] * 11)
    drawn = [draw_stratified(labels, 0.1, seed) for seed in (0, 1)]
    for indices in drawn:
        assert len(indices.unique()) == 14
        assert torch.bincount(labels[indices]).tolist() == [3, 10, 0, 1]
    assert not torch.equal(*drawn)


@pytest.mark.parametrize(("count", "width", "classes"), [(40, 3, 2), (75, 200, 3), (100, 16, 2), (300, 8, 4)])
def test_probes_of_small_sets(count, width, classes):
    train, test = planted(count, width, classes, 8.0, 0), planted(50, width, classes, 8.0, 1)
    assert linear_probe(train, test)[0] > 60
    for fraction in (0.1, 0.01):
        for percent in few_labels(train, test, fraction):
            assert 100 / classes - 25 < percent <= 100


@pytest.mark.parametrize("images_per_class", [1, 2, 3])
def test_probes_of_as_many_images_as_classes(images_per_class):
    x = torch.eye(3).repeat(images_per_class, 1)
    labels = torch.arange(3).repeat(images_per_class)
    train = Features(x, labels, torch.arange(len(x)), "train")
    assert linear_probe(train, replace(train, source="test"))[0] == 100


@pytest.mark.parametrize(("width", "classes", "distance"), [(16, 5, 2.0), (40, 20, 3.0)])
def test_features_in_a_file_are_fitted_as_in_memory(monkeypatch, width, classes, distance):
    train, test = planted(12_000, width, classes, distance, 0), planted(4000, width, classes, distance, 1)
    train, test = (replace(features, x=features.x * torch.logspace(-2, 1, width) + 5) for features in (train, test))
    exact = linear_probe(train, test)[0]
    monkeypatch.setattr(linear_probe_module, "MAX_LBFGS_BYTES", 0)
    monkeypatch.setattr(linear_probe_module, "MIN_SUBSET", 3000)
    assert abs(linear_probe(train, test)[0] - exact) < 0.3


def test_weights_in_chunks_minimize_the_same_loss():
    train = planted(25_000, 12, 4, 2.0, 0)
    standardization = feature_statistics(train.x)
    start = torch.zeros(4, 13)
    whole = fit_logistic(standardization(train.x), train.labels, start, 1e-2)
    chunked = fit_logistic(train.x, train.labels, start, 1e-2, standardization=standardization)
    assert torch.allclose(whole, chunked, atol=1e-3)
    original = standardization.to_original(whole)
    assert torch.allclose(standardization.from_original(original), whole, atol=1e-5)


def test_folds_fitted_at_once_are_those_fitted_separately():
    train = planted(600, 12, 4, 2.0, 0)
    kept = torch.rand(3, 600, generator=torch.Generator().manual_seed(0)) < 0.8
    weights = kept.float() / kept.sum(1, keepdim=True)
    moments = Preconditioner(train.x.square().mean(0))
    together = fit_folds(
        train.x, train.labels, torch.zeros(3, 4, 13), 1e-2, row_weights=weights, preconditioner=moments
    )
    for rows, fold in zip(kept, together, strict=True):
        alone = fit_logistic(train.x[rows], train.labels[rows], torch.zeros(4, 13), 1e-2)
        assert torch.allclose(fold, alone, atol=1e-2)


@pytest.mark.parametrize("size", [40, 200])  # fewer and more features than their width
def test_each_draw_has_the_optimal_weights_of_the_common_penalty(size):
    train = planted(400, 64, 4, 3.0, 0)
    draws = [(train.x[start : start + size], train.labels[start : start + size]) for start in range(0, 2 * size, size)]
    fitted, penalty = fit_draws(draws, 4)
    assert len(fitted) == len(draws)
    for (x, labels), weights in zip(draws, fitted, strict=True):
        standardization = feature_statistics(x)
        optimum = fit_logistic(standardization(x), labels, torch.zeros(4, 65), penalty)
        predicted = [train.x @ w[:, :-1].T + w[:, -1] for w in (weights, standardization.to_original(optimum))]
        assert (predicted[0].argmax(1) == predicted[1].argmax(1)).float().mean() > 0.98


def test_the_work_of_the_probes_is_bounded(monkeypatch):
    passes, decompositions = [], []
    forward, decompose = logistic_regression.logits, penalty_selection.principal_axes
    monkeypatch.setattr(logistic_regression, "logits", lambda x, w: (passes.append(len(w)), forward(x, w))[1])
    monkeypatch.setattr(penalty_selection, "principal_axes", lambda m: (decompositions.append(1), decompose(m))[1])
    train, test = planted(1000, 48, 20, 2.0, 0), planted(200, 48, 20, 2.0, 1)
    linear_probe(train, test)
    assert len(passes) < 600  # 9 penalties x 5 folds x 100 iterations take 4,500 passes
    passes.clear()
    few_labels(train, test, 0.1)
    assert len(passes) < 5 * 600
    assert len(decompositions) == 2  # the linear probe, and all draws


def test_differences_within_a_standard_error_are_ties():
    few, many = torch.tensor([1.0] + [0.0] * 99), torch.tensor([1.0] * 10 + [-1.0] * 2 + [0.0] * 88)
    assert is_tie(few)
    assert is_tie(torch.zeros(10))
    assert is_tie(-many)
    assert not is_tie(many)


def test_unlabeled_images_are_not_scored():
    train, test = planted(500, 8, 3, 6.0, 0), planted(200, 8, 3, 6.0, 1)
    expected = score("planted", train, test)
    noise = [
        Features(torch.randn(100, 8), torch.full((100,), -1), torch.arange(900, 1000), f.source) for f in (train, test)
    ]
    joined = [
        Features(*(torch.cat([getattr(f, name), getattr(n, name)]) for name in ("x", "labels", "indices")), f.source)
        for f, n in zip((train, test), noise, strict=True)
    ]
    scores = score("planted", *joined)
    assert [scores[key] for key in ("knn", "linear", "linear_10pc")] == [
        expected[key] for key in ("knn", "linear", "linear_10pc")
    ]
    with pytest.raises(InputError, match="unlabeled images; kNN and linear probes require labels"):
        knn(*joined)
    assert "linear" not in score("planted", joined[0], noise[1])


@pytest.mark.parametrize(("percent", "count"), [(50.0, 2000), (90.0, 100), (100.0, 30)])
def test_standard_error_covers_repeated_measurements(percent, count):
    generator = torch.Generator().manual_seed(0)
    measured = 100 * torch.rand(2000, count, generator=generator).lt(percent / 100).float().mean(1)
    errors = torch.tensor([standard_error(float(accuracy), count) for accuracy in measured])
    assert (errors > 0).all()
    assert ((measured - percent).abs() <= 2 * errors).float().mean() > 0.9
    assert abs(float(errors.mean()) - float(measured.std())) < (0.1 * float(measured.std()) if percent < 90 else 6)


def test_scores_have_errors():
    train, test = planted(2000, 20, 4, 2.0, 0), planted(1000, 20, 4, 2.0, 1)
    scores = score("planted", train, test)
    for key in ("knn", "linear", "linear_10pc", "linear_1pc"):
        assert 0 < scores[f"{key}_error"] < 10
    assert scores["knn_error"] == round(standard_error(scores["knn"], 1000), 2)


def test_principal_axes_are_those_of_the_covariance_matrix_in_any_chunk_size(monkeypatch):
    monkeypatch.setattr(pca, "CHUNK_SIZE", 300)
    x = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.tensor([1.0, 5, 2, 9])) + 50
    variances, axes = principal_axes(x)
    assert variances.tolist() == sorted(variances.tolist(), reverse=True)
    assert torch.allclose(axes.T @ axes, torch.eye(4, dtype=torch.float64))
    assert torch.allclose(axes * variances @ axes.T, torch.cov(x.double().T))


def test_spectrum_of_known_variances():
    x = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 2.0, 1.0])
    assert torch.allclose(spectrum(x).float(), torch.tensor([9.0, 4.0, 1.0]) / 14, atol=0.01)
    assert spectrum(torch.ones(10, 3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_rankme_of_a_known_rank(rank):
    basis = torch.linalg.qr(torch.randn(500, rank, generator=torch.Generator().manual_seed(0)))[0]
    directions = torch.linalg.qr(torch.randn(32, rank, generator=torch.Generator().manual_seed(1)))[0]
    assert abs(rankme(basis @ directions.T) - rank) < 1e-2


def test_feature_std_of_isotropic_and_collapsed_features():
    x = torch.randn(5000, 64, generator=torch.Generator().manual_seed(0))
    assert abs(feature_std(x) - 1 / 8) < 2e-3
    assert feature_std(torch.ones(100, 64)) < 1e-6


def test_the_score_table_has_a_row_for_every_encoder():
    scores = {"knn": 50.0, "linear": 51.25, "rankme": 20.0}
    encoders = {"trained": scores, "context": scores, "untrained": scores}
    text = score_table(encoders | {"pixels": {"knn": 40.0, "linear": 30.0}})
    assert [line.split("  ")[0] for line in text.splitlines()[1:5]] == ["trained", "context", "untrained", "pixels"]
    assert all(title in text for title in ("trained = trained (target encoder);", "pixels = raw pixels"))
    assert "51.2" in text


def test_invalid_arguments_are_errors():
    train, test = planted(100, 8, 3, 2.0, 0), planted(50, 8, 3, 2.0, 1)
    for neighbors in ((0,), ()):
        with pytest.raises(InputError, match="must be positive"):
            knn(train, test, neighbors)
    with pytest.raises(InputError, match="widths 8 and 7"):
        knn(train, replace(test, x=test.x[:, :7]))
    with pytest.raises(InputError, match="last four layers"):
        linear_probe(train, test, last4=True)
    invalid = train.x.clone()
    invalid[3, 2] = torch.nan
    for measure in (rankme, spectrum, lambda x: knn(replace(train, x=x), test)):
        with pytest.raises(InputError, match="NaN or infinite"):
            measure(invalid)
    with pytest.raises(InputError, match="at least two images"):
        spectrum(train.x[:1])


def test_fewer_images_than_features_are_fitted_as_well():
    train, test = planted(60, 300, 3, 2.0, 0), planted(500, 300, 3, 2.0, 1)
    reference = LogisticRegression(C=1 / (1e-3 * 60), max_iter=5000, tol=1e-8)
    standardize = feature_statistics(train.x)
    reference.fit(standardize(train.x), train.labels)
    expected = 100 * reference.score(standardize(test.x), test.labels)
    assert abs(linear_probe(train, test)[0] - expected) < 5
    tiny = planted(5, 4, 2, 9.0, 0)
    assert linear_probe(tiny, planted(50, 4, 2, 9.0, 1))[0] >= 50


@pytest.mark.parametrize("constant", [0.0, 0.3, 123.456])
@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_constant_features_have_no_effect_on_the_probe(constant, scale):
    train, test = planted(1000, 8, 3, 6.0, 0), planted(500, 8, 3, 6.0, 1)
    expected = linear_probe(train, test)[0]
    columns = [torch.full((len(f.x), 1), constant * factor) for f, factor in ((train, 1.0), (test, 0.9))]
    train, test = (
        replace(f, x=scale * torch.cat([f.x, column], 1)) for f, column in zip((train, test), columns, strict=True)
    )
    assert abs(linear_probe(train, test)[0] - expected) < 0.5


def test_rankme_of_features_without_any_value_is_that_of_a_collapse():
    assert rankme(torch.zeros(10, 4)) == 1


@pytest.mark.parametrize("test_labels", [[0, 1] + [-1] * 38, [0] + [-1] * 39, [-1] * 40])
def test_accuracies_need_two_labeled_test_images(test_labels):
    train, test = planted(100, 8, 2, 6.0, 0), planted(40, 8, 2, 6.0, 1)
    scores = score("planted", train, replace(test, labels=torch.tensor(test_labels)))
    assert ("linear" in scores) == (test_labels.count(-1) < 39)
