"""A checkpoint of a run, opened for evaluation: its encoders, the images, and the features of both."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa.backbones import Encoder
from jepa.config import Config, DataConfig, InputError
from jepa.config.serialization import to_dict
from jepa.config.user_code import loaded_code
from jepa.data import Batch, auto_workers, cache_beside, open_dataset, split_holdout
from jepa.data.sources.base import source_hash
from jepa.distributed import pick_device, pick_precision
from jepa.evaluation.averaged_fixations import averaged_fixations
from jepa.evaluation.checkpoint_scores import score_checkpoints
from jepa.evaluation.class_predictions import ClassPredictions, predict_classes
from jepa.evaluation.energy import energy_trace
from jepa.evaluation.features import Features, FeatureStore, Subset, read_evenly
from jepa.evaluation.labels import has_classes
from jepa.evaluation.movement_regression import movement_r2
from jepa.evaluation.near_duplicates import NearDuplicates, find_near_duplicates
from jepa.evaluation.patch_predictions import PatchPredictions, add_convolutional_decoder, predict_patches
from jepa.evaluation.pixel_predictions import PixelPredictions, predict_pixels
from jepa.evaluation.pooling import QuadrantPooling
from jepa.evaluation.projection import Projection, Projections
from jepa.evaluation.saccade_retrieval import saccade_retrieval
from jepa.evaluation.scores import MAX_WIDTH
from jepa.evaluation.view_predictions import ViewPredictions, predict_views
from jepa.objectives import Objective
from jepa.objectives.ijepa import IJepa
from jepa.rng import Rng
from jepa.runs import Run, load_objective
from jepa.transforms.saccade import Geometry
from jepa.version import __version__

__all__ = ["TEST_FRACTION", "EvaluationRun"]

PROJECTED = ("trained", "untrained")
TEST_FRACTION = 0.2  # fraction of training images held out for scoring if a source has no test split


@dataclass
class EvaluationRun:
    """A checkpoint of a run, opened for evaluation, with the images to evaluate on."""

    folder: Run
    output: Run  # folder for features and results: that of the run, or another one
    config: Config
    data: DataConfig  # data config of the run, or of the given source
    checkpoint: str  # "last", "best" or "step-N"
    metadata: dict[str, Any]  # metadata of the checkpoint
    objective: Objective
    encoders: dict[str, Encoder]  # "trained" (the main encoder), any others by name, and "untrained"
    train: Subset  # images to fit classifiers on
    test: Subset  # images to score
    split: str  # description of how `train` and `test` were split
    store: FeatureStore
    workers: int
    unread_checkpoints: list[str] = dataclasses.field(default_factory=list)  # why kept checkpoints were left out
    _poolings: dict[str, QuadrantPooling] = dataclasses.field(default_factory=dict)  # of the encoders, by name

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
        cache = cache_beside(folder.path)
        train, test, split = _open_subsets(data, cache, config)
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
    def compared_encoders(self) -> dict[str, Encoder]:
        """The encoders of the default evaluation: all, or the trained and untrained one if their features are wide."""
        is_wide = self.encoders["trained"].backbone.dim > MAX_WIDTH
        return {name: self.encoders[name] for name in PROJECTED} if is_wide else self.encoders

    @property
    def has_classes(self) -> bool:
        """Whether kNN and linear probes can be computed, which requires labels of at least two classes."""
        return has_classes(self.train.labels, self.test.labels)

    @property
    def may_have_seen_labels(self) -> bool:
        """Whether the weights were trained with labels of other images, of which the scored ones may be copies."""
        signature, seen = self.train.dataset.signature, self.config.labels_seen
        is_split = self.test.dataset is not self.train.dataset
        return bool(seen) and not is_split and all(part.signature != signature for part in seen)

    @property
    def device(self) -> torch.device:
        """Device of the encoders."""
        return self.encoders["trained"].device

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the trained encoder's token grid."""
        return self.encoders["trained"].grid

    @cached_property
    def saccade_retrieval(self) -> dict[str, Any] | None:
        """Scores of the predictor of a Saccade JEPA on the test images; None for other objectives."""
        return saccade_retrieval(self.objective, *self.test)

    @property
    def geometry(self) -> Geometry | None:
        """Geometry of the fixations that the objective samples, if it does."""
        geometry = getattr(self.objective, "geometry", None)
        return geometry if isinstance(geometry, Geometry) else None

    @cached_property
    def movement_r2(self) -> dict[str, Any]:
        """R² of movements, regressed from features, of the trained and the untrained encoder; empty without them."""
        if self.geometry is None:
            return {}
        geometry, precision = self.geometry, self.store.precision
        return _of_both(lambda name: movement_r2(self.encoders[name], geometry, self.train, self.test, precision))

    @cached_property
    def averaged_fixations(self) -> dict[str, Any]:
        """Accuracies of averaged fixations of the trained and the untrained encoder; empty without fixations."""
        if self.geometry is None or not self.has_classes:
            return {}
        geometry, precision = self.geometry, self.store.precision

        def score(name: str) -> dict[str, float] | None:
            train, test = self.extract(name, self.encoders[name], self.train), self.features(name)
            fitted, scored = (self.train.dataset, train), (self.test.dataset, test)
            return averaged_fixations(self.encoders[name], geometry, fitted, scored, precision)

        return _of_both(score)

    @property
    def saccade_scores(self) -> dict[str, Any]:
        """Scores of retrieval, `movement_r2` and `averaged_fixations`; empty for objectives without fixations."""
        parts = {"movement_r2": self.movement_r2, "averaged_fixations": self.averaged_fixations}
        return (self.saccade_retrieval or {}) | {name: part for name, part in parts.items() if part}

    @cached_property
    def patch_predictions(self) -> PatchPredictions | None:
        """What the predictor of an I-JEPA foresees in the test images; None for other objectives."""
        return predict_patches(self.objective, self.train, self.test)

    @cached_property
    def pixel_predictions(self) -> PixelPredictions | None:
        """What the decoder of a masked autoencoder makes of hidden patches; None for other objectives."""
        return predict_pixels(self.objective, self.test)

    @cached_property
    def view_predictions(self) -> ViewPredictions | None:
        """What the predictor of a Saccade JEPA foresees of test images; None for other objectives."""
        return predict_views(self.objective, self.train, self.test)

    @cached_property
    def projections(self) -> dict[str, Projection]:
        """Test features of the trained and the untrained encoder in two dimensions. Raises `InputError` if UMAP fails.

        See `start_projections`.
        """
        return dict(zip(PROJECTED, self._started_projections.results, strict=True))

    def start_projections(self) -> None:
        """Start UMAP, which takes long, in another process; `projections` waits for it."""
        self._started_projections  # noqa: B018

    @cached_property
    def _started_projections(self) -> Projections:
        return Projections([self.features(name) for name in PROJECTED])

    @cached_property
    def energy_trace(self) -> dict[str, Any] | None:
        """Energies of an Energy Transformer on the test images; None for other backbones."""
        return energy_trace(self.encoders["trained"], *self.test)

    @cached_property
    def checkpoint_scores(self) -> list[dict[str, float]] | None:
        """Scores of the untrained, the kept and the evaluated checkpoints by step; None if none were kept."""
        steps = self.folder.kept_steps()
        if not steps:
            return None
        encoders = self._checkpoints(steps)
        return score_checkpoints(encoders, self.train, self.test, self.workers, self.store.precision)

    def _checkpoints(self, steps: list[int]) -> Iterator[tuple[int, Encoder]]:
        """Yield the step and the main encoder of each checkpoint, in order, without those that cannot be read.

        Step 0 is the untrained encoder, unless training started from other weights.
        """
        evaluated = self.metadata["step"]
        if self.config.init is None:
            yield 0, self.encoders["untrained"]
        for step in sorted({*steps, evaluated}):
            if step == evaluated:
                yield step, self.encoders["trained"]
            else:
                try:
                    objective, _, _ = load_objective(self.folder, Run.kept_name(step))
                except InputError as error:
                    self.unread_checkpoints.append(str(error))
                    continue
                yield step, objective.main_encoder.to(self.device)

    def add_convolutional_decoder(self) -> None:
        """Add a convolutional decoder to `patch_predictions`, if there are any. It takes up to a minute."""
        if self.patch_predictions:
            assert isinstance(self.objective, IJepa)
            self.patch_predictions = add_convolutional_decoder(self.patch_predictions, self.objective, self.train)

    @cached_property
    def near_duplicates(self) -> NearDuplicates:
        """Test images that have an almost identical training image."""
        return find_near_duplicates(self.train, self.test)

    def class_predictions(self, name: str) -> ClassPredictions:
        """Return the classes that kNN and a linear probe predict for test images, by features of one of `encoders`.

        Classifiers are fitted unless an evaluation has stored their predictions. Requires `has_classes`.
        """
        train, test = (self.extract(name, self.encoders[name], subset) for subset in (self.train, self.test))
        return predict_classes(self.store.folder, name, train, test)

    def features(self, name: str) -> Features:
        """Return the features of the test images, computed by one of `encoders`."""
        return self.extract(name, self.encoders[name], self.test)

    def extract(self, name: str, encoder: Encoder, subset: Subset) -> Features:
        """Return the features of a subset, computed by an encoder and stored under `name`."""
        label = f"{name}: features of {subset.dataset.name}"
        pooling = self._poolings.setdefault(name, QuadrantPooling(encoder, self.train))
        return self.store.extract(name, encoder, *subset, quadrants=pooling, label=label, workers=self.workers)

    def read_images(self, count: int) -> Tensor:
        """Return up to `count` evenly spaced test images (count, C, H, W), skipping unreadable ones."""
        return torch.cat([pixels for pixels, _ in read_evenly(self.test, count)])

    def sample_inputs(self, count: int) -> Any:
        """Return the inputs that the objective samples at step 0 from up to `count` evenly spaced training images."""
        pixels, labels = next(read_evenly(self.train, count, batch_size=count))
        positions = torch.arange(len(pixels), device=self.device)
        batch = Batch(pixels.to(self.device), None if labels is None else labels.to(self.device), positions)
        return self.objective.sample(batch, Rng(self.config.seed, 0, positions))


def _of_both(score: Callable[[str], dict[str, Any] | None]) -> dict[str, Any]:
    """Return the scores of the trained and the untrained encoder, without those that could not be computed."""
    scores = {name: score(name) for name in ("trained", "untrained")}
    return {name: part for name, part in scores.items() if part is not None}


def _open_subsets(data: DataConfig, cache: Path, config: Config) -> tuple[Subset, Subset, str]:
    """Return the images to fit on, the images to score, and a description of the split.

    Without a test split, a fifth of the training images is scored. If the run, or one that it started from, was trained
    with the labels of these images, only those that all of them held out are scored.
    """
    train, test = open_dataset(data, "train", cache), open_dataset(data, "test", cache)
    assert train is not None
    if test is not None:
        if len(test) < 2:
            raise InputError(f"{data.source} must have at least two test images, got {len(test)}")
        return Subset(train, torch.arange(len(train))), Subset(test, torch.arange(len(test))), "train to test"
    fraction = TEST_FRACTION
    if held_out_before := [seen.holdout for seen in config.labels_seen if seen.signature == train.signature]:
        fraction = min(held_out_before)  # the images that a smaller fraction holds out are among those of a larger one
    is_own = config.objective.uses_labels and data.source == config.data.source and not held_out_before
    place = source_hash(data.source)
    if is_own or any(seen.source == place and seen.signature != train.signature for seen in config.labels_seen):
        raise InputError(
            f"the images of {data.source} have changed since the weights were trained with their labels, so it is "
            "unknown which of them are new; evaluate on other images with --data, or give these a test split"
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
