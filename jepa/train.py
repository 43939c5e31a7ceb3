"""The training loop. Also runs as a file, `python jepa/train.py demo`, and under torchrun."""

from __future__ import annotations

if __name__ == "__main__":  # run as a file: Python put jepa/ first on the path, where the package's parent belongs
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from jepa.cli import main

    main(["train", *sys.argv[1:]])

import dataclasses
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from jepa import distributed
from jepa.allocator import keep_freed_memory
from jepa.config import Config, DataConfig, InputError
from jepa.config_json import flat
from jepa.data import CACHE, Faults, Images, Loader, open_dataset, progress, split_holdout
from jepa.monitor import Monitor
from jepa.objectives import Objective
from jepa.optim import build_optimizer, set_schedule
from jepa.rng import Rng, seed_torch
from jepa.runs import Run, fresh_objective, unpack

__all__ = ["Interrupted", "check_resumable", "train"]

MEASURED = 2000  # images from which mean and std are taken
ADJUSTABLE = frozenset(
    {"name", "steps", "device", "precision", "compile", "accumulate", "log_every", "eval_every", "save_every"}
    | {"data.source", "data.cache_gb", "data.workers", "data.max_broken"}
)
"""What may change when a run is resumed; anything else would make it another run."""


def train(config: Config, path: str | Path, resume: bool = False) -> Run:
    """Train an experiment into the run folder `path`, or go on with the one that lies there.

    Raises `InputError` where the config does not fit the data or the device, and `Interrupted` after Ctrl-C or SIGTERM,
    once everything is saved.
    """
    keep_freed_memory()
    device = distributed.pick_device(config.device)
    with distributed.session(device), _signals() as stopped:
        with distributed.main_first():
            images = open_dataset(config.data, cache=Path(path).parent / CACHE.name)
            assert images is not None  # a source without a training split is refused when it is opened
            config = dataclasses.replace(config, data=measured(config.data, images))
        index, held_out = split_holdout(len(images), config.data.holdout)
        world = distributed.world_size()
        loader = Loader(
            images,
            index,
            config.batch_size,
            config.seed,
            device,
            config.accumulate,
            distributed.rank(),
            world,
            config.data.workers,
        )

        objective = fresh_objective(config).to(device)
        distributed.sync_batchnorm(objective)
        optimizer = build_optimizer(objective, config.optim)
        model = distributed.wrap(torch.compile(objective) if config.compile else objective)  # type: ignore[arg-type]
        precision = config.precision if config.precision != "auto" else "bf16" if device.type == "cuda" else "fp32"
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

        run, start, seconds, before = _open(config, path, objective, optimizer, resume)
        steps = range(start, config.steps)
        with closing(Monitor(config, run, objective, images, (index, held_out), start, seconds)) as monitor:
            faults = Faults(run.path / "broken.txt", images, config.data.max_broken / world, monitor.say)
            monitor.begin(f"{device} {precision}" + (f" x {world}" if world > 1 else ""))
            if before not in (None, images.signature):
                monitor.say("warning: the images have changed since the last checkpoint; this epoch's order is another")
            objective.train()
            for step, parts in zip(steps, monitor.waits(loader.steps(steps, faults)), strict=True):
                rate = set_schedule(optimizer, step, config.steps, config.optim)
                seed_torch(config.seed, step, distributed.rank())
                terms: list[dict[str, Tensor]] = []
                for number, batch in enumerate(parts, 1):
                    inputs = objective.sample(batch, Rng(config.seed, step, batch.rows))
                    with distributed.without_sync(model, skip=number < len(parts)):
                        with autocast:
                            losses = model(inputs)
                        (losses["loss"] / len(parts)).backward()
                    terms.append({name: term.detach() for name, term in losses.items()})
                if config.optim.clip is not None:
                    torch.nn.utils.clip_grad_norm_(objective.parameters(), config.optim.clip)
                optimizer.step()
                optimizer.zero_grad()
                objective.after_step((step + 1) / config.steps)

                done = step + 1
                stop = distributed.any_true(stopped(), device)
                monitor.step(done, terms, rate)
                if done % config.save_every == 0 or done == config.steps or stop:
                    monitor.save(done, optimizer)
                if stop and done < config.steps:
                    said = f"stopped at step {done} of {config.steps}; continue with --resume"
                    raise Interrupted(said, stopped() or signal.SIGTERM)
    return run


class Interrupted(Exception):  # noqa: N818  (as KeyboardInterrupt)
    """The run was stopped by a signal and is saved."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


def measured(data: DataConfig, images: Images) -> DataConfig:
    """Fill in mean and std of each channel, measured on about 2,000 images, where the config gives none."""
    if data.mean is not None and data.std is not None:
        return data
    chosen = torch.arange(0, len(images), max(1, len(images) // MEASURED))
    totals = torch.zeros(2, data.channels, dtype=torch.float64)
    count = 0
    for part in progress(chosen.split(50), "measuring mean and std"):
        read = images.read(part)
        pixels = read.pixels[read.readable].double() / 255
        totals += torch.stack([pixels.sum((0, 2, 3)), pixels.square().sum((0, 2, 3))])
        count += pixels.numel() // data.channels
    if not count:
        raise InputError(f"none of {len(chosen)} images of {images.name} can be read; 'jepa data' says why")
    mean = totals[0] / count
    std = (totals[1] / count - mean.square()).clamp(min=1e-6).sqrt()
    rounded = [tuple(round(value, 4) for value in values.tolist()) for values in (mean, std)]
    return dataclasses.replace(data, mean=data.mean or rounded[0], std=data.std or rounded[1])


def _open(
    config: Config, path: str | Path, objective: Objective, optimizer: torch.optim.Optimizer, resume: bool
) -> tuple[Run, int, float, str | None]:
    """Make the run folder, or put the state of the one that is there back; say how far it is."""
    run, start, seconds, before = Run(path), 0, 0.0, None
    if resume and run.exists:
        check_resumable(run.config, config, path)
    if resume and run.checkpoint().is_file():
        tensors, facts = run.load()
        unpack(tensors, objective, optimizer, run.checkpoint())
        start, seconds, before = int(facts["step"]), float(facts["seconds"]), facts["images"]
        if start >= config.steps:
            raise InputError(f"{path} is complete at step {start}; give --steps above that to train on")
    distributed.barrier()  # all have read: the first process may write
    if distributed.is_main():
        run = Run.create(path, config)
        run.forget_after(start or -1)
    return run, start, seconds, before


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
