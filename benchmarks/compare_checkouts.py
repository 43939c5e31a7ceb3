"""Check that two checkouts of this repository train bitwise identical models.

    git worktree add ../before 72716a6
    python benchmarks/compare_checkouts.py ../before .
    python benchmarks/compare_checkouts.py ../before . --only demo --only saccade

Each case is a short training run on the CPU, in a separate process per checkout with the same Python. Prints a table of
the largest differences between logged losses and between tensors of the last checkpoints (weights and optimizer state),
and exits with 1 unless all of them are 0. Also prints the largest difference between online evaluation scores, and
lists metrics logged by only one of the checkouts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

NOT_COMPARED = {"images_per_s", "data_wait"}  # metrics that are timings
SHORT = ("--steps", "6", "--log-every", "1", "--save-every", "3", "--device", "cpu")


@dataclass(frozen=True)
class Case:
    """One or more training runs into the same folder, each given by the flags of `jepa train`."""

    runs: tuple[tuple[str, ...], ...]
    processes: int = 1


def short(recipe: str, *flags: str, processes: int = 1) -> Case:
    """Return a six-step run."""
    return Case(((recipe, *SHORT, *flags),), processes)


def resumed(recipe: str, *flags: str) -> Case:
    """Return a run that stops after three steps and is resumed for three more."""
    return Case(((recipe, *SHORT, "--steps", "3", *flags), (recipe, *SHORT, "--resume", *flags)))


SMALL_BATCH = ("--batch-size", "32")
SAMPLE = ("--data", "sample", "--data.channels", "1")
CASES = {
    "demo": short("demo", "--eval-every", "3"),
    "demo, accumulated": short("demo", "--accumulate", "4", "--eval-every", "0"),
    "demo, two processes": short("demo", "--eval-every", "0", processes=2),
    "demo, resumed": resumed("demo", "--eval-every", "0"),
    "demo, decoded by two workers": short("demo", "--data.cache-gb", "0", "--data.workers", "2", "--eval-every", "0"),
    "ijepa-cifar10 on the sample": short("ijepa-cifar10", *SAMPLE, *SMALL_BATCH, "--eval-every", "0"),
    "energy-demo": short("energy-demo", *SMALL_BATCH, "--eval-every", "3"),
    "energy-demo, resumed": resumed("energy-demo", *SMALL_BATCH, "--eval-every", "0"),
    "demo with an Energy Transformer, learned": short(
        "demo", "--backbone", "energy", *SMALL_BATCH, "--backbone.size", "64x4x2", "--backbone.positions", "learned",
        "--backbone.memory", "softmax", "--backbone.learn-alpha", "--backbone.noise", "0.1", "--eval-every", "0",
    ),
    "saccade-demo": short("saccade-demo", *SMALL_BATCH, "--eval-every", "3"),
    "saccade-demo, two processes": short("saccade-demo", *SMALL_BATCH, "--eval-every", "0", processes=2),
    "saccade-demo, accumulated": short("saccade-demo", *SMALL_BATCH, "--accumulate", "2", "--eval-every", "0"),
    "saccade-demo, resumed": resumed("saccade-demo", *SMALL_BATCH, "--eval-every", "0"),
    "saccade-convnext-cifar10 on the sample": short(
        "saccade-convnext-cifar10", *SAMPLE, *SMALL_BATCH, "--eval-every", "0"
    ),
    "saccade-demo with a ViT, grid predictor": short(
        "saccade-demo", *SMALL_BATCH, "--backbone", "vit", "--backbone.size", "64x2x2", "--backbone.patch", "4",
        "--objective.predictor", "32x1x2", "--objective.invariance", "0.1", "--eval-every", "0",
    ),
    "vicreg": short("vicreg-cifar10", *SAMPLE, *SMALL_BATCH, "--eval-every", "0"),
    "vicreg, two processes": short("vicreg-cifar10", *SAMPLE, *SMALL_BATCH, "--eval-every", "0", processes=2),
    "lejepa": short("lejepa-cifar10", *SAMPLE, *SMALL_BATCH, "--eval-every", "0"),
    "mae": short("mae-cifar10", *SAMPLE, *SMALL_BATCH, "--eval-every", "0"),
    "ijepa-folder": short("ijepa-folder", "--data", "FOLDER", *SMALL_BATCH, "--eval-every", "0"),
    "saccade-folder": short("saccade-folder", "--data", "FOLDER", *SMALL_BATCH, "--eval-every", "0"),
}  # fmt: skip


def write_folder(folder: Path) -> None:
    """Write 240 noisy photos of three classes in several sizes."""
    random = np.random.default_rng(0)
    for i in range(240):
        small = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        photo = Image.fromarray(small).resize((96 + i % 7 * 8, 80), Image.Resampling.BICUBIC)
        target = folder / f"class{i % 3}" / f"{i:03d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        photo.save(target)


def train(checkout: Path, case: Case, folder: Path, images: Path) -> Path:
    """Train a case with the code of a checkout, and return the run folder."""
    run = folder / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout), "CUDA_VISIBLE_DEVICES": ""}
    for flags in case.runs:
        flags = tuple(str(images) if flag == "FOLDER" else flag for flag in flags)
        command = [sys.executable, "-m", "jepa", "train"]
        if case.processes > 1:
            torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.processes), "--")
            command = [sys.executable, *torchrun, str(checkout / "jepa" / "train.py")]
        result = subprocess.run(
            [*command, *flags, "--run", str(run)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise SystemExit(
                f"{checkout}: {' '.join(flags)} failed with exit code {result.returncode}\n{result.stderr[-2000:]}"
            )
    return run


def metrics(run: Path, online: bool) -> dict[tuple[int, str], float]:
    """Read the logged losses, or the online evaluation scores, by step and name."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        (record["step"], name): value
        for record in records
        if ("loss" not in record) == online
        for name, value in record.items()
        if name not in NOT_COMPARED | {"step"}
    }


def compare_metrics(runs: Sequence[Path], online: bool) -> tuple[int, float, set[str]]:
    """Return the number of common metrics, their largest difference, and the names logged by only one run."""
    before, after = (metrics(run, online) for run in runs)
    common = before.keys() & after.keys()
    largest = max((abs(before[key] - after[key]) for key in common), default=0.0)
    return len(common), largest, {name for _, name in before.keys() ^ after.keys()}


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Return the largest absolute difference between two checkpoints, or infinity if names or shapes differ."""
    if first.keys() != second.keys() or any(first[name].shape != second[name].shape for name in first):
        return float("inf")
    pairs = [(first[name], second[name]) for name in first if not torch.equal(first[name], second[name])]
    return max((float((one.double() - other.double()).abs().max()) for one, other in pairs), default=0.0)


def main() -> None:
    """Train every case in both checkouts and print one row per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="first checkout")
    parser.add_argument("after", type=Path, help="second checkout")
    parser.add_argument("--only", action="append", help="run only cases whose names contain this text (repeatable)")
    arguments = parser.parse_args()
    cases = {
        name: case
        for name, case in CASES.items()
        if arguments.only is None or any(text in name for text in arguments.only)
    }
    equal, one_sided = True, set()
    print(f"{'':<44}{'losses':>20}{'tensors':>20}{'online scores':>20}")
    print(f"{'case':<44}" + 3 * f"{'count':>8}{'difference':>12}")
    with tempfile.TemporaryDirectory() as temporary:
        write_folder(Path(temporary) / "images")
        for i, (name, case) in enumerate(cases.items()):
            runs = []
            for side, checkout in (("before", arguments.before), ("after", arguments.after)):
                folder = Path(temporary) / side / str(i)
                folder.mkdir(parents=True)
                runs.append(train(checkout.resolve(), case, folder, Path(temporary) / "images"))
            num_losses, loss, names = compare_metrics(runs, online=False)
            num_scores, score, _ = compare_metrics(runs, online=True)
            one_sided |= names
            tensors = [load_file(run / "checkpoints" / "last.safetensors") for run in runs]
            weight = largest_difference(*tensors)
            equal &= num_losses > 0 and loss == weight == 0
            columns = ((num_losses, loss), (len(tensors[0]), weight), (num_scores, score))
            print(f"{name:<44}" + "".join(f"{count:>8}{value:>12.4g}" for count, value in columns), flush=True)
    if one_sided:
        print(f"logged by only one checkout: {', '.join(sorted(one_sided))}")
    print("losses and tensors are bitwise identical" if equal else "DIFFERENT")
    sys.exit(not equal)


if __name__ == "__main__":
    main()
