"""Decode tokens into pixels by ridge regression, to see what they contain."""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor

__all__ = ["RidgeDecoder", "r2_score"]

PENALTIES = (*(10.0**power for power in range(-6, 3)), math.inf)  # relative to the mean variance of the inputs
HELD_OUT = 10  # every tenth input chooses the penalty


class RidgeDecoder(NamedTuple):
    """A linear map from inputs (N, D) to outputs (N, P), fitted by ridge regression."""

    input_mean: Tensor  # (D,)
    output_mean: Tensor  # (P,)
    weights: Tensor  # (D, P)

    @classmethod
    def fit(cls, x: Tensor, y: Tensor, held_out: Tensor | None = None) -> Self:
        """Fit inputs (N, D) to outputs (N, P).

        The inputs `held_out` (N,), by default every tenth, choose the penalty: the largest one whose error is within
        one standard error of the smallest, which for inputs that say nothing about the outputs is infinity.
        """
        if held_out is None:
            held_out = torch.arange(len(x)) % HELD_OUT == HELD_OUT - 1
        chosen = PENALTIES[0]
        if int(held_out.sum()) > 1:
            candidates = cls._candidates(x[~held_out], y[~held_out], PENALTIES)
            errors = torch.stack([(found.decode(x[held_out]) - y[held_out]).square().mean(1) for found in candidates])
            means = errors.mean(1)
            best = errors[means.argmin()]
            limit = float(best.mean() + best.std() / len(best) ** 0.5)
            within = [penalty for penalty, mean in zip(PENALTIES, means.tolist(), strict=True) if mean <= limit]
            chosen = max(within, default=math.inf)  # none if errors overflow
        (decoder,) = cls._candidates(x, y, (chosen,))
        return decoder

    @classmethod
    def _candidates(cls, x: Tensor, y: Tensor, penalties: tuple[float, ...]) -> list[Self]:
        """Return the decoder of each penalty; the smaller of X'X and XX' is decomposed."""
        x_mean, y_mean = x.double().mean(0), y.double().mean(0)
        centered, outputs = x.double() - x_mean, y.double() - y_mean
        is_wide = len(x) < x.shape[1]
        values, axes = torch.linalg.eigh(centered @ centered.T if is_wide else centered.T @ centered)
        values, projected = values.clamp(min=0), axes.T @ (outputs if is_wide else centered.T @ outputs)
        scale = (values.sum() / x.shape[1]).clamp(min=1e-300)
        weights = [axes @ (projected / (values + penalty * scale)[:, None]) for penalty in penalties]
        return [cls(x_mean.float(), y_mean.float(), (centered.T @ w if is_wide else w).float()) for w in weights]

    def decode(self, x: Tensor) -> Tensor:
        """Map inputs (…, D) to outputs (…, P)."""
        return (x - self.input_mean) @ self.weights + self.output_mean


def r2_score(decoded: Tensor, actual: Tensor, mean: Tensor) -> float:
    """Return the fraction of the variance of outputs (N, P) that is decoded.

    It is 1 if all are right, and 0 if each is `mean` (P,), which is what one knows without an input.
    """
    errors, spread = ((x - actual).double().square().sum() for x in (decoded, mean))
    return float(1 - errors / spread.clamp(min=1e-300))
