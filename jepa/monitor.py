"""What the loop tells: the bar, metrics.jsonl, TensorBoard, online evaluations, warnings and checkpoints."""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from jepa import distributed
from jepa.config import Config, InputError
from jepa.data import Batch, Images
from jepa.evaluation import online
from jepa.objectives import Objective
from jepa.runs import Run, pack

__all__ = ["Monitor", "diagnose"]

WORTH_SAYING = 0.05  # share of the time spent waiting for data that the bar shows


def diagnose(now: dict[str, float], untrained: dict[str, float], dim: int) -> str | None:
    """Say in plain words what an online evaluation gives reason to worry about, and what to try; None where nothing.

    `now` and `untrained` hold `spread`, `rankme` and, with labels, `knn` of the encoder at a step and before training.
    """
    advice = (
        "try --objective.variance 0.1 --objective.covariance 0.1, a lower --optim.lr, "
        "or a longer --objective.ema-half-life"
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


class Monitor:
    """Watches one run; `split` are the images trained on and those held out, `seconds` the time spent before."""

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
        self.waited = 0.0  # seconds of this window in which there was no batch

    def _tensorboard(self) -> Any:
        if not self.main or importlib.util.find_spec("tensorboard") is None:
            return None
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import, and is optional

        with self.run.writing():
            return SummaryWriter(str(self.run.path / "tensorboard"))

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self.main:
            self.bar.write(text, file=sys.stderr)

    def begin(self, device: str) -> None:
        """Print what is trained on what, and judge the encoder before training."""
        weights = sum(parameter.numel() for parameter in self.objective.parameters() if parameter.requires_grad)
        self.say(
            f"{self.config.name}: {len(self.index):,} images of {self.images.name}, {weights / 1e6:.2f} M trained "
            f"parameters, batch {self.config.batch_size}, {self.config.steps:,} steps, {device}, into {self.run.path}"
        )
        self.say(self.objective.describe())
        if self.window[0] == 0 and self.config.eval_every:
            self.evaluate(0)

    def waits(self, batches: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """Pass batches on, and count the time that training waits for them."""
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def step(self, done: int, parts: list[dict[str, Tensor]], rate: float) -> None:
        """Count a step; every `log_every` write the figures of its parts, every `eval_every` judge the encoder."""
        self.bar.update()
        if done % self.config.log_every == 0 or done == self.config.steps:
            terms = torch.stack([torch.stack([term.float() for term in part.values()]) for part in parts]).mean(0)
            values = (distributed.all_sum(terms) / distributed.world_size()).tolist()
            record = dict(zip(parts[0], values, strict=True))
            if not math.isfinite(record["loss"]):
                raise InputError(
                    f"the loss is {record['loss']} at step {done}; the last checkpoint is from before it: lower "
                    "--optim.lr or set --optim.clip 1"
                )
            before, since = self.window
            elapsed = time.perf_counter() - since
            speed, waited = (done - before) * self.config.batch_size / elapsed, self.waited / elapsed
            waiting = f", {100 * waited:.0f} % of it waiting for data" if waited > WORTH_SAYING else ""
            self.bar.set_postfix_str(
                f"loss {record['loss']:.4f}, {speed:.0f} img/s, spread {record.get('spread', math.nan):.4f}{waiting}",
                refresh=False,
            )
            speeds = {"images_per_s": round(speed, 1), "data_wait": round(waited, 4)}
            self.write({"step": done, **record, "lr": rate, **speeds})
            self.window, self.waited = (done, time.perf_counter()), 0.0
        if self.config.eval_every and (done % self.config.eval_every == 0 or done == self.config.steps):
            self.evaluate(done)

    def evaluate(self, done: int) -> None:
        """Judge the headline encoder, keep the best, and say so when it goes wrong."""
        self.refuse_nan(done)
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

    def refuse_nan(self, done: int) -> None:
        """Stop rather than judge or save weights that are not numbers."""
        floats = [tensor for tensor in self.objective.state_dict().values() if tensor.is_floating_point()]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in floats):
            raise InputError(
                f"the weights are no numbers at step {done}; the last checkpoint is from before it: lower --optim.lr "
                "or set --optim.clip 1"
            )

    def write(self, record: dict[str, Any]) -> None:
        """Write a record to metrics.jsonl and TensorBoard."""
        if not self.main:
            return
        self.run.log(record)
        if self.writer is not None:
            with self.run.writing():
                for name in record.keys() - {"step"}:
                    self.writer.add_scalar(name, record[name], record["step"])

    def save(self, done: int, optimizer: torch.optim.Optimizer) -> None:
        """Write the last checkpoint."""
        self.refuse_nan(done)
        if self.main:
            seconds = time.perf_counter() - self.began
            self.run.save(
                "last", pack(self.objective, optimizer), step=done, seconds=seconds, images=self.images.signature
            )

    def close(self) -> None:
        """End the bar and TensorBoard."""
        self.bar.close()
        if self.writer is not None:
            with suppress(OSError):  # a full disk has been reported by then; the figures are in metrics.jsonl
                self.writer.close()
