"""Nearest images in feature space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["nearest"]

BATCH_SIZE = 1000  # number of queries that are compared with the bank at a time


def nearest(queries: Tensor, bank: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the cosine similarities (Q, count) and positions of the nearest features of a bank (N, D) to queries.

    All features are centered on the mean of the bank, as in kNN.
    """
    mean = bank.mean(0)
    unit = F.normalize(bank - mean, dim=-1)
    found = [(F.normalize(x - mean, dim=-1) @ unit.T).topk(min(count, len(bank))) for x in queries.split(BATCH_SIZE)]
    return torch.cat([top.values for top in found]), torch.cat([top.indices for top in found])
