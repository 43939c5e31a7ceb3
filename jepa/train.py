"""The training loop. Also runs as a file, `python jepa/train.py demo`, and under torchrun."""

from __future__ import annotations

if __name__ == "__main__":  # run as a file: Python put jepa/ first on the path, where the package's parent belongs
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from jepa.cli import main

    main(["train", *sys.argv[1:]])

import dataclasses
import importlib.util
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from jepa import distributed
from jepa.config import Config, DataConfig, InputError, flat
from jepa.data import Images, Loader, open_dataset, split_holdout
from jepa.evaluation import online
from jepa.objectives import Objective
from jepa.optim import build_optimizer, set_schedule
from jepa.rng import Rng
from jepa.runs import Run, fresh_objective, pack, unpack

__all__ = ["Interrupted", "check_resumable", "diagnose", "train"]

ADJUSTABLE = frozenset(
    {"name", "steps", "device", "precision", "compile", "accumulate", "log_every", "eval_every", "save_every"}
    | {"data.source", "data.memory_gb"}
)
"""What may change when a run is resumed; anything else would make it another run."""


def train(config: Config, path: str | Path, resume: bool = False) -> Run:
    """Train an experiment into the run folder `path`, or go on with the one that lies there.

    Raises `InputError` where the config does not fit the data or the device, and `Interrupted` after Ctrl-C or SIGTERM,
    once everything is saved.
    """
    device = distributed.pick_device(config.device)
    with distributed.session(device), _signals() as stopped:
        images = open_dataset(config.data)
        assert images is not None  # a source without a training split is refused when it is opened
        config = dataclasses.replace(config, data=measured(config.data, images))
        index, held_out = split_holdout(len(images), config.data.holdout)
        world = distributed.world_size()
        loader = Loader(
            images, index, config.batch_size, config.seed, device, config.accumulate, distributed.rank(), world
        )

        objective = fresh_objective(config).to(device)
        optimizer = build_optimizer(objective, config.optim)
        model = distributed.wrap(torch.compile(objective) if config.compile else objective)  # type: ignore[arg-type]
        precision = config.precision if config.precision != "auto" else "bf16" if device.type == "cuda" else "fp32"
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

        run, start, seconds = _open(config, path, objective, optimizer, resume)
        log = _Log(config, run, objective, images, (index, held_out), start, seconds)
        log.headline(f"{device} {precision}" + (f" x {world}" if world > 1 else ""))
        objective.train()
        for step, parts in zip(range(start, config.steps), loader.steps(range(start, config.steps)), strict=True):
            rate = set_schedule(optimizer, step, config.steps, config.optim)
            for number, batch in enumerate(parts, 1):
                inputs = objective.sample(batch, Rng(config.seed, step, batch.rows))
                with distributed.without_sync(model, skip=number < len(parts)):
                    with autocast:
                        losses = model(inputs)
                    (losses["loss"] / len(parts)).backward()
            if config.optim.clip is not None:
                torch.nn.utils.clip_grad_norm_(objective.parameters(), config.optim.clip)
            optimizer.step()
            optimizer.zero_grad()
            objective.after_step((step + 1) / config.steps)

            done = step + 1
            stop = distributed.any_true(stopped(), device)
            log.step(done, losses, rate)
            if done % config.save_every == 0 or done == config.steps or stop:
                log.save(done, optimizer)
            if stop:
                log.close()
                raise Interrupted(f"stopped at step {done} of {config.steps}; continue with --resume", stopped())
        log.close()
    return run


class Interrupted(Exception):  # noqa: N818  (as KeyboardInterrupt)
    """The run was stopped by a signal and is saved."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


def measured(data: DataConfig, images: Images) -> DataConfig:
    """Fill in mean and std of each channel, measured on at most 10,000 images, where the config gives none."""
    if data.mean is not None and data.std is not None:
        return data
    chosen = torch.arange(0, len(images), max(1, len(images) // 10_000))
    totals = torch.zeros(2, data.channels, dtype=torch.float64)
    count = 0
    for part in chosen.split(500):
        pixels = images.batch(part).double() / 255
        totals += torch.stack([pixels.sum((0, 2, 3)), pixels.square().sum((0, 2, 3))])
        count += pixels.numel() // data.channels
    mean = totals[0] / count
    std = (totals[1] / count - mean.square()).clamp(min=1e-6).sqrt()
    rounded = [tuple(round(value, 4) for value in values.tolist()) for values in (mean, std)]
    return dataclasses.replace(data, mean=data.mean or rounded[0], std=data.std or rounded[1])


def diagnose(now: dict[str, float], untrained: dict[str, float], dim: int) -> str | None:
    """Say in plain words what an online evaluation gives reason to worry about, and what to try; None where nothing.

    `now` and `untrained` hold `spread`, `rankme` and, with labels, `knn` of the encoder at a step and before training.
    """
    advice = (
        "try --objective.variance 1 --objective.covariance 1, a lower --optim.lr, or a longer --objective.ema-half-life"
    )
    if now["rankme"] < 2 or now["spread"] < 0.01 * untrained["spread"]:
        return (
            f"the features have collapsed (RankMe {now['rankme']:.1f} of {dim}): all images look alike to it; {advice}"
        )
    if now.get("knn", math.inf) < untrained.get("knn", 0.0) - 2:
        return (
            f"kNN is {now['knn']:.1f}, below the {untrained['knn']:.1f} of the untrained encoder: what it learns does "
            f"not tell images apart; {advice}"
        )
    return None


def _open(
    config: Config, path: str | Path, objective: Objective, optimizer: torch.optim.Optimizer, resume: bool
) -> tuple[Run, int, float]:
    """Make the run folder, or put the state of the one that is there back; return it, steps done and seconds spent."""
    run, start, seconds = Run(path), 0, 0.0
    if resume and run.exists:
        check_resumable(run.config, config, path)
    if resume and run.checkpoint().is_file():
        tensors, facts = run.load()
        unpack(tensors, objective, optimizer, run.checkpoint())
        start, seconds = int(facts["step"]), float(facts["seconds"])
        if start >= config.steps:
            raise InputError(f"{path} is complete at step {start}; give --steps above that to train on")
    distributed.barrier()  # all have read: the first process may write
    if distributed.is_main():
        run = Run.create(path, config)
        run.forget_after(start or -1)
    return run, start, seconds


def check_resumable(before: Config, now: Config, path: str | Path) -> None:
    """Refuse to resume a run with settings that would make it another one. Raises `InputError` naming the first."""
    old, new = flat(before), flat(now)
    for name in [*old, *new]:
        if name not in ADJUSTABLE and old.get(name) != new.get(name):
            raise InputError(
                f"{path} was trained with {name} = {old.get(name)} and cannot be resumed with {new.get(name)}; leave "
                "the setting as it is, or start a new run with --run DIR"
            )


@contextmanager
def _signals() -> Iterator[Any]:
    """Catch Ctrl-C and SIGTERM, to end after the step; yields a function that gives the signal, or 0."""
    caught = 0

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal caught
        if caught:  # asked twice: leave at once
            raise KeyboardInterrupt
        caught = signum

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Log:
    """What the loop tells: the bar, metrics.jsonl, TensorBoard, online evaluations and checkpoints."""

    def __init__(
        self,
        config: Config,
        run: Run,
        objective: Objective,
        images: Images,
        split: tuple[Tensor, Tensor],
        start: int,
        seconds: float,
    ) -> None:
        self.config, self.run, self.objective = config, run, objective
        self.images, (self.index, self.held_out) = images, split
        self.main = distributed.is_main()
        self.began = time.perf_counter() - seconds
        evaluations = [record for record in run.metrics() if "rankme" in record] if start else []
        self.untrained: dict[str, float] = evaluations[0] if evaluations else {}
        self.best = max((record.get("knn", -1.0) for record in evaluations), default=-1.0)
        self.writer = self._tensorboard()
        self.bar = tqdm(
            total=config.steps, initial=start, unit="step", disable=not self.main, dynamic_ncols=True, smoothing=0.1
        )
        self.window = (start, time.perf_counter())
        if start == 0 and config.eval_every:
            self.evaluate(0)

    def _tensorboard(self) -> Any:
        if not self.main or importlib.util.find_spec("tensorboard") is None:
            return None
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import, and is optional

        return SummaryWriter(str(self.run.path / "tensorboard"))

    def say(self, text: str) -> None:
        if self.main:
            self.bar.write(text)

    def headline(self, device: str) -> None:
        weights = sum(parameter.numel() for parameter in self.objective.parameters() if parameter.requires_grad)
        self.say(
            f"{self.config.name}: {len(self.index):,} images of {self.images.name}, {weights / 1e6:.2f} M trained "
            f"parameters, batch {self.config.batch_size}, {self.config.steps:,} steps, {device}, into {self.run.path}"
        )

    def step(self, done: int, losses: dict[str, Tensor], rate: float) -> None:
        """Count a step; every `log_every` write its figures, every `eval_every` judge the encoder."""
        self.bar.update()
        if done % self.config.log_every == 0 or done == self.config.steps:
            terms = torch.stack([value.detach().float() for value in losses.values()])
            values = (distributed.all_sum(terms) / distributed.world_size()).tolist()
            record = dict(zip(losses, values, strict=True))
            if not math.isfinite(record["loss"]):
                raise InputError(
                    f"the loss is {record['loss']} at step {done}; the last checkpoint is from before it: lower "
                    "--optim.lr or set --optim.clip 1"
                )
            before, since = self.window
            speed = (done - before) * self.config.batch_size / (time.perf_counter() - since)
            self.bar.set_postfix_str(
                f"loss {record['loss']:.4f}, {speed:.0f} img/s, spread {record.get('spread', math.nan):.4f}",
                refresh=False,
            )
            self.write({"step": done, **record, "lr": rate, "images_per_s": round(speed, 1)})
            self.window = (done, time.perf_counter())
        if self.config.eval_every and (done % self.config.eval_every == 0 or done == self.config.steps):
            self.evaluate(done)

    def evaluate(self, done: int) -> None:
        """Judge the headline encoder, keep the best, and say so when it goes wrong."""
        began = time.perf_counter()
        if self.main:
            encoder = next(iter(self.objective.encoders().values()))
            result = online(encoder, self.images, self.index, self.held_out)
            self.untrained = self.untrained or result
            score = f"kNN {result['knn']:.1f} (untrained {self.untrained['knn']:.1f}), " if "knn" in result else ""
            self.say(f"step {done}: {score}RankMe {result['rankme']:.1f}, spread {result['spread']:.4f}")
            worry = diagnose(result, self.untrained, encoder.backbone.dim) if done else None
            if worry:
                self.say(f"warning: {worry}")
            if result.get("knn", -1.0) > self.best:
                self.best = result["knn"]
                self.run.save("best", pack(self.objective), step=done, knn=self.best, chosen_with_labels=True)
            self.write({"step": done, **result})
        distributed.barrier()
        before, since = self.window
        self.window = (before, since + time.perf_counter() - began)  # the evaluation is not part of images/s

    def write(self, record: dict[str, Any]) -> None:
        """Write a record to metrics.jsonl and TensorBoard."""
        if not self.main:
            return
        self.run.log(record)
        if self.writer is not None:
            for name, value in record.items():
                if name != "step":
                    self.writer.add_scalar(name, value, record["step"])

    def save(self, done: int, optimizer: torch.optim.Optimizer) -> None:
        """Write the last checkpoint."""
        if self.main:
            seconds = time.perf_counter() - self.began
            self.run.save("last", pack(self.objective, optimizer), step=done, seconds=seconds)

    def close(self) -> None:
        """End the bar and TensorBoard."""
        self.bar.close()
        if self.writer is not None:
            self.writer.close()
