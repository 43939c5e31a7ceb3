"""Evaluate a run: open one of its checkpoints, score its encoders, and compare them with baselines."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from pathlib import Path
from typing import Any

from jepa.backbones import Encoder
from jepa.config import Config, InputError, SupervisedConfig
from jepa.distributed import keep_freed_memory
from jepa.evaluation.checkpoint_scores import accuracies, choices
from jepa.evaluation.class_predictions import class_table
from jepa.evaluation.features import Features, Subset, pixel_features
from jepa.evaluation.knn import HEADLINE_K
from jepa.evaluation.movement_regression import MIN_IMAGES as REGRESSION_IMAGES
from jepa.evaluation.pixel_baselines import PatchDictionary, pca_features
from jepa.evaluation.pooled_scores import pooled_scores
from jepa.evaluation.saccade_retrieval import BATCH_SIZE as RETRIEVAL_IMAGES
from jepa.evaluation.saccade_retrieval import has_saccade_predictor
from jepa.evaluation.scores import MAX_WIDTH, pixel_subset, score, score_encoders
from jepa.evaluation.trained_head import head_accuracy
from jepa.evaluation_run import TEST_FRACTION, EvaluationRun
from jepa.logger import collapse_warning
from jepa.objectives.supervised import Supervised
from jepa.runs import Run, load_encoder
from jepa.terminal import say_stage
from jepa.train import train
from jepa.version import __version__

__all__ = ["baselines", "evaluate", "evaluate_run", "supervised_config"]

PROTOCOL = {
    "raw pixels": "resized to at most 32x32; fitted on up to 50,000 training images",
    "pooling": "mean over tokens",
    "last 4": "the last four layers, each averaged over tokens, then concatenated",
    "kNN": "k = 20, cosine similarity of centered features, weights exp(similarity / 0.07)",
    "linear": "logistic regression on standardized features, L2 penalty selected on held-out training images",
    "10% and 1% labels": "the linear probe, fitted on this fraction of the images of each class",
    "dimension": "correlation dimension of up to 10,000 test images, with its estimated error",
    "±": "standard error for this number of test images; with 10% and 1% labels, standard deviation of five draws",
}


def evaluate(path: str | Path, source: str | None = None) -> dict[str, Any]:
    """Evaluate the last checkpoint of the run in `path`, write evaluation.json to its folder, and return the results.

    The encoders are compared with the untrained encoder (the initial weights) and with raw pixels: classifiers are
    fitted on features of the train split and scored on the test split. If the source has no test split, a fifth of the
    training images (at most 2,000) is held out for scoring; the encoder was trained on these images, but without their
    labels. If `source` is given, its images are used instead of those of the run. Raises `InputError` if the run or the
    images cannot be opened, if there are too few images, or if features are not finite.
    """
    return evaluate_run(EvaluationRun.open(path, source))


def evaluate_run(run: EvaluationRun, full: bool = False) -> dict[str, Any]:
    """Evaluate an opened run (see `evaluate`).

    With `full`, also compute `baselines`, and decode predictions of an I-JEPA by convolutions.
    """
    if not os.access(run.output.path, os.W_OK):
        raise InputError(f"{run.output.path} cannot be written to; pass --out DIR, a folder for the results")
    start = time.perf_counter()
    keep_freed_memory()
    encoders = run.encoders if full else run.compared_encoders
    scores = score_encoders(
        encoders,
        run.train,
        run.test,
        run.extract,
        folder=run.store.folder,
        precision=run.store.precision,
        full=full,
    )
    if full:
        scores |= baselines(run)
        run.add_convolutional_decoder()
    result = scores | {
        "name": run.config.name,
        "encoders": run.encoder_names,
        "checkpoint": run.checkpoint,
        "step": run.metadata["step"],
        "steps": run.config.steps,
        "train_seconds": round(run.metadata.get("seconds", 0.0), 1),
        "evaluation_seconds": round(time.perf_counter() - start, 1),
        "data": {
            "source": run.data.source,
            "train": len(run.train.indices),
            "test": len(run.test.indices),
            "split": run.split + _unlabeled_text(run.train, run.test),
        },
        "protocol": {"precision": f"features computed in {run.store.precision}"} | PROTOCOL,
        "version": __version__,
    }
    if origin := run.metadata.get("origin"):
        result["origin"] = origin
    if warning := warning_of(run, scores):
        result["warning"] = warning
    if isinstance(run.objective, Supervised):
        head = head_accuracy(run.objective, run.features("trained"), run.test.dataset.classes)
        result |= {} if head is None else {"head": head}
    if predictions := run.patch_predictions or run.view_predictions or run.pixel_predictions:
        result["predictions"] = predictions.scores()
    if run.energy_trace:
        result["energy"] = run.energy_trace
    if run.checkpoint_scores:
        result["checkpoints"] = {"scores": run.checkpoint_scores, "choices": choices(run.checkpoint_scores)}
    if run.geometry:
        say_stage("eye movements")
    if run.saccade_scores:
        result["saccades"] = run.saccade_scores
    if "linear" in scores["trained"]:
        predicted = {name: run.class_predictions(name) for name in encoders}
        result["class_accuracy"] = class_table(predicted, run.test.dataset.classes)
    result["near_duplicates"] = run.near_duplicates.to_json(run.train, run.test)
    if omitted := _omitted(run, scores, full):
        result["left_out"] = omitted
    datasets = {id(dataset): dataset for dataset in (run.train.dataset, run.test.dataset)}.values()
    if notes := notes_of(run):
        result["notes"] = notes
    unreadable = [
        f"{dataset.files.name(index)}: {reason}"
        for dataset in datasets
        for index, reason in sorted(dataset.unreadable.items())
    ]
    if unreadable:
        result["unreadable"] = unreadable
    run.output.write_json("evaluation.json", result)
    return result


def warning_of(run: EvaluationRun, scores: dict[str, Any]) -> str | None:
    """Return a warning if the features have collapsed, or if training has ended with a warning."""
    return collapse_warning(scores["trained"], scores["untrained"], run.objective) or run.folder.warning()


def notes_of(run: EvaluationRun) -> list[str]:
    """Return what may be wrong with the images, the checkpoint or the curves, in one sentence each."""
    notes = dict.fromkeys(note for dataset in (run.train.dataset, run.test.dataset) for note in dataset.notes)
    images = run.metadata.get("images", run.train.dataset.signature)
    is_same = run.data.source == run.config.data.source and os.path.exists(run.data.source)  # noqa: PTH110  (any text)
    if is_same and images != run.train.dataset.signature:  # files of a name, such as sample, may be copies of others
        text = f"the files of {run.data.source} are not those that the run was trained on: names, sizes or times differ"
        notes[text] = None
    if run.may_have_seen_labels:
        notes["the weights were trained with labels of other images; copies of these are scored too high"] = None
    if run.checkpoint == "best":
        notes["these are the scores of the checkpoint 'best', which was chosen with labels, by online kNN"] = None
    if run.folder.metrics_changed(run.metadata):
        notes["metrics.jsonl has changed since the checkpoint was saved, so the training curves may be wrong"] = None
    notes |= dict.fromkeys(f"left out of the checkpoints: {reason}" for reason in run.unread_checkpoints)
    if len(run.near_duplicates.pairs):
        notes[f"{run.near_duplicates}, so their classes may be known rather than recognized"] = None
    return list(notes)


def _omitted(run: EvaluationRun, scores: dict[str, Any], full: bool) -> str:
    """Return the scores that could not be computed, and why."""
    train, test, trained = run.train, run.test, scores["trained"]
    omitted = []
    if "linear" not in trained:
        also = ", and the baselines of --full" if full else ""
        omitted.append(f"kNN and linear probes{also}, which need {_missing_labels(train, test)}")
    elif "knn" not in trained:
        assert train.labels is not None
        count = int((train.labels >= 0).sum())
        omitted.append(f"kNN, which needs at least {HEADLINE_K} labeled training images, but there are {count}")
    for fraction, key in (("10%", "linear_10pc"), ("1%", "linear_1pc")):
        if "linear" in trained and key not in trained:
            omitted.append(f"the linear probe with {fraction} of the labels: some class would have no image")
    if not full and run.encoders["trained"].backbone.dim > MAX_WIDTH and "linear" in trained:
        others = [f"the {name} encoder" for name in run.encoders if name not in run.compared_encoders]
        parts = " and ".join(["the probe on the last four layers", *others])
        width = run.encoders["trained"].backbone.dim
        omitted.append(f"{parts}, because each probe fits {width:,} features (--full adds them)")
    if has_saccade_predictor(run.objective) and not run.saccade_retrieval:
        omitted.append(f"saccade retrieval, which needs at least {RETRIEVAL_IMAGES} test images")
    if run.geometry and not run.movement_r2:
        omitted.append(
            f"the regression of movements, which needs at least {REGRESSION_IMAGES} training and {REGRESSION_IMAGES} "
            "test images, and finite features of views"
        )
    if "dimension" not in trained:
        omitted.append(
            f"the correlation dimension: the distances between {len(test.indices):,} images have no scaling region, "
            "for example because there are too few images or because of noise"
        )
    return "; ".join(omitted)


def _unlabeled_text(train: Subset, test: Subset) -> str:
    """Return how many images have no label, if only some have none."""
    counts = [(0 if subset.labels is None else int((subset.labels < 0).sum())) for subset in (train, test)]
    return f"; {counts[0]:,} and {counts[1]:,} of them are unlabeled and left out of accuracies" if any(counts) else ""


def _missing_labels(train: Subset, test: Subset) -> str:
    """Return which labels are needed but missing."""
    unlabeled = {subset.dataset.name: subset.dataset for subset in (train, test) if subset.labels is None}
    if unlabeled:
        names = [
            f"{name} (because {dataset.why_no_labels})" if dataset.why_no_labels else name
            for name, dataset in unlabeled.items()
        ]
        return f"labels, but {' and '.join(names)} {'has' if len(unlabeled) == 1 else 'have'} none"
    if test.labels is not None and int(test.labels.max()) < 0:
        return "labeled test images, but there are none"
    return f"labels of at least two classes, but {train.dataset.name} has only one"


def baselines(run: EvaluationRun) -> dict[str, Any]:
    """Return the scores of PCA of pixels, k-means of patches, and a supervised network of the same architecture.

    The network is trained for as many steps as the run, into the run's folder `baselines`, unless it exists. All of
    these baselines need labels; the result is empty without labels of at least two classes.
    """
    if not run.has_classes:
        return {}
    fitted = pixel_subset(run.train)
    dim = run.encoders["trained"].backbone.dim
    scores = {"pca": score("PCA of pixels", *pca_features(pixel_features(*fitted), pixel_features(*run.test), dim))}
    dictionary = PatchDictionary(*fitted)
    scores["patches"] = patch_scores(dictionary.features(*fitted), dictionary.features(*run.test))
    encoder = train_supervised(run)
    train_features, test_features = (run.extract("supervised", encoder, subset) for subset in (run.train, run.test))
    return scores | {"supervised": score("supervised", train_features, test_features)}


def patch_scores(train: Features, test: Features) -> dict[str, Any]:
    """Return the scores of k-means of patches, whose features (N, 4 · centroids) are averaged over quadrants.

    At equal pooling, they are compared with encoders as what they are, and averaged over the image, `knn_mean` and
    `linear_mean`.
    """
    own = score("k-means of patches", train, test)
    fitted, scored = (
        dataclasses.replace(part, x=part.x.unflatten(1, (-1, 4)).mean(-1), quadrants=part.x) for part in (train, test)
    )
    mean = accuracies(fitted, scored)
    names = [name for name in ("knn", "linear") if name in own]
    known = {f"{name}_2x2": own[name] for name in names} | {f"{name}_2x2_pca": own[f"{name}_pca"] for name in names}
    views = pooled_scores(fitted, scored, {name: mean[name] for name in names} | known)
    views |= {f"{name}_mean": mean[name] for name in names}
    return own | {key: round(value, 2) for key, value in views.items()}


def train_supervised(run: EvaluationRun) -> Encoder:
    """Return the supervised counterpart of the run's encoder, training it or resuming its training if needed.

    It is never trained on images that are scored: without a test split, they are held out from its training.
    """
    data = run.data
    if run.test.dataset is run.train.dataset:
        data = dataclasses.replace(data, holdout=max(TEST_FRACTION, data.holdout))
    # there may be fewer images than in a batch of the run; all microbatches must have the same size
    count = min(run.config.batch_size, len(run.train.indices)) // run.config.accumulate * run.config.accumulate
    config = dataclasses.replace(run.config, data=data, batch_size=max(count, run.config.accumulate))
    config = supervised_config(config, len(run.train.dataset.classes))
    images = f"{data.source} {data.holdout} {run.train.dataset.signature}"
    name = f"supervised-{hashlib.blake2b(os.fsencode(images), digest_size=4).hexdigest()}"
    places = [Run(place.path / "baselines" / name) for place in (run.folder, run.output)]
    folder = next((place for place in places if place.checkpoint().is_file()), places[-1])
    started = folder.checkpoint().is_file()
    if not started or folder.load()[1]["step"] < config.steps:
        train(config, folder.path, resume=started)
    return load_encoder(folder.path).to(run.device)


def supervised_config(config: Config, classes: int) -> Config:
    """Return the supervised counterpart of a config.

    It has the same backbone, images, steps and optimizer, but is trained from random weights with all labels.
    """
    if isinstance(config.objective, SupervisedConfig):
        objective = dataclasses.replace(
            config.objective, classes=classes, names=(), labels=1.0, head="random", freeze=False
        )
        return dataclasses.replace(
            config, objective=objective, init=None, optim=dataclasses.replace(config.optim, layer_decay=1.0)
        )
    objective = SupervisedConfig(classes, config.objective.supervised_crop())
    return dataclasses.replace(config, name="supervised", objective=objective, init=None)
