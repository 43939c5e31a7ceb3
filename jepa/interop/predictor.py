"""Predictors as modules of plain tensors, for use in latent space and for export.

Shapes: B images, K context tokens, T target tokens, N tokens of a view, D encoder width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jepa.config import InputError
from jepa.objectives import Objective
from jepa.objectives.ijepa import IJepa
from jepa.objectives.saccade import Saccade
from jepa.transforms.masks import Masks
from jepa.transforms.saccade import Pose

__all__ = ["Movement", "SaccadePredictor", "TokenPredictor", "build_predictor"]

TOLERANCE = 1e-4  # by which a movement may exceed the limits of training, relative to them


@dataclass(frozen=True)
class Movement:
    """A saccade: how the second view lies in the first.

    Each value is a number, or a tensor with one for each image: (B,), and (B, 2) for the shift.
    """

    shift: tuple[float, float] | Tensor = (0.0, 0.0)
    """Shift to the right and downwards, in sides of the first view."""
    rotation: float | Tensor = 0.0
    """Clockwise rotation, in degrees."""
    zoom: float | Tensor = 1.0
    """Side of the second view, relative to the first."""

    def as_tensor(self, count: int, device: torch.device) -> Tensor:
        """Return the movements of `count` images as (B, 4): shift x, shift y, rotation in degrees, zoom."""
        parts = [
            torch.as_tensor(value, dtype=torch.float32, device=device)
            for value in (self.shift, self.rotation, self.zoom)
        ]
        shift = parts[0].expand(count, 2) if parts[0].ndim < 2 else parts[0]
        try:
            return torch.cat([shift, *(part.expand(count)[:, None] for part in parts[1:])], 1)
        except RuntimeError as error:
            shapes = ", ".join(str(tuple(part.shape)) for part in parts)
            raise InputError(
                f"a movement must have one shift (x, y), rotation and zoom, or {count} of each, got shapes {shapes}"
            ) from error


class TokenPredictor(nn.Module):
    """The predictor of an I-JEPA: predicts the target encoder's tokens at positions that the context lacks."""

    inputs = ("context_tokens", "context_positions", "target_positions")

    def __init__(self, objective: IJepa) -> None:
        super().__init__()
        self.predictor, self.grid = objective.predictor, objective.grid
        self.dim = objective.context.backbone.dim

    def forward(self, context_tokens: Tensor, context_positions: Tensor, target_positions: Tensor) -> Tensor:
        """Predict tokens (B, T, D), normalized over D, from tokens (B, K, D) of the context encoder.

        Positions (B, K) and (B, T) are indices in the grid in raster order. All targets are predicted as one block.
        """
        valid = torch.ones_like(context_positions, dtype=torch.bool)
        valid_targets = torch.ones_like(target_positions, dtype=torch.bool)
        masks = Masks(context_positions, valid, target_positions[:, None], valid_targets[:, None])
        predicted: Tensor = self.predictor(context_tokens, masks)[:, 0]
        return predicted

    def check(self, tokens: Tensor, context: Tensor, targets: Tensor) -> None:
        """Raise `InputError` if the inputs of `forward` have other shapes or positions outside of the grid."""
        for positions in (context, targets):
            check_positions(positions, len(tokens), self.grid)
        if tokens.shape[1:] != (context.shape[1], self.dim):
            raise InputError(
                f"context tokens must be (B, {context.shape[1]}, {self.dim}), one for each context position, got "
                f"{tuple(tokens.shape)}; the context encoder returns them: model.context_tokens(images, positions)"
            )


class SaccadePredictor(nn.Module):
    """The predictor of a Saccade JEPA: predicts the teacher's features after a movement."""

    inputs = ("features", "movement")

    def __init__(self, objective: Saccade) -> None:
        super().__init__()
        assert objective.predictor is not None
        self.predictor, self.encode, self.geometry = objective.predictor, objective.code, objective.geometry
        self.takes_tokens = objective.config.predictor != "mlp"
        self.dim = objective.context.backbone.dim

    def forward(self, features: Tensor, movement: Tensor) -> Tensor:
        """Predict features of the same shape after movements (B, 4): shift x, shift y, rotation in degrees, zoom.

        `features` are embeddings (B, D) of the student, or its tokens (B, N, D) if the predictor is a transformer.
        """
        components = self.geometry.normalized(pose_of(movement))
        predicted: Tensor = self.predictor(features, self.encode(components).to(features.dtype))
        return predicted

    def check(self, features: Tensor, movement: Tensor) -> None:
        """Raise `InputError` if features have another shape, or movements are beyond those of training."""
        shape = "(B, N, D) tokens" if self.takes_tokens else "(B, D) embeddings"
        if features.ndim != 2 + self.takes_tokens or features.shape[-1] != self.dim:
            raise InputError(f"the predictor takes {shape} with D = {self.dim}, got {tuple(features.shape)}")
        config, pose = self.geometry.config, pose_of(movement)
        beyond = self.geometry.normalized(pose).abs().amax() > 1 + TOLERANCE
        constant = [
            name
            for name, value, is_trained in (
                ("shift", pose.shift.abs().amax(), config.shift),
                ("rotation", pose.angle.abs().amax(), config.rotation),
                ("zoom", pose.zoom.log().abs().amax(), config.zoom > 1),
            )
            if not is_trained and value > TOLERANCE
        ]
        if constant or beyond or not bool(movement.isfinite().all()):
            raise InputError(
                f"the predictor was trained with shifts up to {self.geometry.max_shift:.3g} view sides, rotations "
                f"up to {config.rotation:g}° and zooms between {1 / config.zoom:.3g} and {config.zoom:.3g}; got "
                f"{_largest(movement)}"
            )


def pose_of(movement: Tensor) -> Pose:
    """Return movements (B, 4) of shift x, shift y, rotation in degrees and zoom as a pose."""
    return Pose(movement[:, :2], movement[:, 2] * (math.pi / 180), movement[:, 3])


def _largest(movement: Tensor) -> str:
    shift, rotation, zoom = movement[:, :2].abs().max(), movement[:, 2].abs().max(), movement[:, 3]
    return f"up to {shift:.3g} view sides, {rotation:.3g}° and zooms {zoom.min():.3g} to {zoom.max():.3g}"


def build_predictor(objective: Objective) -> TokenPredictor | SaccadePredictor | None:
    """Return the predictor of an objective, or None if it has none in latent space."""
    if isinstance(objective, IJepa):
        return TokenPredictor(objective)
    if isinstance(objective, Saccade) and objective.predictor is not None:
        return SaccadePredictor(objective)
    return None


def positions_of(positions: Sequence[int] | Tensor, start: int, count: int, device: torch.device) -> Tensor:
    """Return the token positions (count, K) of images from `start` on; one list (K,) is used for all images."""
    tensor = torch.as_tensor(positions, device=device)
    return tensor.expand(count, -1) if tensor.ndim == 1 else tensor[start : start + count]


def check_positions(positions: Tensor, count: int, grid: tuple[int, int]) -> None:
    """Raise `InputError` unless positions are (count, K) different indices in the grid for each image."""
    if positions.ndim != 2 or len(positions) != count or positions.dtype not in (torch.int64, torch.int32):
        raise InputError(
            f"positions must be integers (K,), or (B, K) with a row for each of {count} images, got {positions.dtype} "
            f"{tuple(positions.shape)}"
        )
    if not positions.shape[1]:
        raise InputError("positions must not be empty")
    low, high = int(positions.min()), int(positions.max())
    if low < 0 or high >= grid[0] * grid[1]:
        raise InputError(
            f"positions must be between 0 and {grid[0] * grid[1] - 1}, indices in the grid of {grid[0]}x{grid[1]} "
            f"tokens in raster order, got {low} to {high}"
        )
    if bool((positions.sort(1).values.diff() == 0).any()):
        raise InputError("positions of an image must be different, got some of them twice")


def check_count(positions: Sequence[int] | Tensor, count: int) -> None:
    """Raise `InputError` if positions are given for each image, but not for as many images as there are."""
    tensor = torch.as_tensor(positions)
    if tensor.ndim == 2 and len(tensor) != count:
        raise InputError(
            f"positions must be (K,), or (B, K) with a row for each of {count} images, got {len(tensor)} rows"
        )
