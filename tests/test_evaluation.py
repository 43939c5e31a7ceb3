import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from jepa.evaluation import knn, linear_probe, rankme, spread, table
from jepa.evaluation.probes import accuracy, fit_logistic


def planted(count: int, dim: int, classes: int, gap: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian classes whose means lie `gap` from the origin."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    means = torch.nn.functional.normalize(torch.randn(classes, dim, generator=torch.Generator().manual_seed(99)), dim=1)
    return gap * means[labels] + torch.randn(count, dim, generator=generator), labels


def test_a_planted_separation_is_found_and_none_is_chance():
    for gap, low, high in ((8.0, 99, 100), (0.0, 17, 33)):
        train, test = planted(2000, 20, 4, gap, 0), planted(1000, 20, 4, gap, 1)
        assert low <= knn(*train, *test) <= high
        assert low <= linear_probe(*train, *test)[0] <= high


def test_knn_agrees_with_scikit_learn():
    train, test = planted(1500, 16, 5, 2.0, 0), planted(700, 16, 5, 2.0, 1)
    mean = train[0].mean(0)
    unit = [torch.nn.functional.normalize(x - mean, dim=1).numpy() for x in (train[0], test[0])]
    reference = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    reference.fit(unit[0], train[1])
    assert math.isclose(knn(*train, *test), 100 * reference.score(unit[1], test[1]), abs_tol=0.15)


def test_the_probe_agrees_with_scikit_learn_at_the_same_penalty():
    (x, y), (test_x, test_y) = planted(1200, 16, 5, 2.0, 0), planted(2000, 16, 5, 2.0, 1)
    penalty = 1e-2
    reference = LogisticRegression(C=1 / (penalty * len(x)), max_iter=1000, tol=1e-8).fit(x, y)
    weights = fit_logistic(x, y, torch.zeros(17, 5), penalty)
    assert math.isclose(accuracy(test_x, test_y, weights), 100 * reference.score(test_x, test_y), abs_tol=0.3)


def test_scores_do_not_depend_on_scale_or_offset_of_the_features():
    train, test = planted(1000, 8, 3, 2.0, 0), planted(500, 8, 3, 2.0, 1)
    moved = [(3 * x + 100, y) for x, y in (train, test)]
    assert abs(knn(*train, *test) - knn(*moved[0], *moved[1])) < 0.5
    scale = torch.logspace(-3, 3, 8)
    stretched = [(x * scale, y) for x, y in (train, test)]
    assert abs(linear_probe(*train, *test)[0] - linear_probe(*stretched[0], *stretched[1])[0]) < 0.5


def test_a_shift_of_the_test_labels_shows():
    train, (test, labels) = planted(2000, 20, 4, 8.0, 0), planted(1000, 20, 4, 8.0, 1)
    assert knn(*train, test, (labels + 1) % 4) < 1
    assert linear_probe(*train, test, (labels + 1) % 4)[0] < 1


def test_fewer_images_than_neighbours():
    train, test = planted(6, 4, 2, 8.0, 0), planted(10, 4, 2, 8.0, 1)
    assert 0 <= knn(*train, *test) <= 100


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_rankme_of_a_known_rank(rank):
    basis = torch.linalg.qr(torch.randn(500, rank, generator=torch.Generator().manual_seed(0)))[0]
    directions = torch.linalg.qr(torch.randn(32, rank, generator=torch.Generator().manual_seed(1)))[0]
    assert abs(rankme(basis @ directions.T) - rank) < 1e-2


def test_spread_of_isotropic_and_collapsed_features():
    x = torch.randn(5000, 64, generator=torch.Generator().manual_seed(0))
    assert abs(spread(x) - 1 / 8) < 2e-3
    assert spread(torch.ones(100, 64)) < 1e-6


def test_table_has_a_row_for_everything_judged():
    scores = {"knn": 50.0, "linear": 51.25, "rankme": 20.0}
    text = table({"trained": scores, "context": scores, "untrained": scores, "pixels": {"knn": 40.0, "linear": 30.0}})
    assert [line.split("  ")[0] for line in text.splitlines()[1:]] == [
        "trained (target encoder)",
        "trained (context encoder)",
        "untrained, same encoder",
        "raw pixels",
    ]
    assert "51.2" in text
