"""Compare the measures of features with those of scikit-learn and scikit-dimension.

    python benchmarks/evaluation.py probes      # kNN and linear probe on 50,000 x 192 features, against scikit-learn
    python benchmarks/evaluation.py dimension   # sets of known dimension; needs `pip install scikit-dimension`
    python benchmarks/evaluation.py chunks      # linear probe of features in a file, against that in memory
    python benchmarks/evaluation.py memory      # time and peak memory of the correlation dimension of 50,000 points

Each command prints one table. Times depend on the machine, so compare them only within a table.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.evaluation.correlation_dimension import correlation_dimension
from jepa.evaluation.features import Features
from jepa.evaluation.knn import knn
from jepa.evaluation.logistic_regression import (
    accuracy,
    feature_statistics,
    fit_logistic,
)
from jepa.evaluation.penalty_selection import fit_in_chunks, fit_in_memory

NUM_CLASSES, WIDTH = 10, 192
K, PENALTY = 20, 1e-3
SEEDS = 6


def planted(count: int, seed: int, classes: int = NUM_CLASSES) -> Features:
    """Draw features of overlapping classes along axes of widely varying variance, like those of networks."""
    fixed, generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -1.5, WIDTH)
    mix = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=fixed))[0]
    centers = 0.15 * torch.randn(classes, WIDTH, generator=fixed)
    labels = torch.randint(classes, (count,), generator=generator)
    x = (centers[labels] + torch.randn(count, WIDTH, generator=generator)) * scales @ mix
    return Features(x, labels, torch.arange(count), f"planted {seed}")


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a function and its run time in seconds."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def probes(rounds: int) -> None:
    """Compare the accuracy and time of kNN, and of logistic regression with a fixed penalty."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    train, test = planted(50_000, 1), planted(10_000, 2)
    assert train.labels is not None
    assert test.labels is not None
    train_labels, test_labels = train.labels, test.labels
    standardization = feature_statistics(train.x)
    train_x, test_x = standardization(train.x), standardization(test.x)
    train_unit, test_unit = (F.normalize(x - train.x.mean(0), dim=-1).numpy() for x in (train.x, test.x))

    def weights(distance: np.ndarray) -> np.ndarray:
        return np.exp((1 - distance) / 0.07)

    def sklearn_knn() -> float:
        model = KNeighborsClassifier(K, metric="cosine", weights=weights, algorithm="brute", n_jobs=-1)
        return 100 * model.fit(train_unit, train_labels.numpy()).score(test_unit, test_labels.numpy())

    def sklearn_probe() -> float:
        model = LogisticRegression(C=1 / (PENALTY * len(train_x)), max_iter=1000)
        return 100 * model.fit(train_x.numpy(), train_labels.numpy()).score(test_x.numpy(), test_labels.numpy())

    def jepa_probe() -> float:
        start = torch.zeros(NUM_CLASSES, WIDTH + 1)
        return accuracy(test_x, test_labels, fit_logistic(train_x, train_labels, start, PENALTY))

    pairs = {
        "kNN": (lambda: knn(train, test, (K,))[K], sklearn_knn),
        "linear probe": (jepa_probe, sklearn_probe),
    }
    print(f"50,000 -> 10,000 features of {WIDTH}, {rounds} rounds, medians; {torch.get_num_threads()} threads\n")
    print(f"{'':<14}{'accuracy':>10}{'sklearn':>10}{'seconds':>10}{'sklearn':>10}{'ratio':>8}")
    for name, functions in pairs.items():
        ours, theirs = ([timed(function) for _ in range(rounds)] for function in functions)
        seconds, their_seconds = (statistics.median(seconds for _, seconds in runs) for runs in (ours, theirs))
        print(
            f"{name:<14}{ours[0][0]:>10.2f}{theirs[0][0]:>10.2f}{seconds:>10.2f}{their_seconds:>10.2f}"
            f"{their_seconds / seconds:>8.1f}"
        )
    accuracies, seconds = timed(lambda: knn(train, test, (1, 2, 5, 10, 20, 50, 100, 200)))
    print(f"\nkNN with {len(accuracies)} values of k from 1 to 200 in one pass: {seconds:.2f} s")


def chunks() -> None:
    """Compare the linear probe of features that are read from a file in chunks with that in memory."""
    print(f"200,000 -> 20,000 features of {WIDTH}\n")
    print(f"{'classes':<10}{'in memory':>12}{'seconds':>10}{'in chunks':>12}{'seconds':>10}")
    for classes in (10, 100):
        train, test = planted(200_000, 1, classes), planted(20_000, 2, classes)
        assert train.labels is not None
        assert test.labels is not None
        (whole, _), seconds = timed(partial(fit_in_memory, train.x, train.labels, classes))
        with tempfile.NamedTemporaryFile() as file:
            mapped = np.memmap(file, np.float32, "w+", shape=tuple(train.x.shape))
            mapped[:] = train.x.numpy()
            x = torch.from_numpy(mapped)
            (chunked, _), chunk_seconds = timed(partial(fit_in_chunks, x, train.labels, classes, 50_000))
        scores = [accuracy(test.x, test.labels, weights) for weights in (whole, chunked)]
        print(f"{classes:<10}{scores[0]:>12.2f}{seconds:>10.1f}{scores[1]:>12.2f}{chunk_seconds:>10.1f}")


def draw_points(kind: str, dimension: int, seed: int, count: int = 5000) -> Tensor:
    """Draw points from a uniform cube, a uniform sphere or a Gaussian, randomly rotated in 64 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "cube":
        x = torch.rand(count, dimension, generator=generator)
    elif kind == "gauss":
        x = torch.randn(count, dimension, generator=generator)
    else:
        x = F.normalize(torch.randn(count, dimension + 1, generator=generator), dim=1)
    basis, _ = torch.linalg.qr(torch.randn(64, 64, generator=generator))
    return x @ basis[: x.shape[1]]


def dimension() -> None:
    """Compare correlation dimensions of known sets with CorrInt of scikit-dimension on the same points."""
    from skdim.id import CorrInt

    print(f"5,000 points in 64 dimensions, {SEEDS} draws: mean (max) |error|, percent of the dimension\n")
    print(f"{'':<10}{'ours':>15}{'estimated error':>17}{'CorrInt':>15}{'ours worse in':>15}{'slope in region':>17}")
    for kind, dimensions in {"cube": (1, 2, 3, 5, 8), "sphere": (1, 2, 3, 5, 8), "gauss": (8, 20)}.items():
        for true in dimensions:
            ours, estimated, theirs, slopes = [], [], [], []
            for seed in range(SEEDS):
                x = draw_points(kind, true, seed)
                estimate = correlation_dimension(x)
                assert estimate is not None
                ours.append(100 * abs(estimate.value / true - 1))
                estimated.append(100 * estimate.error / true)
                slopes.append(estimate.slope)
                theirs.append(100 * abs(CorrInt().fit(x.numpy()).dimension_ / true - 1))
            cells = [f"{statistics.mean(errors):.1f} ({max(errors):.1f})" for errors in (ours, theirs)]
            worse = sum(our > their for our, their in zip(ours, theirs, strict=True))
            print(
                f"{kind} {true:<4}{cells[0]:>16}{statistics.mean(estimated):>17.1f}{cells[1]:>15}{worse:>15}"
                f"{statistics.mean(slopes):>17.2f}"
            )


def memory() -> None:
    """Print the time and peak memory of the correlation dimension of 50,000 points."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50_000, 8, generator=generator) @ torch.randn(8, WIDTH, generator=generator)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    estimate, seconds = timed(lambda: correlation_dimension(x))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"50,000 x {WIDTH} points of dimension 8: {estimate.value:.2f} ± {estimate.error:.2f}, {seconds:.0f} s")
    print(f"peak memory {peak:.2f} GB, of which {before:.2f} GB before the estimate")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["probes", "chunks", "dimension", "memory"])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.command == "probes":
        probes(arguments.rounds)
    else:
        {"chunks": chunks, "dimension": dimension, "memory": memory}[arguments.command]()
