"""Several processes under torchrun: start-up, wrapping and reductions that gradients flow through."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.nn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jepa.config import InputError

WAIT = timedelta(hours=2)  # the first process may have millions of files to index

__all__ = [
    "all_sum",
    "any_true",
    "barrier",
    "is_main",
    "main_first",
    "pick_device",
    "rank",
    "session",
    "sync_batchnorm",
    "without_sync",
    "world_size",
    "wrap",
]


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Say whether this process writes the run folder and the screen."""
    return rank() == 0


def barrier() -> None:
    """Wait for the other processes."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """Let the first process go through a block before the others, which then find what it left on the disk."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def all_sum(x: Tensor) -> Tensor:
    """Sum a tensor over the processes, differentiably: its gradient is summed over them too."""
    return torch.distributed.nn.all_reduce(x) if world_size() > 1 else x


def any_true(flag: int | bool, device: torch.device) -> bool:
    """Say whether the flag is set on any process, so that all of them act on the same step."""
    if world_size() == 1:
        return bool(flag)
    flags = torch.tensor(float(bool(flag)), device=device)
    dist.all_reduce(flags)
    return bool(flags > 0)


def pick_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:1` or `mps` into a device; under torchrun each process takes its own GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device is '{name}'; it takes auto, cpu, cuda, cuda:1 or mps") from error
    if device.type not in ("cpu", "cuda", "mps") or (device.type == "mps" and not torch.backends.mps.is_available()):
        raise InputError(f"device is '{name}', which is not here; it takes auto, cpu, cuda, cuda:1 or mps")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError(f"device is '{name}', but torch sees no CUDA GPU here; leave --device out to use the CPU")
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if device.index >= torch.cuda.device_count():
            raise InputError(f"device is '{device}', but there are {torch.cuda.device_count()} GPUs, from cuda:0")
        torch.cuda.set_device(device)
    return device


@contextmanager
def session(device: torch.device) -> Iterator[None]:
    """Join the other processes where torchrun started this one, and leave them at the end."""
    if not {"WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=WAIT)
    try:
        yield
    finally:
        # What a model holds of the group must go first: torch's Reducer, if it is the last to hold it, takes it down
        # with Python's lock in hand, for which gloo's threads may be waiting, and the process never ends.
        for model in _wrapped:
            del model.reducer, model.logger
        _wrapped.clear()
        dist.destroy_process_group()


def wrap(model: nn.Module) -> nn.Module:
    """Average gradients over the processes, where there are several."""
    if world_size() == 1:
        return model
    _wrapped.append(DistributedDataParallel(model, broadcast_buffers=False))
    return _wrapped[-1]


_wrapped: list[DistributedDataParallel] = []  # in this session


class GlobalBatchNorm(nn.Module):
    """BatchNorm over the batches of all processes, by a reduction that gradients flow through; for the CPU.

    Takes the place of one of torch's or timm's (with its activation), under the same names of parameters and buffers.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, local: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.weight, self.bias = local.weight, local.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(local, name))
        assert local.momentum is not None
        self.eps, self.momentum = local.eps, local.momentum
        self.after = nn.Sequential(*(getattr(local, name) for name in ("drop", "act") if hasattr(local, name)))
        self.train(local.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, D, …)."""
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean, var = self.measure(x) if self.training else (self.running_mean, self.running_var)
        factor = self.weight * torch.rsqrt(var + self.eps)
        normed = x * factor.view(shape) + (self.bias - mean * factor).view(shape)
        return self.after(normed.to(x.dtype))  # type: ignore[no-any-return]

    def measure(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance (D,) over all processes, and note them."""
        rows = x.to(torch.promote_types(x.dtype, torch.float32)).transpose(0, 1).flatten(1)
        count = rows.shape[1] * world_size()
        mean = all_sum(rows.sum(1)) / count
        squares = all_sum((rows - mean[:, None]).square().sum(1))
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(squares / (count - 1), self.momentum)
        return mean, squares / count


def sync_batchnorm(model: nn.Module) -> None:
    """Let every BatchNorm of a model see the batches of all processes, where there are several."""
    if world_size() == 1:
        return
    if next(model.parameters()).device.type == "cuda":
        from timm.layers import convert_sync_batchnorm

        convert_sync_batchnorm(model)
        return
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            model.set_submodule(path, GlobalBatchNorm(module))


def without_sync(model: nn.Module, skip: bool) -> AbstractContextManager[None]:
    """Leave out the averaging of gradients for all but the last of accumulated parts."""
    return model.no_sync() if skip and isinstance(model, DistributedDataParallel) else nullcontext()
