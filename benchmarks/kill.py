"""Kill a run with SIGKILL at random times, resume it each time, and compare its weights with those of a whole run.

    python benchmarks/kill.py                     # the demo, ten kills
    python benchmarks/kill.py --steps 200 --kills 3

Runs on the CPU. Exits with 1 unless the weights are bitwise equal and every checkpoint is readable after every kill.
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
    """Start `jepa train demo` in the background, without output."""
    command = [sys.executable, "-m", "jepa", "train", "demo", "--run", str(path), "--device", "cpu", *flags]
    command += ["--steps", str(steps)] if steps else []
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def last_step(run: Run) -> int:
    """Read every checkpoint of a run; return the step of the last one, or 0 if there is none."""
    steps = {name: int(run.load(name)[1]["step"]) for name in ("best", "last") if run.checkpoint(name).is_file()}
    return steps.get("last", 0)


def main() -> None:
    """Print a line for each kill, then the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, help="number of steps; that of the recipe by default")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="seed of the times of the kills")
    arguments = parser.parse_args()
    random_times = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Run(Path(folder) / "whole"), Run(Path(folder) / "killed")
        start_time = time.perf_counter()
        assert start(whole.path, arguments.steps).wait() == 0
        seconds = time.perf_counter() - start_time
        print(f"whole run: {seconds:.0f} s")
        for number in range(1, arguments.kills + 1):
            process = start(killed.path, arguments.steps, "--resume")
            time.sleep(random_times.uniform(0.05, 0.25) * seconds)
            process.kill()
            assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
            print(f"kill {number}: the checkpoint is of step {last_step(killed)}", flush=True)
        if last_step(killed) < last_step(whole):
            assert start(killed.path, arguments.steps, "--resume").wait() == 0
        one, other = whole.load()[0], killed.load()[0]
    same = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    print(f"weights and optimizer state, {len(one)} tensors: {'bitwise equal' if same else 'DIFFERENT'}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
