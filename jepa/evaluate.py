"""Judge a run folder: the work behind `jepa evaluate`."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import torch

from jepa import __version__
from jepa.allocator import keep_freed_memory
from jepa.config import DataConfig, InputError
from jepa.config_json import to_dict
from jepa.data import CACHE, auto_workers, open_dataset, split_holdout
from jepa.distributed import pick_device
from jepa.evaluation import (
    HEADLINE,
    FeatureStore,
    descent,
    descent_table,
    foresees,
    foresight,
    foresight_figure,
    foresight_table,
    judge,
    table,
)
from jepa.runs import Run, fresh_objective, unpack

__all__ = ["evaluate", "report"]

TEST_SHARE = 0.2  # of the training images, where a source has no test split
FAIRER = {"saccade-demo": "saccade-cifar10", "energy-demo": "energy-cifar10"}  # than the sample, by recipe


def evaluate(path: str | Path, source: str | None = None) -> dict[str, Any]:
    """Score the last checkpoint of a run, from the train to the test split of its data, and write evaluation.json.

    The trained encoders (target and context) stand beside the same encoder with the weights it started from, and raw
    pixels. Scores are percentages of tokens averaged to one vector. Where a source has no test split, a fifth of the
    training images (at most 2,000), seen in training without their labels, takes its place, and the result says so.
    """
    began = time.perf_counter()
    keep_freed_memory()
    run = Run.open(path)
    config = run.config
    data = config.data
    if source is not None:  # whatever sizes it has, the encoder gets its own
        data = dataclasses.replace(data, source=source, canvas=data.canvas or data.size)
    tensors, facts = run.load()
    objective = fresh_objective(config)
    device = pick_device("auto")
    untrained = next(iter(objective.encoders().values()))
    encoders = {"untrained": copy.deepcopy(untrained).to(device)}
    unpack(tensors, objective, None, run.checkpoint())
    names = ["trained", *list(objective.encoders())[1:]]
    trained = zip(names, objective.encoders().values(), strict=True)
    encoders = {name: encoder.to(device) for name, encoder in trained} | encoders

    train, test, split = _splits(data, run.path.parent / CACHE.name)
    store = FeatureStore(run.path / "features", json.dumps([__version__, to_dict(config)["backbone"]]))
    rows = judge(encoders, train, test, store, auto_workers(device) if data.workers is None else data.workers)
    result = rows | {
        "name": config.name,
        "checkpoint": "last",
        "step": facts["step"],
        "steps": config.steps,
        "train_seconds": round(facts["seconds"], 1),
        "evaluation_seconds": round(time.perf_counter() - began, 1),
        "data": {"source": data.source, "train": len(train[1]), "test": len(test[1]), "split": split},
        "protocol": {
            "pixels": "at most 32x32, of at most 50,000 training images",
            "pooling": "tokens averaged; linear_last4: the last four layers averaged and concatenated",
            "knn": "k 20, cosine of centred features, weights exp(s / 0.07)",
            "linear": "logistic regression on standardised features, L2 chosen on images held out of train",
            "linear_10pc, linear_1pc": "the same, fitted on 10 % and 1 % of the labels of every class",
            "dimension": "correlation dimension of at most 10,000 scored images, with its standard error",
        },
        "version": __version__,
    }
    if energy := descent(encoders["trained"], *test):
        result["energy"] = energy
    figure = run.path / "saccades.png"
    figure.unlink(missing_ok=True)  # of the evaluation before
    if seen := foresight(objective, *test):
        result["saccades"] = seen
        if len(seen["lengths"]) > 1 and importlib.util.find_spec("matplotlib"):
            foresight_figure(seen, figure)
    left_out = []
    if "linear" not in rows["trained"]:
        missing = " and ".join(dict.fromkeys(each.name for each, _ in (train, test) if each.labels is None))
        why = f"labels: {missing} has none" if missing else f"two classes: {train[0].name} has one"
        left_out.append(f"kNN and linear probes, which need {why}")
    elif "knn" not in rows["trained"]:
        left_out.append(f"kNN, which needs {HEADLINE} images to fit on: there are {len(train[1])}")
    if foresees(objective) and not seen:
        left_out.append("eye movements, which need 32 images to score on")
    if left_out:
        result["left_out"] = "; ".join(left_out)
    broken = {id(images): images for images, _ in (train, test)}.values()
    if listed := [f"{each.files.name(row)}: {why}" for each in broken for row, why in sorted(each.unreadable.items())]:
        result["unreadable"] = listed
    run.write_json("evaluation.json", result)
    return result


def _splits(data: DataConfig, cache: Path) -> tuple[Any, Any, str]:
    """Return the images and indices to fit and to score on, and how they were split."""
    train, test = open_dataset(data, "train", cache), open_dataset(data, "test", cache)
    assert train is not None
    if test is not None:
        return (train, torch.arange(len(train))), (test, torch.arange(len(test))), "train to test"
    fit, score = split_holdout(len(train), TEST_SHARE)
    if len(score) < 2:
        raise InputError(f"{data.source} has {len(train)} images and no test split: too few to fit and to score on")
    return (train, fit), (train, score), f"no test split: {len(score)} training images are scored instead"


def report(result: dict[str, Any], path: str | Path) -> str:
    """Lay a result out for the terminal."""
    data = result["data"]
    lines = [
        f"{data['source']}: fitted on {data['train']:,}, scored on {data['test']:,} images, percent ({data['split']})",
        "",
        table(result),
        "",
    ]
    if energy := result.get("energy"):
        lines += [
            f"Energy before every step and after the last, the mean of {energy['images']} images; it falls at every "
            f"step for {energy['falling']:g} % of them:",
            descent_table(energy),
            "",
        ]
    if seen := result.get("saccades"):
        lines += [
            f"Foreseeing the view after an eye movement, found among {seen['fixations']} fixations, of "
            f"{seen['images']} images:",
            foresight_table(seen),
            "",
        ]
    if "left_out" in result:
        lines.append(f"Left out: {result['left_out']}.")
    if listed := result.get("unreadable"):
        lines.append(
            f"Left out: {len(listed)} image{'s' * (len(listed) > 1)} that cannot be read (evaluation.json lists them), "
            f"the first {listed[0]}."
        )
    lines.append(
        f"Step {result['step']:,} of {result['steps']:,}, trained in {result['train_seconds']:.0f} s, evaluated in "
        f"{result['evaluation_seconds']:.0f} s. Everything lies in {path}."
    )
    if data["source"] == "sample":
        lines.append(
            "Raw pixels are strong on these small, centred images, as is whatever keeps positions; the fairer test is "
            f"CIFAR-10:\n    jepa train {FAIRER.get(result['name'], 'ijepa-cifar10')}"
        )
    return "\n".join(lines)
