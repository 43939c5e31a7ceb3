"""Stateless random numbers: each draw is a function of (seed, step, purpose, position in the global batch).

Shared draws do not depend on the position. The numbers do not change when a run is resumed, or with the number of
processes or microbatches. There is no generator state to save. Drawing for a whole batch takes a few tensor operations
on the device.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Rng", "seed_torch"]

_GOLDEN = -7046029254386353131  # the increment of SplitMix64, 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros, unlike `>>` in torch, which fills with the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """Apply the finalizer of SplitMix64 (Steele et al. 2014), in which every input bit affects every output bit."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


@dataclass(frozen=True)
class Rng:
    """Random number generator for the images of one batch in one step.

    `positions` (B,) are the positions of the images in the global batch. Random numbers are on the same device.
    """

    seed: int
    step: int
    positions: Tensor
    _drawn: set[str] = field(default_factory=set, repr=False, compare=False)

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """Draw floats in [0, 1) of shape (B, *shape).

        The numbers depend on `purpose`, a name for their use. Raises `ValueError` if the purpose was already used, as a
        second draw would return the same numbers.
        """
        return self._draw(purpose, self.positions, shape)

    def shared(self, purpose: str, *shape: int) -> Tensor:
        """Draw floats in [0, 1) of a shape that are the same for all images, processes and microbatches of the step.

        Raises `ValueError` if the purpose was already used, by this method or by `uniform`.
        """
        first = torch.zeros(1, dtype=torch.long, device=self.positions.device)
        numbers: Tensor = self._draw(purpose, first, shape)[0]
        return numbers

    def shared_normal(self, purpose: str, *shape: int) -> Tensor:
        """Draw standard normal numbers like `shared`, by the Box-Muller transform."""
        radius, angle = self.shared(purpose, 2, *shape)
        numbers: Tensor = (-2 * (1 - radius).log()).sqrt() * (2 * math.pi * angle).cos()
        return numbers

    def _draw(self, purpose: str, positions: Tensor, shape: tuple[int, ...]) -> Tensor:
        if purpose in self._drawn:
            raise ValueError(
                f"random numbers for '{purpose}' were already drawn in this step; use a distinct purpose per draw, and "
                "view=0, view=1, … for several crops of an image"
            )
        self._drawn.add(purpose)
        name = f"{self.seed}/{self.step}/{purpose}".encode()
        key = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True)
        count = math.prod(shape)
        index = torch.arange(count, device=positions.device)
        base = _mix(positions.long() * _GOLDEN + key)
        bits = _mix(base[:, None] + (index + 1) * _GOLDEN)
        return (_shift(bits, 40).float() / (1 << 24)).view(-1, *shape)  # a float32 has 24 significant bits


def seed_torch(seed: int, step: int, rank: int) -> None:
    """Seed torch's global generators for one step.

    This is for modules such as dropout that use them, so that resumed runs draw the same numbers. Unlike those of
    `Rng`, the numbers depend on the number of processes.
    """
    name = f"{seed}/{step}/{rank}".encode()
    torch.manual_seed(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True))
