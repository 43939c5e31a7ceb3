"""Evaluate a change to a recipe on held-out training images, reserving the test set for the final table.

    python benchmarks/choices.py demo --steps 400 --objective.variance 0.04 --objective.covariance 0.04
    python benchmarks/choices.py ijepa-cifar10 --data cifar10 --steps 500 --backbone.stem patch-conv
    python benchmarks/choices.py saccade-cifar10 --data cifar10 --steps 800 --objective.inverse 0

Takes the arguments of `jepa train` except --run, trains into a temporary folder without online evaluation, and prints
the tables of `jepa evaluate`. Probes are fitted on up to 20,000 training images and scored on up to 5,000 others (a
fifth of small datasets). The encoder is trained on all of them, without labels.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from jepa.data import open_dataset
from jepa.evaluation.features import FeatureStore, Subset
from jepa.evaluation.saccade_retrieval import saccade_retrieval
from jepa.evaluation.scores import score_encoders
from jepa.report.text import saccade_retrieval_table, score_table
from jepa.runs import Run, load_objective

MAX_FIT_IMAGES, MAX_SCORED_IMAGES = 20_000, 5000


def main() -> None:
    """Train, evaluate and print the tables."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        flags = [*sys.argv[1:], "--run", str(path), "--eval-every", "0"]
        subprocess.run([sys.executable, "-m", "jepa", "train", *flags], check=True)
        run = Run.open(path)
        objective, untrained, _ = load_objective(run)
        names = ["trained", *list(objective.encoders())[1:]]
        encoders = dict(zip(names, objective.encoders().values(), strict=True)) | {"untrained": untrained}
        dataset = open_dataset(run.config.data)
        assert dataset is not None
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(7))
        num_scored = min(MAX_SCORED_IMAGES, len(dataset) // 5)
        test, train = Subset(dataset, order[:num_scored]), Subset(dataset, order[num_scored:][:MAX_FIT_IMAGES])
        store = FeatureStore(Path(folder) / "features", "")
        scores = score_encoders(encoders, train, test, lambda name, encoder, part: store.extract(name, encoder, *part))
        print(score_table(scores))
        if retrieval := saccade_retrieval(objective, *test):
            print(saccade_retrieval_table(retrieval))


if __name__ == "__main__":
    main()
