"""Hold the evaluations against those of others: scikit-learn's and scikit-dimension's.

    python benchmarks/evaluation.py probes      # kNN and linear probe on 50,000 x 192, scikit-learn beside them
    python benchmarks/evaluation.py dimension   # clouds of known dimension; needs `pip install scikit-dimension`
    python benchmarks/evaluation.py memory      # 50,000 points: time and peak memory

Each prints one table. Times are of one run on one machine: compare them within a table only.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.evaluation import Features, correlation_dimension, knn
from jepa.evaluation.logistic import accuracy, fit_logistic, standard

CLASSES, WIDTH, NEIGHBOURS, PENALTY = 10, 192, 20, 1e-3
SEEDS = 6


def planted(count: int, seed: int) -> Features:
    """Overlapping classes in features whose axes have very different variances, as those of networks have."""
    world, draw = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -1.5, WIDTH)
    mix = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=world))[0]
    centres = 0.15 * torch.randn(CLASSES, WIDTH, generator=world)
    labels = torch.randint(CLASSES, (count,), generator=draw)
    x = (centres[labels] + torch.randn(count, WIDTH, generator=draw)) * scales @ mix
    return Features(x, labels, torch.arange(count), f"planted {seed}")


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Run and time."""
    began = time.perf_counter()
    found = work()
    return found, time.perf_counter() - began


def probes(rounds: int) -> None:
    """Compare accuracy and time of kNN and of logistic regression at one penalty."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    train, test = planted(50_000, 1), planted(10_000, 2)
    assert train.labels is not None
    assert test.labels is not None
    answers, wanted = train.labels, test.labels
    mean, std = standard(train.x)
    x, y = (train.x - mean) / std, (test.x - mean) / std
    centred = [F.normalize(part.x - train.x.mean(0), dim=-1).numpy() for part in (train, test)]

    def vote(distance: np.ndarray) -> np.ndarray:
        return np.exp((1 - distance) / 0.07)

    def their_knn() -> float:
        model = KNeighborsClassifier(NEIGHBOURS, metric="cosine", weights=vote, algorithm="brute", n_jobs=-1)
        return 100 * model.fit(centred[0], answers.numpy()).score(centred[1], wanted.numpy())

    def their_probe() -> float:
        model = LogisticRegression(C=1 / (PENALTY * len(x)), max_iter=1000)
        return 100 * model.fit(x.numpy(), answers.numpy()).score(y.numpy(), wanted.numpy())

    def our_probe() -> float:
        start = torch.zeros(CLASSES, WIDTH + 1)
        return accuracy(y, wanted, fit_logistic(x, answers, start, PENALTY))

    pairs = {
        "kNN": (lambda: knn(train, test, (NEIGHBOURS,))[NEIGHBOURS], their_knn),
        "linear probe": (our_probe, their_probe),
    }
    print(f"50,000 -> 10,000 features of {WIDTH}, {rounds} rounds, medians; {torch.get_num_threads()} threads\n")
    print(f"{'':<14}{'accuracy':>10}{'sklearn':>10}{'seconds':>10}{'sklearn':>10}{'ratio':>8}")
    for name, (ours, theirs) in pairs.items():
        mine, other = [timed(ours) for _ in range(rounds)], [timed(theirs) for _ in range(rounds)]
        took, took_them = (statistics.median(seconds for _, seconds in runs) for runs in (mine, other))
        print(
            f"{name:<14}{mine[0][0]:>10.2f}{other[0][0]:>10.2f}{took:>10.2f}{took_them:>10.2f}{took_them / took:>8.1f}"
        )
    every, seconds = timed(lambda: knn(train, test, (1, 2, 5, 10, 20, 50, 100, 200)))
    print(f"\nkNN of {len(every)} k from 1 to 200 in one pass: {seconds:.2f} s")


def cloud(kind: str, dimension: int, seed: int, count: int = 5000) -> Tensor:
    """Uniform points of a cube or a sphere, or Gaussian ones, turned at random in 64 dimensions."""
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
    """Compare correlation dimensions of known clouds with scikit-dimension's CorrInt on the same points."""
    from skdim.id import CorrInt

    print(f"5,000 points in 64 dimensions, {SEEDS} draws: mean |error| (largest), percent of the dimension\n")
    print(f"{'':<10}{'ours':>15}{'its own error':>15}{'CorrInt':>15}{'ours worse in':>15}{'a straight slope':>18}")
    for kind, dimensions in {"cube": (1, 2, 3, 5, 8), "sphere": (1, 2, 3, 5, 8), "gauss": (8, 20)}.items():
        for true in dimensions:
            ours, told, theirs, straight = [], [], [], []
            for seed in range(SEEDS):
                x = cloud(kind, true, seed)
                found = correlation_dimension(x)
                assert found is not None
                ours.append(100 * abs(found.value / true - 1))
                told.append(100 * found.error / true)
                straight.append(found.slope)
                theirs.append(100 * abs(CorrInt().fit(x.numpy()).dimension_ / true - 1))
            cells = [f"{statistics.mean(errors):.1f} ({max(errors):.1f})" for errors in (ours, theirs)]
            worse, slope = sum(a > b for a, b in zip(ours, theirs, strict=True)), statistics.mean(straight)
            print(
                f"{kind} {true:<4}{cells[0]:>16}{statistics.mean(told):>15.1f}{cells[1]:>15}{worse:>15}{slope:>18.2f}"
            )


def memory() -> None:
    """Take the dimension of 50,000 points, and say the time and the peak of this process."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50_000, 8, generator=generator) @ torch.randn(8, WIDTH, generator=generator)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    found, seconds = timed(lambda: correlation_dimension(x))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"50,000 points of dimension 8 in {WIDTH}: {found.value:.2f} ± {found.error:.2f}, {seconds:.0f} s")
    print(f"peak memory {peak:.2f} GB, {before:.2f} GB of it before")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["probes", "dimension", "memory"])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.what == "probes":
        probes(arguments.rounds)
    else:
        {"dimension": dimension, "memory": memory}[arguments.what]()
