"""The interface of objectives."""

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
    """A method that trains an encoder. The training loop uses only this interface.

    The constructor of a subclass takes the `Config` of the experiment.
    """

    def sample(self, batch: Batch, rng: Rng) -> Any:
        """Return the inputs of `forward`, such as views and masks of the images.

        All random numbers of a step are drawn here, from `rng`, so that they do not depend on the number of processes
        or microbatches.
        """
        raise NotImplementedError

    def forward(self, inputs: Any) -> dict[str, Tensor]:
        """Return scalars: "loss", a mean over the images, and each term that is logged."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """Update what the optimizer does not, such as a moving average.

        `progress` is the completed share of the run.
        """

    def describe(self) -> str:
        """Return a line about the model's inputs, which is printed when a run starts."""
        return f"objective {type(self).__name__}"

    def encoders(self) -> dict[str, Encoder]:
        """Return the encoders that are evaluated by name, the main one first."""
        raise NotImplementedError

    @property
    def main_encoder(self) -> Encoder:
        """The encoder that is loaded by default."""
        return next(iter(self.encoders().values()))

    def collapse_advice(self) -> str:
        """Return what to try if the features collapse, as the end of a sentence."""
        return "try a lower --optim.lr"


def full_precision(x: Tensor) -> Tensor:
    """Convert fp16 and bf16 to fp32, in which losses are computed; fp32 and fp64 are returned unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_batchnorm(model: nn.Module, config: Config) -> None:
    """Raise `InputError` if a model with BatchNorm gets microbatches of one image."""
    num_microbatches = config.accumulate * world_size()  # of the global batch
    if config.batch_size // num_microbatches < 2 and any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()
    ):
        raise InputError(
            f"batch_size is {config.batch_size} for {num_microbatches} microbatch(es), but BatchNorm requires at least "
            f"2 images in each; choose --batch-size {2 * num_microbatches} or more, or a backbone without BatchNorm, "
            "such as convnext_atto"
        )


@torch.no_grad()
def ema_update(target: nn.Module, source: nn.Module, momentum: float) -> None:
    """Update `target` to momentum · target + (1 - momentum) · source, parameters and buffers; integers are copied."""
    targets, sources = list(target.state_dict().values()), list(source.state_dict().values())
    floats = [pair for pair in zip(targets, sources, strict=True) if pair[0].is_floating_point()]
    torch._foreach_lerp_([pair[0] for pair in floats], [pair[1] for pair in floats], 1 - momentum)
    for target_tensor, source_tensor in zip(targets, sources, strict=True):
        if not target_tensor.is_floating_point():
            target_tensor.copy_(source_tensor)
