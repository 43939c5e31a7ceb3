"""Distributed training under torchrun: setup, model wrappers and differentiable reductions."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Literal

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
    "has_bf16_instructions",
    "is_main",
    "keep_freed_memory",
    "main_first",
    "pick_device",
    "pick_precision",
    "rank",
    "session",
    "sync_batchnorm",
    "without_sync",
    "world_size",
    "wrapped",
]

TIMEOUT = timedelta(hours=2)  # the others wait while rank 0 indexes the dataset, possibly millions of files

# mallopt parameters from glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MMAP_THRESHOLD_BYTES = 32 << 20  # maximum that glibc accepts
TRIM_THRESHOLD_BYTES = 2_000_000_000


# Setup


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the system. Has no effect with other C libraries.

    Otherwise, activations of several megabytes are mapped and unmapped in every layer, and every step incurs page
    faults (see "Training speed" in EXPERIMENTS.md).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)


def pick_device(name: str) -> torch.device:
    """Return the device named `auto`, `cpu`, `cuda`, `cuda:1` or `mps`. Under torchrun, each process uses its own GPU.

    Raises `InputError` if the device does not exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device must be auto, cpu, cuda, cuda:1 or mps, got '{name}'") from error
    if device.type not in ("cpu", "cuda", "mps") or (device.type == "mps" and not torch.backends.mps.is_available()):
        raise InputError(f"the device '{name}' is not available; use --device auto to select one automatically")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError(
                f"the device '{name}' is not available, because torch finds no CUDA GPU; remove --device to use the CPU"
            )
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if device.index >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise InputError(f"device must be between cuda:0 and cuda:{count - 1} with {count} GPU(s), got '{device}'")
        torch.cuda.set_device(device)
    return device


def pick_precision(name: Literal["auto", "fp32", "bf16"], device: torch.device) -> Literal["fp32", "bf16"]:
    """Return the precision named `auto`, `fp32` or `bf16`; auto is bf16 where the device multiplies it faster."""
    if name != "auto":
        return name
    return "bf16" if device.type == "cuda" or (device.type == "cpu" and has_bf16_instructions()) else "fp32"


def has_bf16_instructions() -> bool:
    """Return whether this is an x86 CPU with instructions for bf16, under Linux: AMD from Zen 4, Intel Sapphire Rapids.

    Other CPUs compute bf16 by way of fp32, which takes longer than fp32 alone.
    """
    with suppress(OSError):
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    return False


@contextmanager
def session(device: torch.device) -> Iterator[None]:
    """Join the process group if started by torchrun, and leave it at the end of a `with` block."""
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
    """Return the rank of this process, or 0 if training is not distributed."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this is rank 0, which prints and writes the run folder."""
    return rank() == 0


def barrier() -> None:
    """Wait until all processes reach this point."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """Run a `with` block on rank 0 before the other ranks, which can then use the files that it wrote."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def all_sum(x: Tensor) -> Tensor:
    """Sum a tensor over all processes. In the backward pass, gradients are summed as well."""
    return torch.distributed.nn.all_reduce(x) if world_size() > 1 else x


def any_true(flag: int | bool, device: torch.device) -> bool:
    """Return whether the flag is set on any process."""
    if world_size() == 1:
        return bool(flag)
    flags = torch.tensor(float(bool(flag)), device=device)
    dist.all_reduce(flags)
    return bool(flags > 0)


# Models


@contextmanager
def wrapped(model: nn.Module) -> Iterator[nn.Module]:
    """Wrap a model to average its gradients over processes, if there is more than one.

    The reducer is deleted at the end. Otherwise the reducer may hold the last reference to the process group. torch
    then destroys the group while holding the GIL, which gloo threads may be waiting for, and the process deadlocks.
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
    """Return a context that skips gradient averaging if `skip`, for all but the last microbatch."""
    return model.no_sync() if skip and isinstance(model, DistributedDataParallel) else nullcontext()


class GlobalBatchNorm(nn.Module):
    """BatchNorm with statistics over all processes, for the CPU, which SyncBatchNorm does not support.

    Replaces a torch BatchNorm, or a timm BatchNorm with activation, and has the same parameters and buffers.
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
        """Normalize x (B, D, …) and apply the activation."""
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean, var = self.update_statistics(x) if self.training else (self.running_mean, self.running_var)
        scale = self.weight * torch.rsqrt(var + self.eps)
        normed = x * scale.view(shape) + (self.bias - mean * scale).view(shape)
        return self.activation(normed.to(x.dtype))  # type: ignore[no-any-return]

    def update_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and variance (D,) over all processes, and update the running statistics."""
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
    """Replace each BatchNorm of a model by one with statistics over all processes, if there is more than one."""
    if world_size() == 1:
        return
    if next(model.parameters()).device.type == "cuda":
        from timm.layers import convert_sync_batchnorm

        convert_sync_batchnorm(model)
        return
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            model.set_submodule(path, GlobalBatchNorm(module))
