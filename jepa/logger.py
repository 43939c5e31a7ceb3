"""Training logger: progress bar, metrics.jsonl and TensorBoard. It formats and writes what the loop passes to it."""

from __future__ import annotations

import importlib.util
import math
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor
from tqdm import tqdm

from jepa import distributed
from jepa.config import Config
from jepa.config.serialization import to_dict
from jepa.data import Batch
from jepa.files import printable
from jepa.objectives import Objective
from jepa.runs import Run

__all__ = ["TrainingLogger", "collapse_warning", "duration", "online_warning"]

MIN_SHOWN_WAIT = 0.05  # fraction of time spent waiting for data that is reported if it exceeds this
KNN_DROP = 2.0  # points; warn if kNN falls further than this below the untrained encoder's
MIN_STANDARD_ERRORS = 2  # of the difference; a smaller drop may be due to chance


def collapse_warning(scores: dict[str, float], untrained: dict[str, float], objective: Objective) -> str | None:
    """Return a warning if the features have collapsed, with what to try, or None.

    `scores` (now) and `untrained` (before training) contain `feature_std` and `rankme`.
    """
    if scores["rankme"] >= 2 and scores["feature_std"] >= 0.01 * untrained["feature_std"]:
        return None
    return (
        f"the features have collapsed (RankMe {scores['rankme']:.1f} of {objective.main_encoder.backbone.dim}): "
        f"they are nearly the same for all images; {objective.collapse_advice()}"
    )


def online_warning(scores: dict[str, float], untrained: dict[str, float], objective: Objective) -> str | None:
    """Return a warning about the scores of an online evaluation, with what to try, or None.

    With labels, `scores` and `untrained` also contain `knn`.
    """
    errors = (part.get("knn_error", 0.0) for part in (scores, untrained))
    drop = max(KNN_DROP, MIN_STANDARD_ERRORS * math.hypot(*errors))
    if scores.get("knn", math.inf) >= untrained.get("knn", 0.0) - drop:
        return collapse_warning(scores, untrained, objective)
    return collapse_warning(scores, untrained, objective) or (
        f"kNN is {scores['knn']:.1f}, below the {untrained['knn']:.1f} at the start: the features "
        f"separate the classes less well than before training; {objective.collapse_advice()}"
    )


def duration(seconds: float) -> str:
    """Return a time in seconds, minutes or hours."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


class TrainingLogger:
    """Logs one run. `step` and `seconds` are the steps and training time completed before this process."""

    def __init__(self, config: Config, run: Run, objective: Objective, step: int, seconds: float) -> None:
        self.config, self.run, self.objective = config, run, objective
        self.is_main = distributed.is_main()
        self.start_time = time.perf_counter() - seconds
        disable = None if self.is_main else True  # None shows it in a terminal only
        self.bar = tqdm(
            total=config.steps, initial=step, unit="step", disable=disable, dynamic_ncols=True, smoothing=0.1
        )
        self.logged_step, self.logged_time = step, time.perf_counter()
        self.writer = self._tensorboard()
        self.waited = 0.0  # seconds spent waiting for data since then

    @property
    def seconds(self) -> float:
        """Time of training so far, including that before the run was resumed."""
        return time.perf_counter() - self.start_time

    def _tensorboard(self) -> Any:
        if not self.is_main or importlib.util.find_spec("tensorboard") is None:
            return None
        from torch.utils.tensorboard import SummaryWriter  # optional, and takes a second to import

        with self.run.writing():  # what an interrupted process wrote after its last checkpoint is repeated
            return SummaryWriter(str(self.run.path / "tensorboard"), purge_step=self.logged_step + 1)

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        if not self.is_main:
            return
        text = printable(text, keep="\n")
        if not self.bar.disable:  # in a terminal
            width = shutil.get_terminal_size().columns
            text = textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
        self.bar.write(text, file=sys.stderr)

    def start(self, images: str, device: str) -> None:
        """Print what is trained, on which images and on which device."""
        count = sum(parameter.numel() for parameter in self.objective.parameters() if parameter.requires_grad)
        processes = f" x {distributed.world_size()}" if distributed.world_size() > 1 else ""
        start = f", continued after step {self.logged_step:,}" if self.logged_step else ""
        self.say(
            f"{self.config.name}: {images}, {count / 1e6:.2f} M trainable parameters, batch {self.config.batch_size}, "
            f"{self.config.steps:,} steps{start}, {device}{processes}, into {self.run.path}"
        )
        self.say(self.objective.describe())

    def timed(self, batches: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """Yield batches, and measure the time that training waits for them."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of a block, such as an evaluation, from the images per second and the time that is left."""
        start = time.perf_counter()
        yield
        elapsed = time.perf_counter() - start
        self.logged_time += elapsed
        if not self.bar.disable:
            self.bar.start_t += elapsed
            self.bar.last_print_t += elapsed

    def advance(self) -> None:
        """Advance the progress bar by one step."""
        self.bar.update()

    def log_losses(self, step: int, losses: dict[str, float], lr: float) -> None:
        """Write the losses of a step, the learning rate and the speed since the last call.

        They are shown next to the progress bar in a terminal, and as a line otherwise.
        """
        elapsed = time.perf_counter() - self.logged_time
        speed, waited = (step - self.logged_step) * self.config.batch_size / elapsed, self.waited / elapsed
        waiting = f", {100 * waited:.0f}% of the time waiting for data" if waited > MIN_SHOWN_WAIT else ""
        feature_std = f", feature std {losses['feature_std']:.4f}" if "feature_std" in losses else ""
        status = f"loss {losses['loss']:.4f}, {speed:.0f} img/s{feature_std}{waiting}"
        if self.bar.disable:
            left = (self.config.steps - step) * elapsed / (step - self.logged_step)
            rest = f", {duration(left)} left" if left else ""
            self.say(f"step {step:,}/{self.config.steps:,}: {status}{rest}")
        else:
            self.bar.set_postfix_str(f"loss {losses['loss']:.4f}, {speed:.0f} img/s{waiting}", refresh=False)
        speeds = {"images_per_s": round(speed, 1), "data_wait": round(waited, 4)}
        self.write({"step": step, **losses, "lr": lr, **speeds})
        self.logged_step, self.logged_time, self.waited = step, time.perf_counter(), 0.0

    def log_scores(self, step: int, scores: dict[str, float]) -> None:
        """Write the scores of an online evaluation, next to those of the untrained encoder, and warn on collapse."""
        untrained = next((record for record in self.run.metrics() if "rankme" in record), scores)
        start = "untrained" if self.config.init is None else "at the start"
        before = f" ({start} {untrained['knn']:.1f})" if step and "knn" in untrained else ""
        knn = f"kNN {scores['knn']:.1f}{before}, " if "knn" in scores else ""
        self.say(f"step {step}: {knn}RankMe {scores['rankme']:.1f}, feature std {scores['feature_std']:.4f}")
        warning = online_warning(scores, untrained, self.objective) if step else None
        if warning:
            self.say(f"warning: {warning}")
        self.write({"step": step, **scores} | ({"warning": warning} if warning else {}))

    def write(self, record: dict[str, Any]) -> None:
        """Write a record to metrics.jsonl and TensorBoard."""
        if not self.is_main:
            return
        self.run.log(record)
        if self.writer is not None:
            with self.run.writing():
                for name in record.keys() - {"step", "warning"}:
                    self.writer.add_scalar(name, record[name], record["step"])

    def save(self, name: str, step: int, tensors: dict[str, Tensor], images: str, **metadata: Any) -> None:
        """Save a checkpoint with its step, the training time, the signature of the images, and the config."""
        config = to_dict(self.config)
        self.run.save(name, tensors, step=step, seconds=self.seconds, images=images, config=config, **metadata)

    def close(self) -> None:
        """Close the progress bar and TensorBoard."""
        self.bar.close()
        if self.writer is not None:
            with suppress(OSError):  # a full disk has been reported by then; the numbers are in metrics.jsonl
                self.writer.close()
