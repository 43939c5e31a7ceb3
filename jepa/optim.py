"""Optimizer, and schedules of the learning rate, weight decay and EMA momentum."""

from __future__ import annotations

import math

import torch
from torch import nn

from jepa.config import OptimConfig

__all__ = ["build_optimizer", "learning_rate", "momentum", "set_schedule", "weight_decay"]


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Return the learning rate: linear warmup from `lr_start` to `lr`, then cosine decay to `lr_end` at the last step.

    The warmup takes at most a quarter of the steps.
    """
    warmup = min(config.warmup, steps // 4)
    if step < warmup:
        return config.lr_start + (config.lr - config.lr_start) * step / warmup
    return _cosine(config.lr, config.lr_end, (step - warmup) / max(1, steps - warmup))


def weight_decay(step: int, steps: int, config: OptimConfig) -> float:
    """Return the weight decay, which follows a cosine from `weight_decay` to `weight_decay_end`."""
    return _cosine(config.weight_decay, config.weight_decay_end, step / steps)


def momentum(progress: float, half_life: float, half_life_end: float) -> float:
    """Return the EMA momentum after a fraction `progress` of the run.

    A half-life in steps corresponds to a momentum of 0.5 ** (1 / half_life). The momentum is interpolated linearly.
    """
    start, end = math.exp2(-1 / half_life), math.exp2(-1 / half_life_end)
    return start + (end - start) * progress


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Build AdamW, with no weight decay for one-dimensional parameters (biases, norms, tokens)."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "decays": True},
        {
            "params": [parameter for parameter in parameters if parameter.ndim <= 1],
            "decays": False,
            "weight_decay": 0.0,
        },
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def set_schedule(optimizer: torch.optim.Optimizer, step: int, steps: int, config: OptimConfig) -> float:
    """Set the learning rate and weight decay of a step, and return the learning rate."""
    lr = learning_rate(step, steps, config)
    for group in optimizer.param_groups:
        group["lr"] = lr
        if group["decays"]:
            group["weight_decay"] = weight_decay(step, steps, config)
    return lr
