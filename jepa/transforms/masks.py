"""Context and target masks of I-JEPA as token indices, sampled per image on the device.

Shapes: B images, M targets per image, N tokens in the grid, K context tokens, T tokens per target.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from jepa.config import InputError, MaskConfig
from jepa.rng import Rng

__all__ = ["MaskSampler", "Masks"]

MAX_PADDING = 0.10  # maximum expected fraction of padding, which determines K and T
NUM_CALIBRATION_MASKS = 4096  # number of masks drawn once, with a fixed seed, to determine K and T


class Masks(NamedTuple):
    """Token indices, where tokens are numbered in raster order. Invalid indices are padding."""

    context: Tensor  # (B, K) long
    context_valid: Tensor  # (B, K) bool
    targets: Tensor  # (B, M, T) long
    targets_valid: Tensor  # (B, M, T) bool


class MaskSampler:
    """Samples masks for batches of images with a given grid.

    K and T are determined by the grid and the config. Longer contexts and targets are randomly subsampled, and shorter
    ones are padded, so masks have static shapes, do not depend on the batch and have no positional bias. Raises
    `InputError` if a single target can leave fewer than `min_context` tokens.
    """

    def __init__(self, config: MaskConfig, grid: tuple[int, int]) -> None:
        self.config, self.grid = config, grid
        self.num_tokens = grid[0] * grid[1]
        context, targets = self._sample_regions(Rng(0, 0, torch.arange(NUM_CALIBRATION_MASKS)))
        is_measured = config.strategy in ("random", "rasterized")  # strategies without blocks
        largest = int(targets.sum(-1).max()) if is_measured else self._largest_target()
        if self.num_tokens - largest < config.min_context:
            raise InputError(
                f"a target of up to {largest} of {self.num_tokens} tokens (grid {grid[0]}x{grid[1]}) leaves fewer than "
                f"masks.min_context = {config.min_context} for the context; choose a smaller "
                "--objective.masks.target-scale or a smaller --backbone.patch"
            )
        context_sizes, target_sizes = context.sum(-1), targets.sum(-1)
        limit = max(config.min_context, int(config.context_limit * self.num_tokens))
        self.num_context = min(limit, _static_size(context_sizes))
        self.num_targets, self.target_size = targets.shape[1], _static_size(target_sizes[target_sizes > 0])
        kept = context_sizes.clamp(max=self.num_context).sum()
        self.context_kept = float(kept / context_sizes.sum())
        self.context_padding = 1 - float(kept) / (NUM_CALIBRATION_MASKS * self.num_context)

    def sample(self, rng: Rng) -> Masks:
        """Sample masks for the images of `rng`. With `shared`, all images of the global batch have the same masks."""
        batch_size = len(rng.positions)
        if self.config.shared:
            rng = Rng(rng.seed, rng.step, torch.zeros_like(rng.positions[:1]))
        context, targets = self._sample_regions(rng)
        priority = rng.uniform("thin", targets.shape[1] + 1, self.num_tokens)
        masks = Masks(
            *_subsample(context, priority[:, 0], self.num_context),
            *_subsample(targets, priority[:, 1:], self.target_size),
        )
        return Masks(*(x.expand(batch_size, *x.shape[1:]) for x in masks)) if self.config.shared else masks

    def _sample_regions(self, rng: Rng) -> tuple[Tensor, Tensor]:
        """Sample boolean masks of the context (B, N) and the targets (B, M, N)."""
        strategy = self.config.strategy
        if strategy == "random":
            return self._sample_random(rng)
        if strategy == "rasterized":
            return self._sample_rasterized(rng)
        count = self.config.targets if strategy == "multiblock" else 1
        u = rng.uniform("target", count, 4)
        targets, remaining = self._leave_context(self._blocks(u, self.config.target_scale, self.config.target_aspect))
        if strategy == "block":
            return remaining, targets
        u = rng.uniform("context", 1, 4)
        context = self._blocks(u, self.config.context_scale, aspect=(1.0, 1.0))[:, 0] & remaining
        is_large_enough = context.sum(-1, keepdim=True) >= self.config.min_context
        return torch.where(is_large_enough, context, remaining), targets

    def _blocks(self, u: Tensor, scale: tuple[float, float], aspect: tuple[float, float]) -> Tensor:
        """Map uniform numbers (B, M, 4) to boolean masks of rectangles (B, M, N).

        The area and the aspect ratio are uniform within their limits, and the position over all valid positions.
        """
        height, width = self._sides(
            scale[0] + u[..., 0] * (scale[1] - scale[0]), aspect[0] + u[..., 1] * (aspect[1] - aspect[0])
        )
        rows, columns = self.grid
        top = (u[..., 2] * (rows - height + 1)).floor()
        left = (u[..., 3] * (columns - width + 1)).floor()
        y = torch.arange(rows, device=u.device)
        x = torch.arange(columns, device=u.device)
        inside_y = (y >= top[..., None]) & (y < (top + height)[..., None])
        inside_x = (x >= left[..., None]) & (x < (left + width)[..., None])
        return (inside_y[..., :, None] & inside_x[..., None, :]).flatten(-2)

    def _sides(self, scale: Tensor, aspect: Tensor) -> tuple[Tensor, Tensor]:
        """Return the height and width in whole tokens.

        If one side does not fit into the grid, it is clipped and the other enlarged to keep the area.
        """
        rows, columns = self.grid
        area = scale * self.num_tokens
        height = (area * aspect).sqrt().round().clamp(1, rows)
        width = (area / aspect).sqrt().round().clamp(1, columns)
        enlarged_width = (area / height).round().clamp(1, columns)
        enlarged_height = (area / width).round().clamp(1, rows)
        height_fits = (area * aspect).sqrt().round() <= rows
        width_fits = (area / aspect).sqrt().round() <= columns
        return torch.where(width_fits, height, enlarged_height), torch.where(height_fits, width, enlarged_width)

    def _largest_target(self) -> int:
        """Return the maximum number of tokens in a target block."""
        scale = torch.tensor(self.config.target_scale[1])
        aspect = torch.linspace(*self.config.target_aspect, 1000)
        height, width = self._sides(scale.expand(1000), aspect)
        return int((height * width).max())

    def _leave_context(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Drop targets (B, M, N) that would leave fewer than `min_context` tokens.

        Returns the remaining targets and the uncovered tokens.
        """
        covered = torch.zeros_like(targets[:, 0])
        kept = []
        for target in targets.unbind(1):
            with_target = covered | target
            fits = (~with_target).sum(-1, keepdim=True) >= self.config.min_context
            covered = torch.where(fits, with_target, covered)
            kept.append(target & fits)
        return torch.stack(kept, 1), ~covered

    def _sample_random(self, rng: Rng) -> tuple[Tensor, Tensor]:
        """Sample scattered target tokens. All other tokens are context."""
        u = rng.uniform("target", self.num_tokens + 1)
        low, high = self.config.target_scale
        count = ((low + u[:, :1] * (high - low)) * self.num_tokens).round().clamp(min=1)
        rank = u[:, 1:].argsort(-1).argsort(-1)
        target = rank < count
        return ~target, target[:, None]

    def _sample_rasterized(self, rng: Rng) -> tuple[Tensor, Tensor]:
        """Sample one quadrant as the context. The other three are the targets."""
        rows, columns = self.grid
        u = rng.uniform("target", 3)
        # the middle row or column of an odd side is assigned to a random half
        half_y = (rows + (u[:, 1] * (1 + rows % 2)).floor()).div(2, rounding_mode="floor")
        half_x = (columns + (u[:, 2] * (1 + columns % 2)).floor()).div(2, rounding_mode="floor")
        y = torch.arange(rows, device=u.device) >= half_y[:, None]
        x = torch.arange(columns, device=u.device) >= half_x[:, None]
        quadrant = (2 * y[:, :, None] + x[:, None, :].int()).flatten(1)
        context = (u[:, :1] * 4).floor()
        targets = (context + torch.arange(1, 4, device=u.device)) % 4
        return quadrant == context, quadrant[:, None] == targets[..., None]


def _subsample(region: Tensor, priority: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Randomly subsample a region (…, N) to at most `size` tokens.

    Returns the indices (…, size) and a mask that is False for padding.
    """
    values, indices = torch.where(region, priority + 1, priority).topk(size, dim=-1)
    return indices, values >= 1


def _static_size(sizes: Tensor) -> int:
    """Return the largest K for which padding sets of these sizes to K adds at most a fraction `MAX_PADDING`."""
    sizes = sizes.double()
    for size in range(int(sizes.max()), 1, -1):
        if float((size - sizes).clamp(min=0).mean()) <= MAX_PADDING * size:
            return size
    return max(1, math.floor(float(sizes.min())))
