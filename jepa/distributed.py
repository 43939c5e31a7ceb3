"""Training on several processes under torchrun: start-up, wrapping of models, and differentiable reductions."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.nn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jepa.config import InputError

__all__ = [
    "all_sum",
    "any_true",
    "barrier",
    "is_main",
    "keep_freed_memory",
    "main_first",
    "pick_device",
    "rank",
    "session",
    "sync_batchnorm",
    "without_sync",
    "world_size",
    "wrapped",
]

TIMEOUT = timedelta(hours=2)  # the other processes wait while the first one indexes files, which may be millions

# parameters of mallopt, from glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MMAP_THRESHOLD_BYTES = 32 << 20  # the largest value that glibc accepts
TRIM_THRESHOLD_BYTES = 2_000_000_000


# Start-up


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of memory instead of returning them to the system. No effect on other C libraries.

    Otherwise, activations of several megabytes are mapped and unmapped in every layer, and every step pays for the page
    faults (measured: EXPERIMENTS.md, entry "Training speed").
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)


def pick_device(name: str) -> torch.device:
    """Return the device named `auto`, `cpu`, `cuda`, `cuda:1` or `mps`. Under torchrun, each process gets its own GPU.

    Raises `InputError` if there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device is '{name}'; it takes auto, cpu, cuda, cuda:1 or mps") from error
    if device.type not in ("cpu", "cuda", "mps") or (device.type == "mps" and not torch.backends.mps.is_available()):
        raise InputError(f"device is '{name}', which is not available; it takes auto, cpu, cuda, cuda:1 or mps")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError(f"device is '{name}', but torch finds no CUDA GPU; leave --device out to use the CPU")
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if device.index >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise InputError(f"device is '{device}', but there are {count} GPUs; it takes cuda:0 to cuda:{count - 1}")
        torch.cuda.set_device(device)
    return device


@contextmanager
def session(device: torch.device) -> Iterator[None]:
    """Join the process group if torchrun started this process, and leave it at the end."""
    if not {"WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


# Processes


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this is the process that writes the run folder and prints."""
    return rank() == 0


def barrier() -> None:
    """Wait until all processes get here."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """Run a block in the first process before the others, which then find its files on the disk."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def all_sum(x: Tensor) -> Tensor:
    """Sum a tensor over all processes. Gradients are summed over them as well."""
    return torch.distributed.nn.all_reduce(x) if world_size() > 1 else x


def any_true(flag: int | bool, device: torch.device) -> bool:
    """Return whether the flag is set in any process."""
    if world_size() == 1:
        return bool(flag)
    flags = torch.tensor(float(bool(flag)), device=device)
    dist.all_reduce(flags)
    return bool(flags > 0)


# Models


@contextmanager
def wrapped(model: nn.Module) -> Iterator[nn.Module]:
    """Wrap a model so that its gradients are averaged over processes, if there are several.

    The reducer is deleted at the end. If it is the last object that refers to the process group, torch destroys the
    group while it holds Python's global lock. Threads of gloo may be waiting for this lock, and the process never ends.
    """
    if world_size() == 1:
        yield model
        return
    parallel = DistributedDataParallel(model, broadcast_buffers=False)
    try:
        yield parallel
    finally:
        del parallel.reducer, parallel.logger


def without_sync(model: nn.Module, skip: bool) -> AbstractContextManager[None]:
    """Do not average gradients within a block if `skip`, as in all microbatches of a step but the last."""
    return model.no_sync() if skip and isinstance(model, DistributedDataParallel) else nullcontext()


class GlobalBatchNorm(nn.Module):
    """BatchNorm with the statistics of all processes, for the CPU, where torch's SyncBatchNorm does not work.

    It replaces a BatchNorm of torch, or one of timm with its activation, and has the same parameters and buffers.
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
        self.activation = nn.Sequential(*(getattr(local, name) for name in ("drop", "act") if hasattr(local, name)))
        self.train(local.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (B, D, …) and apply the activation."""
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean, var = self.update_statistics(x) if self.training else (self.running_mean, self.running_var)
        scale = self.weight * torch.rsqrt(var + self.eps)
        normed = x * scale.view(shape) + (self.bias - mean * scale).view(shape)
        return self.activation(normed.to(x.dtype))  # type: ignore[no-any-return]

    def update_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance (D,) over all processes, and update the running ones."""
        values = x.to(torch.promote_types(x.dtype, torch.float32)).transpose(0, 1).flatten(1)  # (D, N)
        count = values.shape[1] * world_size()
        mean = all_sum(values.sum(1)) / count
        squares = all_sum((values - mean[:, None]).square().sum(1))
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(squares / (count - 1), self.momentum)
        return mean, squares / count


def sync_batchnorm(model: nn.Module) -> None:
    """Replace every BatchNorm of a model by one with the statistics of all processes, if there are several."""
    if world_size() == 1:
        return
    if next(model.parameters()).device.type == "cuda":
        from timm.layers import convert_sync_batchnorm

        convert_sync_batchnorm(model)
        return
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            model.set_submodule(path, GlobalBatchNorm(module))
