"""Stateless randomness: every draw is a function of (seed, step, purpose, row of the global batch).

A resumed run, another number of processes or of accumulated parts then draws the same numbers, with no generator
state to save; and a draw for a whole batch is a few tensor operations on the device.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Rng", "seed_torch"]

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit number, the increment of SplitMix64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right without the sign, which torch's `>>` drags along."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele et al. 2014): every input bit moves every output bit."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


@dataclass(frozen=True)
class Rng:
    """Random numbers for the rows of one batch.

    `rows` (B,) are the positions in the global batch of this step; it also says on which device to draw.
    """

    seed: int
    step: int
    rows: Tensor

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """Draw floats in [0, 1), of shape (B, *shape); the same purpose gives the same numbers again."""
        name = f"{self.seed}/{self.step}/{purpose}".encode()
        key = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True)
        count = math.prod(shape)
        index = torch.arange(count, device=self.rows.device)
        row = _mix(self.rows.long() * _GOLDEN + key)
        bits = _mix(row[:, None] + (index + 1) * _GOLDEN)
        return (_shift(bits, 40).float() / (1 << 24)).view(-1, *shape)  # 24 bits: all that a float32 in [0, 1) holds


def seed_torch(seed: int, step: int, rank: int) -> None:
    """Seed torch's own generators for a step, for what modules draw themselves, such as noise or dropout.

    A resumed run then draws the same; unlike the draws of `Rng`, another number of processes does not.
    """
    name = f"{seed}/{step}/{rank}".encode()
    torch.manual_seed(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True))
