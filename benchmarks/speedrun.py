"""The speedrun: accuracy of a frozen encoder on CIFAR-10 for a fixed budget of training without labels.

    python benchmarks/speedrun.py vicreg-cifar10 --minutes 10           # a recipe, three seeds
    python benchmarks/speedrun.py my_method.py --minutes 2 --track movements -- --steps 300
    python benchmarks/speedrun.py k-means --minutes 2                   # k-means of patches, without a network
    python benchmarks/speedrun.py --table                               # rewrite the tables of LEADERBOARD.md
    python benchmarks/speedrun.py --curve                               # draw docs/figures/speedrun.png

An entry is a recipe, or one file with a recipe (FILE.py or FILE.py:RECIPE); flags of `jepa train` follow `--`. Each
seed is trained by a process of its own, which gets an unlabeled copy of the training images, without the test split.
The wall time of this whole process counts, from start-up to exit, including imports and the decoding of images.
Training is not cut off at the budget, so the number of steps must be chosen to fit. Afterwards, the encoder of the last
step is frozen and scored with the labels. The results of all seeds are written to one JSON file,
experiments/speedrun/NAME-DEVICE-MINUTES.json.

The training process ends with an error if it connects to the network or opens a file that is not its own
(`speedrun_launcher.py`). This finds mistakes and pretrained weights, which are forbidden. It is not a sandbox against
code that is written to cheat: readers in C++, such as that of pyarrow, bypass it. Therefore, an entry is also read by
people. LEADERBOARD.md has all rules.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import torch
from speedrun_entries import K_MEANS, RECORDS, ROOT, Entry, build_parser, parse_entry
from speedrun_records import draw_curve, update_leaderboard, write_record
from speedrun_scores import load_encoders, parameter_count, score_encoder, score_patches, training_flops
from speedrun_training import (
    check_run,
    git_commit,
    log_tail,
    machine,
    measure_rate,
    run_process,
    scaled_seconds,
    two_cores,
    write_images,
)

from jepa.config import DataConfig, load_code, require
from jepa.config.arguments import expand_home
from jepa.config.errors import exit_with
from jepa.data import open_dataset
from jepa.evaluation.features import Subset
from jepa.runs import Run

__all__ = ["main", "run", "run_command"]

PAGE, FIGURE = ROOT / "LEADERBOARD.md", ROOT / "docs" / "figures" / "speedrun.png"
MAX_RATE_RATIO = 1.15  # between the rates of the matrix product before and after training, on an idle machine


def run(entry: Entry) -> dict[str, Any]:
    """Train and score all seeds of an entry; return its record, which is also written after each seed."""
    require(
        entry.device == "cpu" or torch.cuda.is_available(),
        f"--minutes {entry.minutes} is a budget of one GPU, but torch finds none; choose --minutes 2, 10 or 30",
    )
    device = torch.device(entry.device)
    with ExitStack() as stack:
        work = entry.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="speedrun-")))
        work, cores = work.resolve(), stack.enter_context(two_cores(entry.device))
        images = work / "images" / "train.parquet"
        counts = write_images(entry.source, images, entry.labels)
        record = describe(entry, counts, cores)
        for seed in entry.seeds:
            folder = work / f"seed-{seed}"
            require(not folder.exists(), f"{folder} already exists; remove it, or choose another folder with --keep")
            result = run_seed(entry, seed, folder, images, device)
            record["results"].append(result)
            write_record(entry.record, record)
            print(sentence(entry, result))
            if entry.keep is None:
                shutil.rmtree(folder)
    print(f"record: {entry.record}; python benchmarks/speedrun.py --table adds it to {PAGE.name}")
    return record


def describe(entry: Entry, counts: dict[str, int], cores: int) -> dict[str, Any]:
    """Return the record of an entry without results."""
    code = entry.code and {"file": entry.code.name, "sha256": hashlib.sha256(entry.code.read_bytes()).hexdigest()}
    return {
        "name": entry.name,
        "command": entry.command,
        "minutes": entry.minutes,
        "device": entry.device,
        "track": entry.track,
        "labels": entry.labels,
        "code": code,
        "images": counts,
        "machine": machine(entry.device, cores),
        "commit": git_commit(ROOT),
        "date": datetime.now(UTC).date().isoformat(),
        "results": [],
    }


def run_seed(entry: Entry, seed: int, folder: Path, images: Path, device: torch.device) -> dict[str, Any]:
    """Train one seed in `folder` by a process of its own, check it, and return its times, costs and scores."""
    is_patches, target = entry.text == K_MEANS, folder / "run"
    spec: dict[str, Any] = {"seed": seed, "target": str(target)}
    if not is_patches:
        spec |= {"train": train_arguments(entry, seed, images, target), "track": entry.track, "labels": entry.labels}
    rates = [measure_rate(entry.device)]
    seconds = run_process(spec, folder, images, entry.source, entry.code, entry.device)
    print(f"{entry.name}, seed {seed}: trained for {seconds:.0f} s, now scoring", flush=True)
    rates.append(measure_rate(entry.device))
    if max(rates) > MAX_RATE_RATIO * min(rates):
        print(
            f"warning: the machine was not idle: a matrix product ran at {rates[0]} GFLOP/s before and {rates[1]} after"
        )
    result: dict[str, Any] = {
        "seed": seed,
        "process_seconds": round(seconds, 1),
        "scaled_seconds": scaled_seconds(seconds, rates, entry.device),
        "over_budget_seconds": round(max(0.0, seconds - 60 * entry.minutes), 1),
        "matmul_gflops": dict(zip(("before", "after"), rates, strict=True)),
    }
    if is_patches:
        return result | patch_results(target, entry.source)
    if entry.code:
        load_code(entry.code)
    trained = Run.open(target)
    check_run(trained, images, entry.labels, seed)
    return result | run_results(trained, entry.source, device, with_untrained=seed == entry.seeds[0])


def train_arguments(entry: Entry, seed: int, images: Path, target: Path) -> list[str]:
    """Return the arguments of `jepa train`. A reference with labels holds out no images."""
    fixed = ["--data", images, "--run", target, "--seed", seed, "--device", entry.device, "--eval-every", 0]
    holdout = ["--data.holdout", 0] if entry.labels else []
    return [*entry.train_arguments, *map(str, [*fixed, *holdout])]


def subsets(data: DataConfig, source: str) -> tuple[Subset, Subset]:
    """Return the labeled training and test images of a source, read as in a training with `data`."""
    opened = [open_dataset(replace(data, source=source), split) for split in ("train", "test")]
    train, test = (Subset(dataset, torch.arange(len(dataset))) for dataset in opened if dataset is not None)
    return train, test


def run_results(trained: Run, source: str, device: torch.device, with_untrained: bool) -> dict[str, Any]:
    """Return the scores and costs of a run, and the scores of its untrained encoder."""
    config, metadata = trained.config, trained.load()[1]
    train, test = subsets(config.data, source)
    encoder, untrained = load_encoders(trained, device)
    return score_encoder(encoder, train, test, "trained") | {
        "untrained": score_encoder(untrained, train, test, "untrained") if with_untrained else None,
        "train_seconds": round(metadata["seconds"], 1),
        "steps": config.steps,
        "batch_size": config.batch_size,
        "images_seen": config.steps * config.batch_size,
        "flops": training_flops(config),
        "parameters": parameter_count(encoder),
        "log": log_tail(trained.metrics()),
    }


def patch_results(file: Path, source: str) -> dict[str, Any]:
    """Return the scores and costs of k-means of patches, which has no steps and no untrained encoder."""
    saved = torch.load(file, weights_only=False)  # written by the launcher
    cost = saved["cost"]
    return score_patches(saved["dictionary"], *subsets(DataConfig(), source)) | {
        "untrained": None,
        "train_seconds": round(cost["seconds"], 1),
        "steps": 0,
        "batch_size": 0,
        "images_seen": cost["images"],
        "flops": cost["flops"],
        "parameters": parameter_count(saved["dictionary"]),
        "log": [],
    }


def sentence(entry: Entry, result: dict[str, Any]) -> str:
    """Return the result of a seed in one line."""
    excess = result["over_budget_seconds"]
    budget = f"over budget by {excess:.1f} s, not ranked" if excess else f"within {entry.minutes} minutes"
    return (
        f"{entry.name}, seed {result['seed']}: linear 2x2 {result['linear_2x2']:.1f}, linear {result['linear']:.1f}, "
        f"kNN {result['knn']:.1f}, RankMe {result['rankme']:.1f}; {result['process_seconds']:.0f} s, {budget}"
    )


def run_command(given: Sequence[str]) -> int:
    """Run the command line, and return the exit code."""
    given = expand_home(given)
    split = given.index("--") if "--" in given else len(given)
    arguments = build_parser(__doc__).parse_args(given[:split])
    if arguments.table:
        print(f"{PAGE.name}: tables of {update_leaderboard(PAGE, RECORDS)} records")
    if arguments.curve:
        draw_curve(RECORDS, FIGURE)
        print(f"figure: {FIGURE}")
    if not (arguments.table or arguments.curve):
        run(parse_entry(arguments, given[split + 1 :]))
    return 0


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    exit_with(lambda: run_command(sys.argv[1:]))


if __name__ == "__main__":
    main()
