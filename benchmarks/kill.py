"""Repeatedly kill and resume a run at random times, and compare its weights with those of an uninterrupted run.

    python benchmarks/kill.py                     # the demo, ten kills
    python benchmarks/kill.py --steps 200 --kills 3

Runs on the CPU and kills with SIGKILL. Exits with 1 unless the weights are bitwise identical and all checkpoints are
readable after every kill.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from jepa.runs import Run


def start(path: Path, steps: int | None, *flags: str) -> subprocess.Popen[bytes]:
    """Start `jepa train demo` in the background, discarding its output."""
    command = [sys.executable, "-m", "jepa", "train", "demo", "--run", str(path), "--device", "cpu", *flags]
    command += ["--steps", str(steps)] if steps else []
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def last_step(run: Run) -> int:
    """Read every checkpoint of a run, and return the step of the last one, or 0 if there is none."""
    steps = {name: int(run.load(name)[1]["step"]) for name in ("best", "last") if run.checkpoint(name).is_file()}
    return steps.get("last", 0)


def main() -> None:
    """Print one line per kill, then the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, help="number of steps (default: that of the recipe)")
    parser.add_argument("--kills", type=int, default=10, help="number of kills")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the kill times")
    arguments = parser.parse_args()
    random_times = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        uninterrupted, killed = Run(Path(folder) / "uninterrupted"), Run(Path(folder) / "killed")
        start_time = time.perf_counter()
        assert start(uninterrupted.path, arguments.steps).wait() == 0
        seconds = time.perf_counter() - start_time
        print(f"uninterrupted run: {seconds:.0f} s")
        for i in range(1, arguments.kills + 1):
            process = start(killed.path, arguments.steps, "--resume")
            time.sleep(random_times.uniform(0.05, 0.25) * seconds)
            process.kill()
            assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
            print(f"kill {i}: last checkpoint at step {last_step(killed)}", flush=True)
        if last_step(killed) < last_step(uninterrupted):
            assert start(killed.path, arguments.steps, "--resume").wait() == 0
        one, other = uninterrupted.load()[0], killed.load()[0]
    same = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    print(f"weights and optimizer state, {len(one)} tensors: {'bitwise identical' if same else 'DIFFERENT'}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
