"""Damage runs in all the ways of SECURITY.md, and print how each of them ends.

    python benchmarks/faults.py            # about ten minutes on two cores
    python benchmarks/faults.py --short    # a few trials of each kind, as in `make test`

Every trial runs in a process of its own, on the CPU, with a small Vision Transformer on images drawn for the purpose.
Exits with 1 if any of them ends in a traceback, does not end, loses a checkpoint, or returns something wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import jepa.checkpoints
from jepa.checkpoints import load_tensors
from jepa.cli import main as run_command
from jepa.config import Config, DataConfig, IJepaConfig, InputError, OptimConfig, ViTConfig
from jepa.data import open_dataset
from jepa.evaluate import evaluate
from jepa.files import Locked, lock
from jepa.optim import build_optimizer
from jepa.runs import Run, changed_setting, fresh_objective, load_objective
from jepa.train import train

SIGNALS = ("TERM", "INT", "HUP", "USR1", "USR2", "XCPU")
STEPS, SAVE_EVERY = 1200, 20
TIMEOUT = 120  # seconds until a process counts as hanging


@dataclass
class Row:
    """The trials of one kind."""

    name: str
    expected: str
    trials: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, problem: str | None) -> None:
        """Count a trial, with what was wrong with it, if anything."""
        self.trials += 1
        if problem:
            self.failures.append(problem)


@dataclass
class Child:
    """A forked process, in a process group of its own, whose output goes to a pipe."""

    pid: int
    pipe: int
    output: bytes = b""

    @classmethod
    def start(cls, action: Callable[[], Any]) -> Child:
        """Run an action in a new process."""
        sys.stdout.flush()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid:
            os.close(writer)
            os.set_blocking(reader, False)
            return cls(pid, reader)
        code = 1
        try:
            os.setsid()
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)  # that of the parent may be a file
            sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
            code = exit_code(action)
        finally:
            os._exit(code)

    def wait(self) -> int | None:
        """Return the exit code, negative for a signal, or None if the process does not end."""
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            self.read()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.read()
                os.close(self.pipe)
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return None

    def read(self) -> None:
        """Read what the process has printed."""
        with suppress(BlockingIOError):
            while part := os.read(self.pipe, 65536):
                self.output += part

    @property
    def text(self) -> str:
        """What the process has printed."""
        return self.output.decode("utf-8", "replace")

    def ended(self, *codes: int) -> str | None:
        """Wait for the process; return what is wrong, if anything, with its exit code and its output."""
        code, text = self.wait(), self.text
        if code is None:
            return "does not end"
        if "Traceback" in text:
            return f"traceback: {text.strip().splitlines()[-1]}"
        return None if code in codes else f"exit code {code}: {text.strip().splitlines()[-1:]}"


def exit_code(action: Callable[[], Any]) -> int:
    """Run an action as a command does, and return its exit code."""
    code = 0
    try:
        action()
    except SystemExit as end:
        code = int(end.code or 0)
    except InputError as error:
        print(f"jepa: {error}")
        code = 2
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


class Lab:
    """A folder with images, a trained and evaluated run, and copies of it to damage."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random = root, random.Random(seed)
        self.images = root / "images"
        rng = np.random.default_rng(0)
        for split, count in (("train", 48), ("test", 24)):
            for i in range(count):
                pixels = rng.integers(0, 100, (16, 16, 3), dtype=np.uint8)
                pixels[:, 8 * (i % 2) : 8 * (i % 2) + 8] += 100
                file = self.images / split / f"class{i % 2}" / f"{i:02}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(file)
        self.config = Config(
            name="faults",
            steps=6,
            batch_size=8,
            eval_every=3,
            save_every=2,
            log_every=1,
            device="cpu",
            precision="fp32",
            data=DataConfig(source=str(self.images), image_size=16),
            backbone=ViTConfig(size="32x4x2", patch=4, stem="conv"),
            objective=IJepaConfig(predictor="16x1x2"),
            optim=OptimConfig(warmup=2),
        )
        self.done = self.in_child(lambda: train(self.config, root / "runs" / "done"), "done")
        self.result = evaluate(self.done)
        self.number = 0

    def in_child(self, action: Callable[[], Any], name: str) -> Path:
        """Run an action that must succeed; return the run folder of that name."""
        problem = Child.start(action).ended(0)
        assert problem is None, problem
        return self.root / "runs" / name

    def copy(self) -> Run:
        """Return a copy of the run."""
        self.number += 1
        return Run(shutil.copytree(self.done, self.root / "runs" / f"copy{self.number}"))

    def start(self, action: Callable[[], Any]) -> Child:
        """Start a process."""
        return Child.start(action)

    def command(self, *arguments: object) -> Child:
        """Start a command."""
        return self.start(lambda: run_command([str(argument) for argument in arguments]))


def wait_for_steps(run: Run, count: int, child: Child) -> None:
    """Wait until a training process has logged `count` further steps, or has ended."""
    start, end = len(run.metrics()), time.monotonic() + TIMEOUT
    while len(run.metrics()) < start + count and time.monotonic() < end:
        if os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        child.read()
        time.sleep(0.005)


def signals(lab: Lab, short: bool) -> Iterator[Row]:
    """Send every signal to a process or its group, with and without workers."""
    row = Row("signal to a process or its group, with 0 or 2 workers", "saved, exit code 128 + signal, resumed")
    for name in SIGNALS[:1] if short else SIGNALS:
        for to_group in (False, True):
            for workers in (2 * to_group,) if short else (0, 2):
                number = getattr(signal, f"SIG{name}")
                run = Run(lab.root / "runs" / f"{name}-{to_group}-{workers}")
                flags = ["--data.cache-gb", "0", "--data.workers", workers, "--eval-every", 0, "--save-every", 10**6]
                config = ["--config", lab.done / "config.json", "--run", run.path, *flags]
                child = lab.command("train", *config, "--steps", 10**6)
                wait_for_steps(run, 3, child)
                (os.killpg if to_group else os.kill)(child.pid, number)
                problem = child.ended(128 + number)
                if problem is None:
                    step = run.metrics()[-1]["step"]
                    if run.load()[1]["step"] != step or not child.text.rstrip().endswith("--resume"):
                        problem = f"step {step} is not saved, or the message has no command"
                    resumed = lab.command("train", *config, "--steps", step + 2, "--resume")
                    problem = problem or resumed.ended(0)
                row.add(problem and f"{name}, group {to_group}, {workers} workers: {problem}")
    yield row
    row = Row("a worker is killed", "the last finished step is saved, exit code 2")
    for trial in range(1 if short else 3):
        run = Run(lab.root / "runs" / f"worker-{trial}")
        flags = ["--data.cache-gb", "0", "--data.workers", "2", "--eval-every", 0, "--save-every", 10**6]
        child = lab.command("train", "--config", lab.done / "config.json", "--run", run.path, *flags, "--steps", 10**6)
        wait_for_steps(run, 3, child)
        workers_of = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        os.kill(int(workers_of[trial % 2]), signal.SIGKILL)
        row.add(child.ended(2) or (None if run.load()[1]["step"] == run.metrics()[-1]["step"] else "not saved"))
    yield row


def kill_in_save(stage: str) -> None:
    """Make this process kill itself at a stage of its first save."""
    save_file, replace = jepa.checkpoints.save_file, Path.replace

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def half(tensors: Any, path: Path, header: Any) -> None:
        save_file(tensors, path, header)
        os.truncate(path, path.stat().st_size // 2)
        die()

    def replace_and_die(self: Path, target: Path) -> None:
        replace(self, target)
        if target.suffix == ".safetensors":
            die()

    patches = {
        "before": (jepa.checkpoints, "save_file", die),
        "half": (jepa.checkpoints, "save_file", half),
        "unverified": (jepa.checkpoints, "read_checkpoint", die),
        "verified": (os, "fsync", die),
        "replaced": (Path, "replace", replace_and_die),
    }
    setattr(*patches[stage])


def kills(lab: Lab, short: bool) -> Iterator[Row]:
    """Kill a run again and again, and compare its end with that of a run that was never killed."""
    at_random, in_saves, steps, save_every = (2, 5, 40, 5) if short else (35, 15, STEPS, SAVE_EVERY)
    config = Config(**{**vars(lab.config), "steps": steps, "save_every": save_every, "eval_every": 0})
    whole = Run(lab.in_child(lambda: train(config, lab.root / "runs" / "whole"), "whole"))
    run = Run(lab.root / "runs" / "killed")
    row = Row("SIGKILL, some of them during a save", "readable, resumed, bitwise as if never killed")
    stages = ["before", "half", "unverified", "verified", "replaced"]
    trials = [*[""] * at_random, *(stages[i % len(stages)] for i in range(in_saves))]
    lab.random.shuffle(trials)
    step = 0
    for stage in trials:

        def resume(stage: str = stage) -> None:
            if run.checkpoint().exists() and stage:
                kill_in_save(stage)
            train(config, run.path, resume=True)

        child = lab.start(resume)
        if not stage or not run.checkpoint().exists():
            wait_for_steps(run, lab.random.randint(3, 2 * save_every), child)
            os.kill(child.pid, signal.SIGKILL)
        problem = child.ended(-signal.SIGKILL)
        if run.checkpoint().exists():
            before, step = step, run.load()[1]["step"]
            problem = problem or (None if step >= before else f"step {step} after {before}")
        row.add(problem and f"{stage or 'at random'}: {problem}")
    end = lab.start(lambda: train(config, run.path, resume=True)).ended(0)
    first, second = whole.load()[0], run.load()[0]
    same = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    leftovers = [*run.path.rglob("*.tmp"), *run.path.rglob(".tmp*"), *run.path.rglob(".*lock")]
    row.add(end or (None if same and not leftovers else f"the weights are the same: {same}, leftovers: {leftovers}"))
    yield row


def flip(file: Path, place: random.Random) -> None:
    """Flip one bit of a file."""
    content = bytearray(file.read_bytes())
    content[place.randrange(len(content))] ^= 1 << place.randrange(8)
    file.write_bytes(content)


def cut(file: Path, place: random.Random) -> None:
    """Cut a file short."""
    os.truncate(file, place.randrange(file.stat().st_size))


def refused_checkpoint(lab: Lab, run: Run) -> None:
    """Load a damaged checkpoint, which must be an error."""
    try:
        tensors, _ = run.load()
        objective = fresh_objective(run.config)
        load_tensors(tensors, objective, build_optimizer(objective, run.config.optim), where=run.path)
    except InputError:
        return
    raise AssertionError("the damage was not found")


def same_evaluation(lab: Lab, run: Run) -> None:
    """Evaluate a run with damaged features, which must be extracted again."""
    result = evaluate(run.path)
    names = ("trained", "context", "untrained", "pixels")
    assert [result[name] for name in names] == [lab.result[name] for name in names], "other scores"


def same_config(lab: Lab, run: Run) -> None:
    """Load a run with a damaged config, which must be an error unless nothing depends on the change."""
    try:
        load_objective(run)
        changed = changed_setting(Run(lab.done).config, run.config)
    except InputError:
        return
    assert changed is None, f"{changed} has changed"


def told_metrics(lab: Lab, run: Run) -> None:
    """Read damaged metrics: it must be said that they have changed, and they are drawn, or none is left."""
    assert run.metrics_changed(run.load()[1]), "the damage was not found"
    code = exit_code(lambda: run_command(["plot", str(run.path), "curves"]))
    assert code in (0, 2), code  # 2 if no loss is left


def same_images(lab: Lab, run: Run) -> None:
    """Open images whose index or cache is damaged, and which must be as before."""
    cache = run.path / ".jepa-cache"
    for split in ("train", "test"):
        damaged = open_dataset(lab.config.data, split, cache)
        intact = open_dataset(lab.config.data, split, lab.root / "runs" / ".jepa-cache")
        assert damaged is not None
        assert intact is not None
        images = torch.arange(len(intact))
        assert torch.equal(damaged.read(images).pixels, intact.read(images).pixels), "other images"
        assert damaged.labels is not None
        assert torch.equal(damaged.labels, intact.labels), "other labels"


DAMAGED: dict[str, tuple[str, Callable[[Lab, Run], None], str, tuple[int, int]]] = {
    "checkpoint": ("checkpoints/last.safetensors", refused_checkpoint, "refused", (30, 8)),
    "kept features": ("features/*/*", same_evaluation, "extracted again", (20, 10)),
    "index": (".jepa-cache/*/*.arrow|.jepa-cache/*/*.json", same_images, "written again", (20, 8)),
    "decoded images": (".jepa-cache/*/*.pixels|.jepa-cache/*/*.crc32", same_images, "decoded again", (10, 4)),
    "metrics.jsonl": ("metrics.jsonl", told_metrics, "said", (10, 5)),
    "config.json": ("config.json", same_config, "refused", (10, 5)),
}
"""Files, what is done with them after the damage, how it should end, and the numbers of flips and cuts."""


def damages(lab: Lab, short: bool) -> Iterator[Row]:
    """Flip bits and cut files."""
    for name, (patterns, check, expected, counts) in DAMAGED.items():
        for damage, count in zip((flip, cut), counts, strict=True):
            row = Row(f"{'one flipped bit' if damage is flip else 'cut'}: {name}", expected)
            for _ in range(1 if short else count):
                run = lab.copy()
                shutil.copytree(lab.root / "runs" / ".jepa-cache", run.path / ".jepa-cache")
                files = [file for pattern in patterns.split("|") for file in sorted(run.path.glob(pattern))]
                chosen = lab.random.choice([file for file in files if file.stat().st_size])
                damage(chosen, lab.random)
                problem = lab.start(lambda run=run, check=check: check(lab, run)).ended(0)
                row.add(problem and f"{chosen.relative_to(run.path)}: {problem}")
                shutil.rmtree(run.path)
            yield row


def on_full_disk(limit: int, action: Callable[[], Any]) -> None:
    """Run an action that can write no file larger than `limit` bytes, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    action()


def full_disks(lab: Lab, short: bool) -> Iterator[Row]:
    """Fill the disk under every writer."""
    row = Row("full disk, every writer", "one sentence, exit code 2, earlier files unchanged")
    more = ("train", "--resume", "--steps", 9, "--config", lab.done / "config.json", "--run")
    cases: list[tuple[str, int, tuple[object, ...]]] = [
        ("checkpoint", 20_000, more),
        ("metrics", 1500, more),
        ("config", 100, more),
        ("features", 2000, ("evaluate", "--data", lab.images / "test")),
        ("evaluation.json", 500, ("evaluate",)),
        ("report", 20_000, ("evaluate",)),
        ("figure", 2000, ("plot", "curves")),
    ]
    for name, limit, (command, *arguments) in cases[:3] if short else cases:
        run = lab.copy()
        before = {file: file.read_bytes() for file in run.path.glob("checkpoints/*")}
        words = [command, *arguments, run.path] if command == "train" else [command, run.path, *arguments]
        words = [str(word) for word in words]
        child = lab.start(lambda limit=limit, words=words: on_full_disk(limit, lambda: run_command(words)))
        problem = child.ended(2)
        lost = [file.name for file, content in before.items() if file.read_bytes() != content]
        row.add((problem or (lost and f"lost {lost}")) and f"{name}: {problem or lost}")
    new = Run(lab.root / "runs" / "elsewhere" / "new")
    words = ["train", "--config", str(lab.done / "config.json"), "--run", str(new.path)]
    row.add(lab.start(lambda: on_full_disk(100, lambda: run_command(words))).ended(2))
    yield row


def two_writers(lab: Lab, short: bool) -> Iterator[Row]:
    """Train into a run while another process does."""
    row = Row("two trainings into one run", "the second is refused with the process of the first")
    for name, flags in (("resumed", ["--resume"]), ("new", [])):
        run = lab.copy() if flags else Run(lab.root / "runs" / "shared")
        config = ["--config", lab.done / "config.json", "--run", run.path, "--steps", 10**6, *flags]
        first = lab.command("train", *config)
        wait_for_steps(run, 2, first)
        second = Child.start(lambda: run_command([str(word) for word in ["train", *config]]))  # noqa: B023
        problem = second.ended(2)
        if problem is None and not (f"process {first.pid} on" in second.text or "already exists" in second.text):
            problem = second.text
        os.kill(first.pid, signal.SIGTERM)
        row.add((problem or first.ended(143)) and f"{name}: {problem}")
    with lock(lab.root / "held"):
        row.add(lab.start(lambda: hold(lab.root / "held")).ended(0))
    yield row


def hold(path: Path) -> None:
    """Try to hold a lock that is held."""
    try:
        with lock(path):
            raise AssertionError("the lock was given twice")
    except Locked as holder:
        message = str(holder)
    assert f"process {os.getppid()} on" in message, message


def write(content: bytes) -> Callable[[Path], None]:
    """Return a function that writes a file."""
    return lambda path: path.write_bytes(content) and None


def fifo(path: Path) -> None:
    """Replace a file by a pipe, which blocks whoever opens it."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def folder(path: Path) -> None:
    """Replace a file by a folder."""
    path.unlink(missing_ok=True)
    path.mkdir()


def endless(path: Path) -> None:
    """Replace a file by a link to an endless one."""
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


HOSTILE: dict[str, tuple[Callable[[Path], None], ...]] = {
    "config.json": (
        write(b"[" * 100_000),
        write(b'{"data": {"source": "a\\u0000b"}}'),
        write(b'{"data": {"image_size": 1180591620717411303424}}'),
        write(b'{"data": {"canvas": 1000000}}'),
        write(b'{"backbone": {"size": "32x100000x2"}}'),
        write(b'{"name": "../../x", "optim": {"kind": "sgd"}, "steps": "ten"}'),
        write(b"\xff\xfe{}"),
        *(fifo, folder, endless),
    ),
    "metrics.jsonl": (
        write(b'\xff\n{"step": 1}\n'),
        write(b'[1]\n3\n"x"\nnull\n{"step": "one"}\n{"step": 1, "loss": []}\n{"step": 1e400}\n'),
        write(b"[" * 100_000 + b"\n"),
        *(fifo, folder, endless),
    ),
    "checkpoints/last.safetensors": (
        write(b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00cos\nsystem\n"),
        write(b"PK\x03\x04" + bytes(1000)),
        write((2**63).to_bytes(8, "little") + b"{}"),
        write((2).to_bytes(8, "little") + b"{}"),
        write((34).to_bytes(8, "little") + b'{"__metadata__":{"format":"3"}}   '),
        *(fifo, folder, endless),
    ),
    "evaluation.json": (write(b"["), write(b'{"trained": 3}'), write(b"\xff"), folder, fifo),
}
"""Content that a file of a run may have."""


def hostile_files(lab: Lab, short: bool) -> Iterator[Row]:
    """Put files into a run that nobody expects there, and use every command."""
    commands: tuple[tuple[object, ...], ...] = (
        ("train", "--resume", "--steps", 7, "--run"),
        ("evaluate",),
        ("plot", "curves"),
        ("compare",),
    )
    for name, contents in HOSTILE.items():
        row = Row(f"hostile {name}, every command", "one sentence, or no harm")
        for make in contents[:1] if short else contents:
            for command, *arguments in commands[: 1 if short else 4]:
                run = lab.copy()
                make(run.path / name)
                words = [command, *arguments, run.path] if command == "train" else [command, run.path, *arguments]
                words += ["--figure", run.path / "figure.png"] if command == "compare" else []
                child = lab.command(*words)
                problem = child.ended(0, 2)
                row.add(problem and f"{command}: {problem}")
                for path in run.path.rglob("*"):
                    if path.is_fifo() or path.is_symlink():
                        path.unlink()
                shutil.rmtree(run.path)
        yield row
    row = Row("links in place of temporary files", "their targets are unchanged")
    run, victim = lab.copy(), lab.root / "victim"
    victim.write_text("unchanged")
    for name in (".evaluation.json.tmp", ".last.safetensors.1.tmp", ".metrics.jsonl.0.tmp", ".training.lock"):
        (run.path / name).symlink_to(victim)
    (run.path / "checkpoints" / ".last.safetensors.00.tmp").symlink_to(victim)
    (run.path / "features" / ".trained-0.odd").mkdir()
    child = lab.start(lambda: evaluate(run.path))  # without a report, which takes longer than all other trials
    row.add(child.ended(0) or (None if victim.read_text() == "unchanged" else "the target was written to"))
    child = lab.command("train", "--config", run.path / "config.json", "--run", run.path, "--resume", "--steps", 8)
    row.add(child.ended(0, 2) or (None if victim.read_text() == "unchanged" else "the target was written to"))
    yield row


def main() -> None:
    """Print one line for each kind of fault, and what failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--short", action="store_true", help="a few trials of each kind")
    parser.add_argument("--seed", type=int, default=0, help="random seed of times and places")
    parser.add_argument("--only", help="one kind: signals, kills, damages, full_disks, two_writers, hostile_files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # processes are forked, which the threads of OpenMP do not survive
    kinds = {part.__name__: part for part in (signals, kills, damages, full_disks, two_writers, hostile_files)}
    start, failed = time.perf_counter(), []
    print(f"{'fault':<55} {'should end':<52} {'tried':>5} {'failed':>6}")
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder), arguments.seed)
        for kind in [kinds[arguments.only]] if arguments.only else kinds.values():
            for row in kind(lab, arguments.short):
                print(f"{row.name:<55} {row.expected:<52} {row.trials:>5} {len(row.failures):>6}", flush=True)
                failed += [f"{row.name}: {failure}" for failure in row.failures]
    print(f"{time.perf_counter() - start:.0f} s", *failed, sep="\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
