"""InfoNCE: predictions are matched with their targets among those of all images of the global batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.distributed import all_sum, rank, world_size
from jepa.objectives.base import full_precision

__all__ = ["info_nce"]


def info_nce(predicted: Tensor, targets: Tensor, temperature: float = 0.1) -> Tensor:
    """Return the InfoNCE loss (van den Oord et al. 2018, arXiv 1807.03748) of predictions (B, D) and targets (B, D).

    Similarities are cosines, divided by the temperature. The loss is averaged over both directions, from predictions to
    targets and back, as in CLIP. The other images of all processes are the negatives; with gradient accumulation, those
    of one microbatch.
    """
    with torch.autocast(predicted.device.type, enabled=False):
        predicted, targets = (gather(F.normalize(full_precision(x), dim=-1)) for x in (predicted, targets))
        logits = predicted @ targets.T / temperature
        labels = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def gather(x: Tensor) -> Tensor:
    """Return the rows (B, D) of all processes, in the order of ranks, with gradients to each of them."""
    if world_size() == 1:
        return x
    rows = [torch.zeros_like(x)] * rank() + [x] + [torch.zeros_like(x)] * (world_size() - 1 - rank())
    return all_sum(torch.cat(rows))
