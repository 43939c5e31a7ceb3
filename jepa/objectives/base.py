"""Base class and helpers for objectives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from jepa.backbones import Encoder
from jepa.config import Config, InputError
from jepa.data import Batch
from jepa.distributed import world_size
from jepa.rng import Rng

__all__ = ["Objective", "check_batchnorm", "ema_update", "full_precision"]


class Objective(nn.Module):
    """Base class for methods that train an encoder. The training loop uses only this interface.

    Subclasses take the `Config` of the experiment.
    """

    def sample(self, batch: Batch, rng: Rng) -> Any:
        """Return the inputs of `forward`, such as views and masks.

        All random numbers of a step are drawn here, from `rng`, so that they do not depend on the number of processes
        or microbatches.
        """
        raise NotImplementedError

    def forward(self, inputs: Any) -> dict[str, Tensor]:
        """Return a dict of scalars: "loss", averaged over images, and the terms to log."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """Called after each optimizer step, for example to update an EMA.

        `progress` is the position of the step in the run, from 0 for the first step to 1 for the last one.
        """

    def training_indices(self, labels: Tensor | None, indices: Tensor) -> Tensor:
        """Return which of the training images to use, given the labels (N,) of all images of the split; by default all.

        `indices` are sorted, and so is the result.
        """
        return indices

    def describe(self) -> str:
        """Describe the inputs in one line, which is printed at the start of a run."""
        return f"objective {type(self).__name__}"

    def encoders(self) -> dict[str, Encoder]:
        """Return the encoders to evaluate, keyed by name, main one first."""
        raise NotImplementedError

    @property
    def main_encoder(self) -> Encoder:
        """The encoder to load by default."""
        return next(iter(self.encoders().values()))

    def collapse_advice(self) -> str:
        """Return advice in case the features collapse, phrased as the end of a sentence."""
        return "try a lower --optim.lr"


def full_precision(x: Tensor) -> Tensor:
    """Convert fp16 and bf16 to fp32 to compute losses; return fp32 and fp64 unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_batchnorm(model: nn.Module, config: Config) -> None:
    """Raise `InputError` if the model has BatchNorm and microbatches have fewer than 2 images."""
    num_microbatches = config.accumulate * world_size()  # per global batch
    if config.batch_size // num_microbatches < 2 and any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()
    ):
        raise InputError(
            f"a BatchNorm needs at least 2 images per microbatch, got batch_size {config.batch_size} for "
            f"{num_microbatches} microbatch(es); use --batch-size {2 * num_microbatches} or more, or a backbone "
            "without BatchNorm, such as convnext_atto"
        )


@torch.no_grad()
def ema_update(target: nn.Module, source: nn.Module, momentum: float) -> None:
    """Set `target` to momentum · target + (1 - momentum) · source.

    Applies to parameters and buffers; integer tensors are copied.
    """
    targets, sources = list(target.state_dict().values()), list(source.state_dict().values())
    floats = [pair for pair in zip(targets, sources, strict=True) if pair[0].is_floating_point()]
    torch._foreach_lerp_([pair[0] for pair in floats], [pair[1] for pair in floats], 1 - momentum)
    for target_tensor, source_tensor in zip(targets, sources, strict=True):
        if not target_tensor.is_floating_point():
            target_tensor.copy_(source_tensor)
