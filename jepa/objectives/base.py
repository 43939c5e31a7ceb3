"""What every objective is: a batch in, a dict of losses out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from jepa.backbones import Encoder
from jepa.config import Config, InputError
from jepa.data import Batch
from jepa.distributed import world_size
from jepa.rng import Rng

__all__ = ["Objective", "ema_update", "full_precision", "needs_a_batch"]


class Objective(nn.Module):
    """A way to train an encoder: everything that the loop needs to know of a method."""

    def sample(self, batch: Batch, rng: Rng) -> Any:
        """Make the inputs of `forward`: views and masks; all randomness of a step lives here."""
        raise NotImplementedError

    def forward(self, inputs: Any) -> dict[str, Tensor]:
        """Return "loss", and every term worth logging, as scalars."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """Act after an optimiser step; `progress` is the share of the run that is done."""

    def describe(self) -> str:
        """Say in a few words what is asked of the model, for the first lines of a run."""
        raise NotImplementedError

    def encoders(self) -> dict[str, Encoder]:
        """Return the encoders to judge, the headline one first."""
        raise NotImplementedError


def full_precision(x: Tensor) -> Tensor:
    """Return fp16 and bf16 as fp32, in which losses are taken; fp32 and fp64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def needs_a_batch(model: nn.Module, config: Config) -> None:
    """Refuse batches of one where a BatchNorm would have nothing to compare it with. Raises `InputError`."""
    parts = config.accumulate * world_size()
    if config.batch_size // parts < 2 and any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()
    ):
        raise InputError(
            f"batch_size is {config.batch_size}, with accumulate {config.accumulate} and {world_size()} process(es) "
            f"too small for a BatchNorm, which needs 2 images at a time; give --batch-size {2 * parts} or more, or a "
            "backbone without one (convnext_atto)"
        )


@torch.no_grad()
def ema_update(target: nn.Module, source: nn.Module, momentum: float) -> None:
    """Move every parameter and buffer of `target` a step of 1 - momentum towards `source`; integers are copied."""
    targets, sources = list(target.state_dict().values()), list(source.state_dict().values())
    floats = [pair for pair in zip(targets, sources, strict=True) if pair[0].is_floating_point()]
    torch._foreach_lerp_([pair[0] for pair in floats], [pair[1] for pair in floats], 1 - momentum)
    for mine, theirs in zip(targets, sources, strict=True):
        if not mine.is_floating_point():
            mine.copy_(theirs)
