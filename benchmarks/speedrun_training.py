"""Training of speedrun entries: the images that they get, their process, its time, and the machine."""

from __future__ import annotations

import json
import os
import platform
import site
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from throughput import matmul_rate

import jepa
from jepa.config import InputError, require
from jepa.config.sources import TORCHVISION, expand_user
from jepa.data import CACHE, open_source
from jepa.data.sources.torchvision import DATA_FOLDER
from jepa.distributed import has_bf16_instructions
from jepa.runs import Run

__all__ = [
    "check_run",
    "git_commit",
    "log_tail",
    "machine",
    "run_process",
    "scaled_seconds",
    "two_cores",
    "write_images",
]

THREADS = 2  # number of threads and cores of the CPU budgets
REFERENCE_RATE = 250.0  # GFLOP/s of the matrix product on the machine to which times are scaled
LAUNCHER = Path(__file__).resolve().parent / "speedrun_launcher.py"
PACKAGE = Path(jepa.__file__).resolve().parent
ROWS = 1000  # number of images per row group
TAIL, THINNED = 5, 15  # number of last and of evenly spaced log records in a result
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


# Images


def write_images(source: str, target: Path, labels: bool) -> dict[str, int]:
    """Copy the training images of a source to a parquet file and return the number of images in train and test.

    The file has a column of labels only if `labels`, and no test images. Names of files are dropped and the order is
    random but fixed, because both may tell the classes. Raises `InputError` if there is no labeled train or test split.
    """
    opened = open_source(source)
    splits = opened.splits()
    require(
        {"train", "test"} <= set(splits),
        f"--data must have the splits train and test, got {source} with {', '.join(sorted(splits))}; choose CIFAR-10",
    )
    train, test = opened.open("train"), opened.open("test")
    require(
        train.labels is not None and test.labels is not None,
        f"--data must have labels, which the encoders are scored with, but those of {source} are missing; choose "
        "CIFAR-10",
    )
    assert train.labels is not None
    order = torch.randperm(len(train.files), generator=torch.Generator().manual_seed(0))
    names = {"label": {"_type": "ClassLabel", "names": list(train.classes)}} if labels else {}
    metadata = json.dumps({"info": {"features": {"image": {"_type": "Image"}} | names}})
    fields = [pa.field("image", IMAGE), *([pa.field("label", pa.int64())] if labels else [])]
    target.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(target, pa.schema(fields, {"huggingface": metadata})) as writer:
        for rows in order.split(ROWS):
            images = pa.array([{"bytes": train.files.read(row), "path": None} for row in rows.tolist()], IMAGE)
            columns = [images, *([pa.array(train.labels[rows].numpy(), pa.int64())] if labels else [])]
            writer.write_batch(pa.record_batch(columns, schema=writer.schema))
    return {"train": len(train.files), "test": len(test.files)}


# The process


def run_process(spec: dict[str, Any], folder: Path, images: Path, source: str, code: Path | None, device: str) -> float:
    """Run a training process as described by `spec` in an empty folder, and return its wall time in seconds.

    The process may read the folder, the images and the code. Raises `InputError` if it breaks a rule, and `SystemExit`
    with its exit code if it fails after printing why.
    """
    (folder / "home").mkdir(parents=True)
    (folder / "tmp").mkdir()
    report, spec_file = folder / "violation.txt", folder / "spec.json"
    readable = [str(path) for path in (folder, images, PACKAGE, *([code] if code else []))]
    data = DATA_FOLDER if source in TORCHVISION else expand_user(source)
    forbidden = [str(path.absolute()) for path in (data, CACHE)]
    spec |= {"readable": readable, "forbidden": forbidden, "report": str(report), "images": str(images)}
    spec_file.write_text(json.dumps(spec))
    command = [sys.executable, "-P", str(LAUNCHER), str(spec_file)]
    start = time.perf_counter()
    status = subprocess.run(command, cwd=folder, env=environment(folder, device), check=False).returncode
    seconds = time.perf_counter() - start
    if report.is_file():
        raise InputError(report.read_text().splitlines()[0])
    if status:
        raise SystemExit(status)
    return seconds


def environment(folder: Path, device: str) -> dict[str, str]:
    """Return the environment of a training process: own folders for caches and temporary files, and two threads."""
    variables = {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONUSERBASE": site.getuserbase(),
        "PYTHONPATH": str(PACKAGE.parent),
    }
    if device == "cpu":
        variables |= {"OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS), "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | variables


def check_run(run: Run, images: Path, labels: bool, seed: int) -> None:
    """Raise `InputError` unless a run was trained to its last step, on the images, and as it was started."""
    config, step = run.config, int(run.load()[1]["step"])
    require(
        config.data.source == str(images),
        f"the run must be trained on the unlabeled images, got {config.data.source}; remove what changes its source",
    )
    require(
        step == config.steps, f"the run must end at step {config.steps}, got a checkpoint of step {step}; run it again"
    )
    require(
        config.objective.uses_labels == labels and config.seed == seed and config.eval_every == 0,
        f"the run must keep the labels, seed and evaluation of the speedrun, got seed {config.seed} and eval_every "
        f"{config.eval_every}; remove what changes them",
    )


def log_tail(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the last records of a training log, and evenly spaced ones of all before."""
    earlier, last = list(records[:-TAIL]), list(records[-TAIL:])
    step = max(1, -(-len(earlier) // THINNED))
    kept = [*earlier[::step], *last]
    return [
        {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in record.items()}
        for record in kept
    ]


# The machine


@contextmanager
def two_cores(device: str) -> Iterator[int]:
    """For a CPU budget, restrict this thread and the processes that it starts to two cores; yield their number."""
    if device != "cpu" or not hasattr(os, "sched_setaffinity"):
        yield min(THREADS, os.cpu_count() or 1) if device == "cpu" else os.cpu_count() or 1
        return
    before = os.sched_getaffinity(0)
    chosen = distinct_cores(sorted(before))[:THREADS]
    os.sched_setaffinity(0, chosen)
    try:
        yield len(chosen)
    finally:
        os.sched_setaffinity(0, before)


def distinct_cores(cpus: list[int]) -> list[int]:
    """Return the CPUs ordered such that no two of the first ones are threads of the same physical core."""
    first, second, seen = [], [], set()
    for cpu in cpus:
        siblings = str(cpu)
        with suppress(OSError):
            siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
        (second if siblings in seen else first).append(cpu)
        seen.add(siblings)
    return first + second


def measure_rate(device: str) -> float:
    """Return the rate of a large matrix product in GFLOP/s: fp32 on two threads, or bf16 on a GPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        return round(matmul_rate(torch.device(device), dtype) / 1e9, 1)
    finally:
        torch.set_num_threads(threads)


def scaled_seconds(seconds: float, rates: Sequence[float], device: str) -> float | None:
    """Return seconds × rate / REFERENCE_RATE with the mean of the rates; None on a GPU, where times are not scaled."""
    return round(seconds * sum(rates) / len(rates) / REFERENCE_RATE, 1) if device == "cpu" else None


def machine(device: str, cores: int) -> dict[str, Any]:
    """Return the processor, its cores in use and bf16 instructions, the GPU, and the versions of Python and torch."""
    model = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {
        "cpu": model,
        "cores": cores,
        "bf16": has_bf16_instructions(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def git_commit(root: Path) -> str:
    """Return the commit of a checkout, followed by `+changes` if code has been changed, or `unknown` without git."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)

    with suppress(OSError):
        head = git("rev-parse", "HEAD")
        if head.returncode == 0:
            changed = git("status", "--porcelain", "--", "jepa", "benchmarks").stdout.strip()
            return head.stdout.strip() + ("+changes" if changed else "")
    return "unknown"
