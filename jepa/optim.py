"""Optimizer, and schedules of the learning rate, weight decay and EMA momentum."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from jepa import distributed
from jepa.config import OptimConfig
from jepa.torchvision_guard import guard

__all__ = ["build_optimizer", "learning_rate", "momentum", "progress", "set_schedule", "weight_decay"]


def progress(step: int, steps: int) -> float:
    """Return the position of a step in a run of `steps` steps: 0 for the first one, 1 for the last one."""
    return step / max(1, steps - 1)


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Return the learning rate of a step: linear warmup from `lr_start` to `lr`, then cosine decay to `lr_end`.

    The first step has `lr_start` (without warmup `lr`), step number `warmup` has `lr`, and the last step has `lr_end`;
    steps count from 0. The warmup takes at most a quarter of the steps.
    """
    warmup = min(config.warmup, steps // 4)
    if step < warmup:
        return config.lr_start + (config.lr - config.lr_start) * step / warmup
    return _cosine(config.lr, config.lr_end, progress(step - warmup, steps - warmup))


def weight_decay(step: int, steps: int, config: OptimConfig) -> float:
    """Return the weight decay of a step: a cosine from `weight_decay` at the first to `weight_decay_end` at the last.

    The I-JEPA paper describes a linear increase (appendix A); its code, like this function, uses a cosine.
    """
    return _cosine(config.weight_decay, config.weight_decay_end, progress(step, steps))


def momentum(progress: float, half_life: float, half_life_end: float) -> float:
    """Return the EMA momentum at a position in the run, 0 for the first step and 1 for the last one.

    A half-life in steps corresponds to a momentum of 0.5 ** (1 / half_life). The momentum is interpolated linearly.
    """
    start, end = math.exp2(-1 / half_life), math.exp2(-1 / half_life_end)
    return start + (end - start) * progress


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(
    model: nn.Module, config: OptimConfig, lr_scales: Mapping[nn.Parameter, float] | None = None
) -> torch.optim.Optimizer:
    """Build the optimizer, with no weight decay for one-dimensional parameters (biases, norms, tokens).

    Muon (Jordan et al. 2024) is that of timm: the updates of matrices, and of convolutions as matrices with one row per
    output channel, are orthogonalized and scaled to the root mean square of AdamW's. It does so in bf16, but in fp32 on
    CPUs without instructions for bf16, where bf16 takes 16 to 50 times as long. `lr_scales` are factors of the learning
    rate of some parameters, such as those of `layer_scales`.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    scales = lr_scales or {}
    groups: list[dict[str, Any]] = []
    for scale in sorted({scales.get(parameter, 1.0) for parameter in parameters}, reverse=True):
        chosen = [parameter for parameter in parameters if scales.get(parameter, 1.0) == scale]
        matrices = [parameter for parameter in chosen if parameter.ndim > 1]
        others = [parameter for parameter in chosen if parameter.ndim <= 1]
        groups.append({"params": matrices, "decays": True, "lr_scale": scale})
        groups.append({"params": others, "decays": False, "weight_decay": 0.0, "lr_scale": scale})
    if config.kind == "muon":
        guard()
        from timm.optim.muon import Muon  # imports torchvision

        optimizer: torch.optim.Optimizer = Muon(groups, lr=config.lr, betas=config.betas)
        if all(parameter.device.type == "cpu" for parameter in parameters) and not distributed.has_bf16_instructions():
            optimizer.step = in_fp32(optimizer.step)  # type: ignore[method-assign]
        return optimizer
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def in_fp32(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return the method `step` of timm's Muon with its orthogonalization in fp32, which timm has no option for."""
    from timm.optim import muon

    @functools.wraps(step)
    def call(*arguments: Any, **options: Any) -> Any:
        original = muon.zeropower_via_newtonschulz
        muon.zeropower_via_newtonschulz = functools.partial(original, dtype=torch.float32)
        try:
            return step(*arguments, **options)
        finally:
            muon.zeropower_via_newtonschulz = original

    return call


def set_schedule(optimizer: torch.optim.Optimizer, step: int, steps: int, config: OptimConfig) -> float:
    """Set the learning rate and weight decay of a step, and return the learning rate, that of parameters of scale 1."""
    lr = learning_rate(step, steps, config)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        if group["decays"]:
            group["weight_decay"] = weight_decay(step, steps, config)
    return lr
