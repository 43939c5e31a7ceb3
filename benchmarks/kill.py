"""Kill a run with SIGKILL at random moments, resume it each time, and compare its weights with an undisturbed run's.

    python benchmarks/kill.py                     # the demo, ten kills
    python benchmarks/kill.py --steps 200 --kills 3

Exits with 1 unless the weights are bitwise equal and every checkpoint could be read after every kill. On the CPU.
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
    """Start `jepa train demo` in the background, without its bar."""
    command = [sys.executable, "-m", "jepa", "train", "demo", "--run", str(path), "--device", "cpu", *flags]
    command += ["--steps", str(steps)] if steps else []
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def readable(run: Run) -> int:
    """Read every checkpoint that lies there; return the step of the last, or 0."""
    for name in ("best", "last"):
        if run.checkpoint(name).is_file():
            step = int(run.load(name)[1]["step"])
    return step if run.checkpoint().is_file() else 0


def main() -> None:
    """Print a line a kill, then the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, help="of the demo; its own number by default")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    moments = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Run(Path(folder) / "whole"), Run(Path(folder) / "killed")
        began = time.perf_counter()
        assert start(whole.path, given.steps).wait() == 0
        seconds = time.perf_counter() - began
        print(f"undisturbed: {seconds:.0f} s")
        for number in range(1, given.kills + 1):
            process = start(killed.path, given.steps, "--resume")
            time.sleep(moments.uniform(0.05, 0.25) * seconds)
            process.kill()
            assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
            print(f"kill {number}: the checkpoint is of step {readable(killed)}", flush=True)
        if readable(killed) < readable(whole):
            assert start(killed.path, given.steps, "--resume").wait() == 0
        one, other = whole.load()[0], killed.load()[0]
    same = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    print(f"weights and optimiser state, {len(one)} tensors: {'bitwise equal' if same else 'DIFFERENT'}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
