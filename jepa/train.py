"""The training loop. It runs as `jepa train demo`, as `python jepa/train.py demo`, and under torchrun."""

from __future__ import annotations

if __name__ == "__main__":  # run as a file: Python put jepa/ first on the path instead of the folder that contains it
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)

    from jepa.threads import adapt_threads

    adapt_threads()

import dataclasses
import math
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from jepa import distributed
from jepa.checkpoints import is_finite, load_tensors, to_tensors
from jepa.config import Config, InputError, LabeledImages
from jepa.config.arguments import TrainArguments, expand_home, parse_train_arguments
from jepa.config.errors import Interrupted, exit_with, handle_stop
from jepa.config.hints import command
from jepa.config.serialization import flat, from_dict, to_dict
from jepa.config.user_code import loaded_code
from jepa.data import CACHE, BrokenFileLog, ImageDataset, Loader, open_dataset, split_holdout
from jepa.data.inspect import summarize_source
from jepa.data.sources.base import source_hash
from jepa.data.stats import measure_statistics
from jepa.evaluation.online import evaluate_online
from jepa.initialization import initialize, lr_scales
from jepa.interop import read_config_of
from jepa.logger import TrainingLogger
from jepa.objectives import Objective
from jepa.optim import build_optimizer, learning_rate, progress, set_schedule
from jepa.rng import Rng, seed_torch
from jepa.runs import Run, changed_setting, fresh_objective

__all__ = ["main", "run_training", "train"]


class TrainingData(NamedTuple):
    """The images, and the indices of those to train on and of those held out for the online evaluation."""

    dataset: ImageDataset
    indices: Tensor
    held_out: Tensor


def train(config: Config, path: str | Path, resume: bool = False) -> Run:
    """Train an experiment into the run folder `path`, or resume the run in it.

    Raises `InputError` if the config does not fit the data or the device, if the folder is in use or holds another run,
    or if training diverges. Raises `Interrupted` after a signal, or if the images cannot be loaded any more, when
    everything has been saved.
    """
    config.objective.check_training()
    from_dict(Config, to_dict(config))  # settings that could not be read from config.json are rejected before training
    distributed.keep_freed_memory()
    run = Run(path)
    device = distributed.pick_device(config.device)
    with distributed.session(device), run.lock() if distributed.is_main() else nullcontext():
        if resume and run.exists:
            run.require_checkpoint_of_metrics()
        else:
            run.check_unused()
        with distributed.main_first():
            dataset = open_dataset(config.data, cache=run.path.parent / CACHE.name)
            assert dataset is not None  # a source without a training split raises an error
            config = dataclasses.replace(
                config,
                data=measure_statistics(config.data, dataset),
                objective=config.objective.with_classes(dataset.classes if dataset.labels is not None else ()),
                labels_seen=labels_seen(config, run if resume and run.exists else None, dataset),
            )
        held_out = config.data.holdout if dataset.labels is not None else 0.0
        objective = fresh_objective(config).to(device)
        indices, held_out_indices = split_holdout(len(dataset), held_out)
        data = TrainingData(dataset, objective.training_indices(dataset.labels, indices), held_out_indices)
        loader = Loader(
            dataset=dataset,
            indices=data.indices,
            batch_size=config.batch_size,
            seed=config.seed,
            device=device,
            num_microbatches=config.accumulate,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            workers=config.data.workers,
            labels=config.objective.uses_labels,
        )
        scales = lr_scales(objective, config.optim.layer_decay)
        distributed.sync_batchnorm(objective)
        optimizer = build_optimizer(objective, config.optim, scales)
        step, seconds = start_run(run, config, resume, objective=objective, optimizer=optimizer, dataset=dataset)
        if step >= config.steps:
            return run
        origin = initialize(objective, config, dataset, data.indices) if step == 0 else None
        compiled: nn.Module = torch.compile(objective) if config.compile else objective  # type: ignore[assignment]
        precision = distributed.pick_precision(config.precision, device)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

        logger = TrainingLogger(config, run, objective, step, seconds)
        with closing(logger), distributed.wrapped(compiled) as model, catch_signals() as received_signal:
            logger.start(f"{len(data.indices):,} images of {dataset.name}", f"{device} {precision}")
            for note in (*dataset.notes, *filter(None, [origin])):
                logger.say(f"note: {note}")
            max_broken = config.data.max_broken / distributed.world_size()
            broken_files = BrokenFileLog(run.path / "broken.txt", dataset, max_broken, logger.say)
            if step == 0 and config.eval_every:
                evaluate(step, objective, data, logger)
            batches = logger.timed(loader.steps(range(step, config.steps), broken_files))
            objective.train()
            while step < config.steps:
                try:
                    microbatches = next(batches)
                except Exception as error:  # of any type: the state is still that of the last finished step
                    save(step, objective, optimizer, data, logger)
                    raise stopped_loading(error, step, config.steps, received_signal()) from error
                lr = set_schedule(optimizer, step, config.steps, config.optim)
                seed_torch(config.seed, step, distributed.rank())
                losses: list[dict[str, Tensor]] = []
                for number, batch in enumerate(microbatches, 1):
                    inputs = objective.sample(batch, Rng(config.seed, step, batch.positions))
                    with distributed.without_sync(model, skip=number < len(microbatches)):
                        with autocast:
                            terms = model(inputs)
                        (terms["loss"] / len(microbatches)).backward()
                    losses.append({name: term.detach() for name, term in terms.items()})
                if config.optim.clip is not None:
                    nn.utils.clip_grad_norm_(objective.parameters(), config.optim.clip)
                optimizer.step()
                optimizer.zero_grad()
                objective.after_step(progress(step, config.steps))
                step += 1

                stop = distributed.any_true(received_signal(), device)
                logger.advance()
                if is_due(step, config.log_every, config.steps):
                    logger.log_losses(step, average_losses(losses, step, logger), lr)
                if config.eval_every and is_due(step, config.eval_every, config.steps):
                    evaluate(step, objective, data, logger)
                if config.keep_every and step % config.keep_every == 0:
                    keep(step, objective, data, logger)
                if is_due(step, config.save_every, config.steps) or stop:
                    save(step, objective, optimizer, data, logger)
                if stop and step < config.steps:
                    raise Interrupted(f"stopped at step {step} of {config.steps}", received_signal() or signal.SIGTERM)
    return run


def labels_seen(config: Config, resumed: Run | None, dataset: ImageDataset) -> tuple[LabeledImages, ...]:
    """Return the images with whose labels the weights were trained: before `config.init`, and those of this run."""
    if resumed is not None:
        before = resumed.config.labels_seen
    else:
        before = () if config.init is None else read_config_of(config.init).labels_seen
    own = LabeledImages(dataset.signature, source_hash(config.data.source), config.data.holdout)
    return tuple(dict.fromkeys((*before, *([own] if config.objective.uses_labels else []))))


def start_run(
    run: Run,
    config: Config,
    resume: bool,
    *,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    dataset: ImageDataset,
) -> tuple[int, float]:
    """Create the run folder, or restore the state of the run in it; return its step and its seconds of training."""
    step, seconds = 0, 0.0
    if resume and run.exists:
        before = run.config
        check_resumable(before, config, run.path)
    if resume and run.checkpoint().is_file():
        tensors, metadata = run.load()
        load_tensors(tensors, objective, optimizer, where=run.checkpoint())
        step, seconds = int(metadata["step"]), float(metadata["seconds"])
        distributed.barrier()  # all ranks have finished reading
        if distributed.is_main():
            tell_changes(run, before, config, metadata, dataset.signature)
        if step >= config.steps:
            return step, seconds
        if distributed.is_main():
            run.forget_checkpoints_after(step)
            run.forget_after(step)
    elif distributed.is_main():
        if resume and not run.exists:
            print(f"jepa: {run.path} holds no run to resume, so a new one is started", file=sys.stderr)
        if kept := [path.name for path in run.set_aside()]:
            names = " and ".join(filter(None, [", ".join(kept[:-1]), kept[-1]]))
            print(
                f"jepa: {run.path} has no checkpoint to go on from, so it is trained from the start; {names} "
                f"{'keeps' if len(kept) == 1 else 'keep'} what it had",
                file=sys.stderr,
            )
    if distributed.is_main():
        Run.create(run.path, config)
    return step, seconds


def tell_changes(run: Run, before: Config, now: Config, metadata: dict[str, Any], images: str) -> None:
    """Print what is different for a run that is resumed from a checkpoint with these metadata."""
    step = int(metadata["step"])
    if step >= now.steps:
        messages = [f"{run.path} is already complete at step {step:,}; a larger --steps continues it"]
        if warning := run.warning():
            messages.append(f"warning: {warning}")
    else:
        messages = [changed_schedule(step, before, now)] if before.steps != now.steps else []
        if metadata["images"] != images:
            messages.append("warning: the images have changed since the checkpoint, so the training order will differ")
        if run.metrics_changed(metadata):
            messages.append("warning: metrics.jsonl has changed since the checkpoint; its valid records are kept")
    for message in messages:
        print(f"jepa: {message}", file=sys.stderr)


def changed_schedule(step: int, before: Config, now: Config) -> str:
    """Describe what a different number of steps changes, for a run that is resumed at `step`."""
    old = learning_rate(min(step, before.steps - 1), before.steps, before.optim)
    new = learning_rate(step, now.steps, now.optim)
    return (
        f"the run has {now.steps} steps instead of {before.steps}, and its schedules are stretched to that length: the "
        f"learning rate goes from {old:.1e} to {new:.1e} at step {step + 1}, and weight decay and momentum change too; "
        f"for the result of a single run of {now.steps} steps, train it from the start"
    )


def check_resumable(before: Config, now: Config, path: str | Path) -> None:
    """Raise an `InputError` naming the first changed setting that prevents resuming the run in `path`."""
    if name := changed_setting(before, now):
        raise InputError(
            f"{path} was trained with {name} = {flat(before).get(name)} and cannot be resumed with "
            f"{flat(now).get(name)}; leave the setting as it is, or start a new run with --run DIR"
        )


def is_due(step: int, every: int, steps: int) -> bool:
    """Return whether a periodic action is due after this step; it always is after the last one."""
    return step % every == 0 or step == steps


def average_losses(losses: Sequence[dict[str, Tensor]], step: int, logger: TrainingLogger) -> dict[str, float]:
    """Average the losses of all microbatches and processes. Raises `InputError` if the loss is not finite."""
    terms = torch.stack([torch.stack([term.float() for term in part.values()]) for part in losses]).mean(0)
    values = (distributed.all_sum(terms) / distributed.world_size()).tolist()
    averages = dict(zip(losses[0], values, strict=True))
    if not math.isfinite(averages["loss"]):
        raise diverged(f"the loss is {averages['loss']}", step, logger)
    return averages


def diverged(what: str, step: int, logger: TrainingLogger) -> InputError:
    """Mark the run as diverged in metrics.jsonl, and return the error to raise."""
    text = f"training has diverged: {what} at step {step}"
    logger.write({"step": step, "warning": text})
    return InputError(f"{text}; lower --optim.lr or set --optim.clip 1, and train into another folder with --run DIR")


def check_finite(step: int, objective: Objective, logger: TrainingLogger, moments: Sequence[Tensor] = ()) -> None:
    """Raise `InputError` if weights or moments are NaN or infinite, so that they are neither evaluated nor saved."""
    tensors = [*objective.state_dict().values(), *moments]
    if not all(is_finite(tensor) for tensor in tensors):
        raise diverged("the weights are NaN or infinite", step, logger)


def save(
    step: int, objective: Objective, optimizer: torch.optim.Optimizer, data: TrainingData, logger: TrainingLogger
) -> None:
    """Save the last checkpoint."""
    moments = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    check_finite(step, objective, logger, moments)
    if distributed.is_main():
        logger.save("last", step, to_tensors(objective, optimizer), data.dataset.signature)


def keep(step: int, objective: Objective, data: TrainingData, logger: TrainingLogger) -> None:
    """Save the weights in a checkpoint that later ones do not replace."""
    check_finite(step, objective, logger)
    if distributed.is_main():
        logger.save(Run.kept_name(step), step, to_tensors(objective), data.dataset.signature)


def stopped_loading(error: Exception, step: int, steps: int, received_signal: int) -> BaseException:
    """Return the error to raise after the images of the next step could not be loaded, and the run has been saved."""
    if received_signal:  # it has also ended the workers
        return Interrupted(f"stopped at step {step} of {steps}", received_signal)
    if isinstance(error, InputError):
        return InputError(f"{error}; the run is saved at step {step}, --resume continues it")
    return error


def evaluate(step: int, objective: Objective, data: TrainingData, logger: TrainingLogger) -> None:
    """Evaluate the main encoder and log its scores.

    The checkpoint is saved as `best` if its kNN accuracy is above that of `best` by more than the standard error.
    """
    check_finite(step, objective, logger)
    if distributed.is_main():
        encoder = objective.main_encoder
        precision = distributed.pick_precision(logger.config.precision, encoder.device)
        with logger.paused():
            scores = evaluate_online(encoder, *data, precision)
        best = None
        for record in logger.run.metrics():
            best = better(record, best)
        logger.log_scores(step, scores)
        if better(scores, best) is scores:
            chosen = {"knn": scores["knn"], "chosen_with_labels": True}
            logger.save("best", step, to_tensors(objective), data.dataset.signature, **chosen)
    distributed.barrier()


def better(scores: dict[str, float], best: dict[str, float] | None) -> dict[str, float] | None:
    """Return `scores` if their kNN accuracy exceeds that of `best` by more than its standard error, else `best`."""
    if "knn" not in scores:
        return best
    above = best is None or scores["knn"] > best["knn"] + scores.get("knn_error", 0.0)
    return scores if above else best


@contextmanager
def catch_signals() -> Iterator[Callable[[], int]]:
    """Catch signals that ask to stop; yield a function that returns the number of the one that was received, or 0."""
    received = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if received:  # the second signal ends the program at once
            raise KeyboardInterrupt
        received = number
        if number == signal.SIGINT and distributed.is_main():  # not by print(), which may be what was interrupted
            os.write(2, b"\njepa: stopping after this step; Ctrl-C again stops at once, without saving\n")

    with handle_stop(handle):
        yield lambda: received


def run_training(given: TrainArguments, arguments: Sequence[str]) -> int:
    """Train a new run or resume one, as requested by the arguments of the command line; return the exit code."""
    run = Run(given.path)
    try:
        train(given.config, run.path, given.run.resume)
    except Interrupted as stop:
        raise Interrupted(f"{stop}; {how_to_continue(arguments)}", stop.signal_number) from stop
    except KeyboardInterrupt as stop:
        text = f"interrupted without saving; {how_to_continue(arguments)}"
        raise Interrupted(text, signal.SIGINT) from stop
    if os.environ.get("RANK", "0") == "0":
        code = ["--code", loaded_code(given.config.code).path] if given.config.code else []
        print(f"run saved to {run.path}; evaluate it with: {command('evaluate', run.path, *code)}")
    return 0


def how_to_continue(arguments: Sequence[str]) -> str:
    """Return the command that continues an interrupted run."""
    words = [*(argument for argument in arguments if argument != "--resume"), "--resume"]
    if "RANK" in os.environ:
        return f"continue with: the same torchrun command, with the arguments {shlex.join(words)}"
    return f"continue with: {command('train', *words)}"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Train with the arguments of `jepa train`, by default those of the process, and exit."""
    given = expand_home(sys.argv[1:] if arguments is None else arguments)
    exit_with(lambda: run_training(parse_train_arguments(given, summarize_source, read_config_of), given))


if __name__ == "__main__":
    main()
