"""Judge a change of a recipe on images cut from train, so that the test set is left for the final table.

    python benchmarks/choices.py demo --steps 400 --objective.variance 0.04 --objective.covariance 0.04
    python benchmarks/choices.py ijepa-cifar10 --data cifar10 --steps 500 --backbone.stem patch-conv
    python benchmarks/choices.py saccade-cifar10 --data cifar10 --steps 800 --objective.inverse 0

Takes the arguments of `jepa train` but --run, trains without online evaluations into a temporary folder, and prints the
tables of `jepa evaluate` fitted on up to 20,000 and scored on up to 5,000 (a fifth of small sets) other training
images. Training saw all of them, without their labels.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from jepa.data import open_dataset
from jepa.evaluation import FeatureStore, foresight, foresight_table, judge, table
from jepa.runs import Run, fresh_objective, unpack


def main() -> None:
    """Train, judge and print."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        flags = [*sys.argv[1:], "--run", str(path), "--eval-every", "0"]
        subprocess.run([sys.executable, "-m", "jepa", "train", *flags], check=True)
        run = Run.open(path)
        config, objective = run.config, fresh_objective(run.config)
        headline, *others = objective.encoders()
        untrained = {"untrained": copy.deepcopy(objective.encoders()[headline])}
        unpack(run.load()[0], objective, None, run.checkpoint())
        names = dict(zip(["trained", *others], objective.encoders().values(), strict=True))
        images = open_dataset(config.data)
        assert images is not None
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(7))
        score, fit = order.split([count := min(5000, len(images) // 5), len(images) - count])
        store = FeatureStore(Path(folder) / "features", "")
        print(table(judge(names | untrained, (images, fit[:20_000]), (images, score), store)))
        if seen := foresight(objective, images, score):
            print(foresight_table(seen))


if __name__ == "__main__":
    main()
