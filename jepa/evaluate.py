"""Judge a run folder: the work behind `jepa evaluate`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jepa import __version__
from jepa.allocator import keep_freed_memory
from jepa.evaluation import HEADLINE, descent_table, foresees, foresight_table, judge, table
from jepa.subject import Subject

__all__ = ["as_text", "evaluate", "judge_subject"]

FAIRER = {"saccade-demo": "saccade-cifar10", "energy-demo": "energy-cifar10"}  # than the sample, by recipe


def evaluate(path: str | Path, source: str | None = None) -> dict[str, Any]:
    """Score the last checkpoint of a run, from the train to the test split of its data, and write evaluation.json.

    The trained encoders (target and context) stand beside the same encoder with the weights it started from, and raw
    pixels. Scores are percentages of tokens averaged to one vector. Where a source has no test split, a fifth of the
    training images (at most 2,000), seen in training without their labels, takes its place, and the result says so.
    """
    return judge_subject(Subject.open(path, source))


def judge_subject(subject: Subject, baselines: Callable[[Subject], dict[str, Any]] | None = None) -> dict[str, Any]:
    """Do the work of `evaluate` for an opened run, with rows of further baselines, where they are asked for."""
    began = time.perf_counter()
    keep_freed_memory()
    config, train, test = subject.config, subject.train, subject.test
    rows = judge(subject.encoders, train, test, subject.store, subject.workers)
    if baselines:
        rows |= baselines(subject)
    result = rows | {
        "name": config.name,
        "checkpoint": "last",
        "step": subject.facts["step"],
        "steps": config.steps,
        "train_seconds": round(subject.facts["seconds"], 1),
        "evaluation_seconds": round(time.perf_counter() - began, 1),
        "data": {"source": subject.data.source, "train": len(train[1]), "test": len(test[1]), "split": subject.split},
        "protocol": {
            "raw pixels": "at most 32x32, of at most 50,000 training images",
            "pooling": "tokens averaged",
            "last 4": "the last four layers, each averaged, concatenated",
            "kNN": "k 20, cosine of centred features, weights exp(s / 0.07)",
            "linear": "logistic regression on standardised features, L2 chosen on images held out of train",
            "10 % and 1 % labels": "the same, fitted on so many labels of every class",
            "dimension": "correlation dimension of at most 10,000 scored images, with its error",
        },
        "version": __version__,
    }
    if energy := subject.energy:
        result["energy"] = energy
    if seen := subject.foresight:
        result["saccades"] = seen
    if left_out := _left_out(subject, rows, baselines is not None):
        result["left_out"] = left_out
    broken = {id(images): images for images, _ in (train, test)}.values()
    if listed := [f"{each.files.name(row)}: {why}" for each in broken for row, why in sorted(each.unreadable.items())]:
        result["unreadable"] = listed
    subject.run.write_json("evaluation.json", result)
    return result


def _left_out(subject: Subject, rows: dict[str, Any], full: bool) -> str:
    """Say what could not be judged, and why."""
    train, test = subject.train, subject.test
    left_out = []
    if "linear" not in rows["trained"]:
        missing = " and ".join(dict.fromkeys(each.name for each, _ in (train, test) if each.labels is None))
        why = f"labels: {missing} has none" if missing else f"two classes: {train[0].name} has one"
        also = ", and the baselines of --full" if full else ""
        left_out.append(f"kNN and linear probes{also}, which need {why}")
    elif "knn" not in rows["trained"]:
        left_out.append(f"kNN, which needs {HEADLINE} images to fit on: there are {len(train[1])}")
    for share, key in (("10 %", "linear_10pc"), ("1 %", "linear_1pc")):
        if "linear" in rows["trained"] and key not in rows["trained"]:
            left_out.append(f"the probe with {share} of the labels, which is less than an image of some class")
    if foresees(subject.objective) and not subject.foresight:
        left_out.append("eye movements, which need 32 images to score on")
    if "dimension" not in rows["trained"]:
        left_out.append(f"correlation dimension: the distances of {len(test[1]):,} images have no scaling region")
    return "; ".join(left_out)


def as_text(result: dict[str, Any], path: str | Path) -> str:
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
