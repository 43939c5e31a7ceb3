"""A run opened for judging: its encoders, the images to fit and to score on, and the features kept in its folder."""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa import __version__
from jepa.backbones import Encoder
from jepa.config import Config, DataConfig, InputError
from jepa.config_json import to_dict
from jepa.data import CACHE, Images, auto_workers, open_dataset, split_holdout
from jepa.distributed import pick_device
from jepa.evaluation import Features, FeatureStore, descent, foresight, labelled
from jepa.objectives import Objective
from jepa.runs import Run, fresh_objective, unpack

__all__ = ["Subject"]

TEST_SHARE = 0.2  # of the training images, where a source has no test split


@dataclass
class Subject:
    """The last checkpoint of a run, beside what it started from."""

    run: Run
    config: Config
    data: DataConfig  # the config's, or of another source that it is judged on
    facts: dict[str, Any]  # of the checkpoint
    objective: Objective
    encoders: dict[str, Encoder]  # trained (the headline one), context where there are two, untrained
    train: tuple[Images, Tensor]  # images and the rows to fit on
    test: tuple[Images, Tensor]  # images and the rows to score on
    split: str  # how the two were split
    store: FeatureStore
    workers: int

    @classmethod
    def open(cls, path: str | Path, source: str | None = None) -> Subject:
        """Open a run folder, to be judged on another source where one is given. Raises `InputError`."""
        run = Run.open(path)
        config = run.config
        data = config.data
        if source is not None:  # whatever sizes it has, the encoder gets its own
            data = dataclasses.replace(data, source=source, canvas=data.canvas or data.size)
        tensors, facts = run.load()
        objective = fresh_objective(config)
        device = pick_device("auto")
        untrained = copy.deepcopy(next(iter(objective.encoders().values())))
        unpack(tensors, objective, None, run.checkpoint())
        names = ["trained", *list(objective.encoders())[1:]]
        encoders = dict(zip(names, objective.encoders().values(), strict=True)) | {"untrained": untrained}
        return cls(
            run,
            config,
            data,
            facts,
            objective,
            {name: encoder.to(device) for name, encoder in encoders.items()},
            *_splits(data, run.path.parent / CACHE.name),
            FeatureStore(run.path / "features", json.dumps([__version__, to_dict(config)["backbone"]])),
            auto_workers(device) if data.workers is None else data.workers,
        )

    @cached_property
    def foresight(self) -> dict[str, Any] | None:
        """What the predictor of a Saccade JEPA foresees."""
        return foresight(self.objective, *self.test)

    @cached_property
    def energy(self) -> dict[str, Any] | None:
        """How the energy of an Energy Transformer falls."""
        return descent(self.encoders["trained"], *self.test)

    def features(self, encoder: str) -> Features:
        """Return the features of the scored images, extracted now or before."""
        return self.extract(encoder, self.encoders[encoder], self.test)

    def extract(self, name: str, encoder: Encoder, split: tuple[Images, Tensor]) -> Features:
        """Return the features of a split by any encoder, under a name of its own."""
        return self.store.extract(name, encoder, *split, f"{name}: features of {split[0].name}", self.workers)

    @property
    def labelled(self) -> bool:
        """Whether there are classes to fit to and labels to score by."""
        return labelled(self.train[0], self.test[0])

    @property
    def device(self) -> torch.device:
        """Where the encoders are."""
        return self.encoders["trained"].mean.device

    def pixels(self, count: int, split: tuple[Images, Tensor] | None = None) -> Tensor:
        """Read so many images (count, C, H, W) of a split, the scored one unless told, spread evenly.

        Those that cannot be read are left out.
        """
        images, rows = split or self.test
        places = torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long()
        read = images.read(rows[places])
        return read.pixels[read.readable]


def _splits(data: DataConfig, cache: Path) -> tuple[tuple[Images, Tensor], tuple[Images, Tensor], str]:
    """Return the images and rows to fit and to score on, and how they were split."""
    train, test = open_dataset(data, "train", cache), open_dataset(data, "test", cache)
    assert train is not None
    if test is not None:
        if len(test) < 2:
            raise InputError(f"{data.source} has {len(test)} test image, too few to score on; give two or more")
        return (train, torch.arange(len(train))), (test, torch.arange(len(test))), "train to test"
    fit, score = split_holdout(len(train), TEST_SHARE)
    if len(score) < 2:
        raise InputError(f"{data.source} has {len(train)} images and no test split: too few to fit and to score on")
    return (train, fit), (train, score), f"no test split: {len(score)} training images are scored instead"
