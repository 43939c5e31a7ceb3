"""Judge a change of a recipe on images cut from train, so that the test set is left for the final table.

    python benchmarks/choices.py demo --steps 400 --objective.variance 0.04 --objective.covariance 0.04
    python benchmarks/choices.py ijepa-cifar10 --data cifar10 --steps 500 --backbone.stem patch-conv

Takes the arguments of `jepa train` but --run, trains without online evaluations into a temporary folder, and prints the
table of `jepa evaluate` fitted on up to 20,000 and scored on up to 5,000 (a fifth of small sets) other training images.
Training saw all of them, without their labels.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from jepa.data import open_dataset
from jepa.evaluation import judge, table
from jepa.runs import Run, fresh_objective, load_encoder


def main() -> None:
    """Train, judge and print."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        flags = [*sys.argv[1:], "--run", str(path), "--eval-every", "0"]
        subprocess.run([sys.executable, "-m", "jepa", "train", *flags], check=True)
        config = Run.open(path).config
        encoders = {
            "trained": load_encoder(path),
            "context": load_encoder(path, "context"),
            "untrained": fresh_objective(config).encoders()["target"],
        }
        images = open_dataset(config.data)
        assert images is not None
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(7))
        score, fit = order.split([count := min(5000, len(images) // 5), len(images) - count])
        print(table(judge(encoders, (images, fit[:20_000]), (images, score))))


if __name__ == "__main__":
    main()
