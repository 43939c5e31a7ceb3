"""Initial weights of a run: layers that are fitted to images, weights of a trained model, and a linear probe."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa.backbones import fit_layers, has_fitted_layers, layer_scales
from jepa.config import Config, SupervisedConfig
from jepa.data import ImageDataset
from jepa.data.stats import sample_images
from jepa.evaluation.features import extract
from jepa.evaluation.logistic_regression import accuracy
from jepa.evaluation.penalty_selection import fit_in_memory
from jepa.interop import Pretrained, read_pretrained
from jepa.interop.weights import load_strictly
from jepa.objectives import Objective
from jepa.objectives.supervised import Supervised, draw_labeled

__all__ = ["initialize", "lr_scales"]

MIN_PROBE_IMAGES, MAX_PROBE_IMAGES = 10_000, 50_000  # with which the head is fitted, if there are as many


def initialize(objective: Objective, config: Config, dataset: ImageDataset, indices: Tensor) -> str | None:
    """Fit the layers that are computed from images, load the weights that `config.init` names, and fit the head.

    `indices` are those of the training images. Returns a description of what was done, if anything. Raises `InputError`
    if the weights cannot be read, or do not match the encoder.
    """
    notes = []
    if has_fitted_layers(objective):
        fit_layers(objective, sample_images(dataset, config.data.size))
    if config.init is not None:
        notes.append(load_pretrained(objective, read_pretrained(config.init)))
    if isinstance(config.objective, SupervisedConfig) and config.objective.head == "probe":
        assert isinstance(objective, Supervised)
        count = min(max(MIN_PROBE_IMAGES, config.steps * config.batch_size), MAX_PROBE_IMAGES)
        notes.append(fit_head(objective, dataset, indices, count, config.seed))
    return "; ".join(notes) or None


def fit_head(objective: Supervised, dataset: ImageDataset, indices: Tensor, count: int, seed: int) -> str:
    """Set the head to a linear probe of the features of the training images, as LP-FT does (arXiv 2202.10054).

    If there are more than `count` images, a random part of them is used: the features of all can take longer than the
    training, and more memory than there is.
    """
    assert dataset.labels is not None
    chosen = draw_labeled(dataset.labels, indices, min(1.0, count / len(indices)), seed)
    train = extract(objective.encoder, dataset, chosen, last4=False, label="features for the linear probe")
    assert train.labels is not None
    weights, _ = fit_in_memory(train.x, train.labels, objective.head.out_features)
    with torch.no_grad():
        objective.head.weight.copy_(weights[:, :-1])
        objective.head.bias.copy_(weights[:, -1])
    correct = accuracy(train.x, train.labels, weights)
    total = f"{len(train.x):,}" if len(chosen) == len(indices) else f"{len(train.x):,} of {len(indices):,}"
    return f"the head starts as a linear probe of {total} images, {correct:.1f}% of which it classifies correctly"


def lr_scales(objective: Objective, layer_decay: float) -> dict[nn.Parameter, float] | None:
    """Return the factors of the learning rates of encoders, which decay from layer to layer; None without decay."""
    if layer_decay == 1:
        return None
    encoders = objective.encoders().values()
    return {parameter: scale for e in encoders for parameter, scale in layer_scales(e, layer_decay).items()}


def load_pretrained(objective: Objective, pretrained: Pretrained) -> str:
    """Load trained weights into an objective, and return a description of which.

    If both objectives are of the same kind, with parts of the same names and shapes and with the same classes,
    everything is loaded. Otherwise, each encoder gets the weights of the main trained encoder, and the other parts keep
    their initial ones. Raises `InputError` if the main trained encoder does not match.
    """
    source, own = pretrained.objective, objective.state_dict()
    theirs = source.state_dict()
    names = ", ".join(objective.encoders())
    same_shapes = {n: t.shape for n, t in theirs.items()} == {n: t.shape for n, t in own.items()}
    if type(source) is type(objective) and same_shapes and classes_of(source) == classes_of(objective):
        objective.load_state_dict(theirs)
        return f"all weights come from {pretrained.origin}"
    main, name = source.main_encoder.backbone.state_dict(), next(iter(source.encoders()))
    for encoder in objective.encoders().values():
        load_strictly(encoder.backbone, main, f"the encoder '{name}' of {pretrained.origin}")
    inner = {id(module) for encoder in objective.encoders().values() for module in encoder.modules()}
    fresh = [name for name, module in objective.named_children() if id(module) not in inner and has_parameters(module)]
    rest = f"; new: {', '.join(fresh)}" if fresh else ""
    return f"the weights of {names} come from the encoder '{name}' of {pretrained.origin}{rest}"


def classes_of(objective: Objective) -> tuple[str, ...]:
    """Return the names of the classes that an objective is trained to tell apart; none for those without labels."""
    return objective.config.names if isinstance(objective, Supervised) else ()


def has_parameters(module: nn.Module) -> bool:
    """Return whether a module has weights to train."""
    return next(module.parameters(), None) is not None
