"""The baselines of `jepa evaluate --full`: what costs as much as the run that they stand beside."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from jepa.config import Config, CropConfig, IJepaConfig, SupervisedConfig
from jepa.evaluation import PIXEL_ROWS, PatchDictionary, pixels, principal_features, score
from jepa.runs import Run, load_encoder
from jepa.subject import Subject
from jepa.train import train

__all__ = ["baselines", "supervised_config"]


def baselines(subject: Subject) -> dict[str, Any]:
    """Score principal axes of pixels, k-means of patches, and the same network trained with labels as long as the run.

    The network is trained into the folder `baselines` of the run, or taken from there. Nothing of it works
    without labels: returns an empty dict then.
    """
    images, rows = subject.train
    if not subject.labelled:
        return {}
    fitted, scored = (images, rows[:: -(-len(rows) // PIXEL_ROWS)]), subject.test
    dim = subject.encoders["trained"].backbone.dim
    found = {"pca": score("PCA of pixels", *principal_features(pixels(*fitted), pixels(*scored), dim))}
    dictionary = PatchDictionary(*fitted)
    found["patches"] = score("k-means of patches", dictionary.features(*fitted), dictionary.features(*scored))
    config = dataclasses.replace(subject.config, data=subject.data)
    encoder = load_encoder(trained(supervised_config(config, len(images.classes)), subject)).to(subject.device)
    features = (subject.extract("supervised", encoder, split) for split in (subject.train, subject.test))
    return found | {"supervised": score("trained with labels", *features)}


def trained(config: Config, subject: Subject) -> Path:
    """Train the supervised network of a run on the images that it is judged on, go on with it, or find it complete."""
    about = hashlib.blake2b(config.data.source.encode(), digest_size=4).hexdigest()
    run = Run(subject.run.path / "baselines" / f"supervised-{about}")
    begun = run.checkpoint().is_file()
    if not begun or run.load()[1]["step"] < config.steps:
        train(config, run.path, resume=begun)
    return run.path


def supervised_config(config: Config, classes: int) -> Config:
    """Ask for the same network, images, steps and optimiser, trained with labels on the run's crops.

    Fixations have no crop: random ones of the same least area take their place.
    """
    objective = config.objective
    if isinstance(objective, IJepaConfig):
        crop = objective.crop
    elif isinstance(objective, SupervisedConfig):
        return config
    else:
        crop = CropConfig(scale=(objective.fixations.field**2, 1.0))
    return dataclasses.replace(config, name="supervised", objective=SupervisedConfig(classes, crop))
