"""Fine-tuning against training the same network from scratch for the same time, by fraction of the labels.

    python benchmarks/finetuning.py runs/ijepa-cifar10 --data cifar10
    python benchmarks/finetuning.py runs/ijepa-cifar10 --data cifar10 --held-out --seeds 7 --labels 0.1 --lr 0.002

Prints the accuracy on the test split of a linear probe of the features of RUN, of `jepa finetune RUN` and of training
from scratch, which all have the same labeled images: those of the seed. Fine-tuning first computes the features and
their linear probe; the network from scratch is trained for as many more steps as fit into this time. With --held-out,
for the choice of settings, held-out training images are scored instead. Each result is also appended to --record.
Further flags are those of `jepa finetune`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from jepa.config import Config, SupervisedConfig
from jepa.config.arguments import parse_finetune_arguments
from jepa.config.auto import DataSummary
from jepa.data import ImageDataset, open_dataset, split_holdout
from jepa.evaluation.features import Features, Subset, extract
from jepa.evaluation.labels import percent_correct
from jepa.evaluation.penalty_selection import fit_in_memory
from jepa.evaluation.trained_head import head_accuracy
from jepa.interop import read_config_of, read_pretrained
from jepa.objectives.supervised import Supervised, draw_labeled
from jepa.runs import Run, load_objective
from jepa.train import train

WARMUP = 50  # steps of training from scratch


def main() -> None:
    """Measure, print a line for each training, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--data", required=True)
    parser.add_argument("--labels", type=float, nargs="+", default=[0.01, 0.1, 1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--optimizer", choices=["adamw", "muon"], default="muon", help="of training from scratch")
    parser.add_argument("--lr", type=float, default=4e-3, help="learning rate of training from scratch")
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--skip", nargs="+", default=[], choices=["probe", "fine-tuned", "scratch"])
    parser.add_argument("--record", type=Path)
    given, more = parser.parse_known_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(given)
        for labels in given.labels:
            for seed in given.seeds:
                flags = [given.run, "--data", given.data, "--labels", str(labels), "--seed", str(seed)]
                flags += ["--steps", str(given.steps), "--save-every", str(given.steps), "--device", "cpu", *more]
                config = parse_finetune_arguments(flags, no_automatic_settings, read_config_of)[0].config
                row = {"labels": labels, "seed": seed} | comparison.measure(config, given.skip, Path(folder), given)
                print(json.dumps(row), flush=True)
                if given.record:
                    with given.record.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                rows.append(row)
    print(table(rows))


class Comparison:
    """A trained model, and the images to train on and to score."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.pretrained = read_pretrained(given.run)
        data = dataclasses.replace(self.pretrained.config.data, source=given.data)
        train_images = open_dataset(data, "train")
        assert train_images is not None
        self.indices, held_out = split_holdout(len(train_images), 0.1)
        self.train = Subset(train_images, self.indices)
        self.test = Subset(train_images, held_out) if given.held_out else whole(open_dataset(data, "test"))
        self.test_features: Features | None = None

    def measure(self, config: Config, skip: list[str], folder: Path, given: argparse.Namespace) -> dict[str, float]:
        """Return the accuracies and seconds of the three ways to use the labels."""
        row: dict[str, float] = {}
        steps = config.steps
        if "probe" not in skip:
            row["probe"] = self.probe(config)
        if "fine-tuned" not in skip:
            accuracy, seconds, training = self.trained(config, folder / f"fine-tuned-{len(list(folder.iterdir()))}")
            row |= {"fine-tuned": accuracy, "fine-tuned_seconds": seconds}
            steps += round(max(0.0, seconds - training) / training * steps)
        if "scratch" not in skip:
            optim = dataclasses.replace(config.optim, kind=given.optimizer, lr=given.lr, warmup=WARMUP, layer_decay=1.0)
            assert isinstance(config.objective, SupervisedConfig)
            objective = dataclasses.replace(config.objective, head="random")
            scratch = dataclasses.replace(
                config, init=None, objective=objective, optim=optim, steps=steps, save_every=steps
            )
            accuracy, seconds, _ = self.trained(scratch, folder / f"scratch-{len(list(folder.iterdir()))}")
            row |= {"scratch": accuracy, "scratch_seconds": seconds, "scratch_steps": steps}
        return row

    def probe(self, config: Config) -> float:
        """Return the accuracy of a linear probe that is fitted to the labeled images of a config."""
        encoder, images = self.pretrained.objective.main_encoder, self.train.dataset
        assert images.labels is not None
        assert isinstance(config.objective, SupervisedConfig)
        chosen = draw_labeled(images.labels, self.indices, config.objective.labels, config.seed)
        train = extract(encoder, images, chosen, last4=False)
        assert train.labels is not None
        if self.test_features is None:
            self.test_features = extract(encoder, *self.test, last4=False)
        test = self.test_features
        assert test.labels is not None
        weights, _ = fit_in_memory(train.x, train.labels, len(images.classes))
        logits = nn.functional.linear(test.x, weights[:, :-1], weights[:, -1])
        return percent_correct(logits.argmax(1), test.labels)

    def trained(self, config: Config, path: Path) -> tuple[float, float, float]:
        """Train a run; return its accuracy, the seconds that it took, and those of its steps."""
        start = time.perf_counter()
        run: Run = train(config, path)
        seconds = time.perf_counter() - start
        objective, _, metadata = load_objective(run)
        assert isinstance(objective, Supervised)
        score = head_accuracy(objective, extract(objective.encoder, *self.test, last4=False), self.test.dataset.classes)
        assert score is not None
        return score["accuracy"], round(seconds, 1), metadata["seconds"]


def no_automatic_settings(*_: object) -> tuple[DataSummary, str]:
    """Raise an error: the recipe `finetune` needs no summary of the images."""
    raise NotImplementedError


def whole(dataset: ImageDataset | None) -> Subset:
    """Return all images of a dataset."""
    assert dataset is not None, "the source has no test split; use --held-out"
    return Subset(dataset, torch.arange(len(dataset)))


def table(rows: list[dict[str, float]]) -> str:
    """Return the means and standard deviations over seeds as Markdown."""
    columns = ("probe", "fine-tuned", "scratch", "fine-tuned_seconds", "scratch_seconds")
    names = [name for name in columns if name in rows[0]]
    titles = " | ".join(name.replace("_", ", ") for name in names)
    lines = [f"| labels | {titles} |", "|---" * (len(names) + 1) + "|"]
    for labels in dict.fromkeys(row["labels"] for row in rows):
        cells = []
        for name in names:
            values = [row[name] for row in rows if row["labels"] == labels]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 and "seconds" not in name else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append(f"| {labels:.0%} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
