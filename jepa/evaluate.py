"""Evaluate a run: open one of its checkpoints, score its encoders, and compare them with baselines."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa.backbones import Encoder
from jepa.config import Config, DataConfig, InputError, SupervisedConfig
from jepa.config.serialization import to_dict
from jepa.config.user_code import loaded_code
from jepa.data import CACHE, Batch, auto_workers, evenly_spaced, open_dataset, split_holdout
from jepa.distributed import keep_freed_memory, pick_device, pick_precision
from jepa.evaluation.energy import energy_trace
from jepa.evaluation.features import Features, FeatureStore, Subset, pixel_features
from jepa.evaluation.knn import HEADLINE_K
from jepa.evaluation.labels import has_classes
from jepa.evaluation.pixel_baselines import PatchDictionary, pca_features
from jepa.evaluation.saccade_retrieval import BATCH_SIZE as RETRIEVAL_IMAGES
from jepa.evaluation.saccade_retrieval import has_saccade_predictor, saccade_retrieval
from jepa.evaluation.scores import pixel_subset, score, score_encoders
from jepa.logger import collapse_warning
from jepa.objectives import Objective
from jepa.rng import Rng
from jepa.runs import Run, load_encoder, load_objective
from jepa.train import train
from jepa.version import __version__

__all__ = ["EvaluationRun", "baselines", "evaluate", "evaluate_run", "supervised_config"]

USER_CACHE = Path("~/.cache/image-jepa").expanduser()  # for indexes and decoded images, if runs cannot be written to
TEST_FRACTION = 0.2  # fraction of training images held out for scoring if a source has no test split

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


@dataclass
class EvaluationRun:
    """A checkpoint of a run, opened for evaluation, with the images to evaluate on."""

    folder: Run
    output: Run  # folder for features and results: that of the run, or another one
    config: Config
    data: DataConfig  # data config of the run, or of the given source
    checkpoint: str  # "last" or "best"
    metadata: dict[str, Any]  # metadata of the checkpoint
    objective: Objective
    encoders: dict[str, Encoder]  # "trained" (the main encoder), any others by name, and "untrained"
    train: Subset  # images to fit classifiers on
    test: Subset  # images to score
    split: str  # description of how `train` and `test` were split
    store: FeatureStore
    workers: int

    @classmethod
    def open(
        cls, path: str | Path, source: str | None = None, *, out: Path | None = None, checkpoint: str = "last"
    ) -> EvaluationRun:
        """Open a run folder, to be evaluated on `source` if given.

        Features and results are written to the folder `out`, by default that of the run. Raises `InputError` if there
        is no such checkpoint, if the images cannot be opened, or if there are too few of them.
        """
        folder = Run.open(path)
        output = folder if out is None else Run(out)
        if out is not None:
            if output.exists and output.path.resolve() != folder.path.resolve():
                raise InputError(f"--out {out} is another run, whose scores would be replaced; give another folder")
            with output.writing():
                output.path.mkdir(parents=True, exist_ok=True)
        config = folder.config
        data = config.data
        if source is not None:  # its images may vary in size: crop them to the input size of the encoder
            data = dataclasses.replace(data, source=source, canvas=data.canvas or data.size)
        objective, untrained, metadata = load_objective(folder, checkpoint)
        device = pick_device("auto")
        objective, untrained = objective.to(device), untrained.to(device)
        names = ["trained", *list(objective.encoders())[1:]]
        encoders = dict(zip(names, objective.encoders().values(), strict=True)) | {"untrained": untrained}
        cache = folder.path.parent / CACHE.name
        if not os.access(cache if cache.exists() else cache.parent, os.W_OK):
            cache = USER_CACHE
        train, test, split = _open_subsets(data, cache, config, metadata.get("images", ""))
        stamp = [__version__, to_dict(config)["backbone"]]
        if config.code is not None:
            stamp.append(hashlib.sha256(loaded_code(config.code).content).hexdigest())
        return cls(
            folder=folder,
            output=output,
            config=config,
            data=data,
            checkpoint=checkpoint,
            metadata=metadata,
            objective=objective,
            encoders=encoders,
            train=train,
            test=test,
            split=split,
            store=FeatureStore(output.path / "features", json.dumps(stamp), pick_precision(config.precision, device)),
            workers=auto_workers(device) if data.workers is None else data.workers,
        )

    @property
    def encoder_names(self) -> list[str]:
        """Names of the encoders of the objective, the main one first."""
        return list(self.objective.encoders())

    @property
    def has_classes(self) -> bool:
        """Whether kNN and linear probes can be computed, which requires labels of at least two classes."""
        return has_classes(self.train.labels, self.test.labels)

    @property
    def device(self) -> torch.device:
        """Device of the encoders."""
        return self.encoders["trained"].device

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the trained encoder's token grid."""
        encoder = self.encoders["trained"]
        return encoder.size[0] // encoder.backbone.stride, encoder.size[1] // encoder.backbone.stride

    @cached_property
    def saccade_retrieval(self) -> dict[str, Any] | None:
        """Scores of the predictor of a Saccade JEPA on the test images; None for other objectives."""
        return saccade_retrieval(self.objective, *self.test)

    @cached_property
    def energy_trace(self) -> dict[str, Any] | None:
        """Energies of an Energy Transformer on the test images; None for other backbones."""
        return energy_trace(self.encoders["trained"], *self.test)

    def features(self, name: str) -> Features:
        """Return the features of the test images, computed by one of `encoders`."""
        return self.extract(name, self.encoders[name], self.test)

    def extract(self, name: str, encoder: Encoder, subset: Subset) -> Features:
        """Return the features of a subset, computed by an encoder and stored under `name`."""
        label = f"{name}: features of {subset.dataset.name}"
        return self.store.extract(name, encoder, *subset, label=label, workers=self.workers)

    def read_images(self, count: int) -> Tensor:
        """Return up to `count` evenly spaced test images (count, C, H, W), skipping unreadable ones."""
        return _read_evenly(self.test, count)[0]

    def sample_inputs(self, count: int) -> Any:
        """Return the inputs that the objective samples at step 0 from up to `count` evenly spaced training images."""
        pixels, labels = _read_evenly(self.train, count)
        positions = torch.arange(len(pixels), device=self.device)
        batch = Batch(pixels.to(self.device), None if labels is None else labels.to(self.device), positions)
        return self.objective.sample(batch, Rng(self.config.seed, 0, positions))


def _open_subsets(data: DataConfig, cache: Path, config: Config, trained_on: str) -> tuple[Subset, Subset, str]:
    """Return the images to fit on, the images to score, and a description of the split.

    Without a test split, a fifth of the training images is scored. If the run was trained with labels, on images of the
    signature `trained_on`, only those that it held out are scored.
    """
    train, test = open_dataset(data, "train", cache), open_dataset(data, "test", cache)
    assert train is not None
    if test is not None:
        if len(test) < 2:
            raise InputError(f"{data.source} must have at least two test images, got {len(test)}")
        return Subset(train, torch.arange(len(train))), Subset(test, torch.arange(len(test))), "train to test"
    fraction = TEST_FRACTION
    if config.objective.uses_labels and train.signature == trained_on:
        fraction = config.data.holdout
    elif config.objective.uses_labels and data.source == config.data.source:
        raise InputError(
            f"the images of {data.source} have changed since the run was trained with their labels, so it is unknown "
            "which of them it has not seen; evaluate it on other images with --data"
        )
    fit, held_out = split_holdout(len(train), fraction)
    if len(held_out) < 2:
        raise InputError(
            f"{data.source} has no test split, and only {len(held_out)} of its {len(train)} images can be held out for "
            "scoring; use a source with more images or a test split, or train with a larger --data.holdout"
        )
    return (
        Subset(train, fit),
        Subset(train, held_out),
        f"no test split: scored on {len(held_out)} of the training images, on which nothing else is fitted",
    )


def _read_evenly(subset: Subset, count: int) -> tuple[Tensor, Tensor | None]:
    """Return up to `count` evenly spaced images of a subset and their labels, skipping unreadable images."""
    dataset, indices = subset
    decoded = dataset.read(indices[evenly_spaced(len(indices), count)])
    readable = decoded.readable
    return decoded.pixels[readable], None if dataset.labels is None else dataset.labels[decoded.indices[readable]]


def evaluate_run(run: EvaluationRun, full: bool = False) -> dict[str, Any]:
    """Evaluate an opened run (see `evaluate`). With `full`, also compute `baselines`."""
    if not os.access(run.output.path, os.W_OK):
        raise InputError(f"{run.output.path} cannot be written to; pass --out DIR, a folder for the results")
    start = time.perf_counter()
    keep_freed_memory()
    scores = score_encoders(run.encoders, run.train, run.test, run.store, run.workers)
    if full:
        scores |= baselines(run)
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
    if warning := warning_of(run, scores):
        result["warning"] = warning
    if run.energy_trace:
        result["energy"] = run.energy_trace
    if run.saccade_retrieval:
        result["saccades"] = run.saccade_retrieval
    if omitted := _omitted(run, scores, full):
        result["left_out"] = omitted
    datasets = {id(dataset): dataset for dataset in (run.train.dataset, run.test.dataset)}.values()
    notes = dict.fromkeys(note for dataset in datasets for note in dataset.notes)
    images = run.metadata.get("images", run.train.dataset.signature)
    is_same = run.data.source == run.config.data.source and os.path.exists(run.data.source)  # noqa: PTH110  (any text)
    if is_same and images != run.train.dataset.signature:  # files of a name, such as sample, may be copies of others
        text = f"the files of {run.data.source} are not those that the run was trained on: names, sizes or times differ"
        notes[text] = None
    if run.checkpoint == "best":
        notes["these are the scores of the checkpoint 'best', which was chosen with labels, by online kNN"] = None
    if run.folder.metrics_changed(run.metadata):
        notes["metrics.jsonl has changed since the checkpoint was saved, so the training curves may be wrong"] = None
    if notes:
        result["notes"] = list(notes)
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
    if has_saccade_predictor(run.objective) and not run.saccade_retrieval:
        omitted.append(f"saccade retrieval, which needs at least {RETRIEVAL_IMAGES} test images")
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
    scores["patches"] = score("k-means of patches", dictionary.features(*fitted), dictionary.features(*run.test))
    encoder = train_supervised(run)
    features = [run.extract("supervised", encoder, subset) for subset in (run.train, run.test)]
    return scores | {"supervised": score("supervised", *features)}


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

    It has the same backbone, images, steps and optimizer, but is trained with labels.
    """
    if isinstance(config.objective, SupervisedConfig):
        return dataclasses.replace(config, objective=dataclasses.replace(config.objective, classes=classes))
    objective = SupervisedConfig(classes, config.objective.supervised_crop())
    return dataclasses.replace(config, name="supervised", objective=objective)
