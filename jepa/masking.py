"""Context and target masks as index tensors: each image's own, sampled on the device, free of positional bias.

Shapes: B images, M targets of an image, N = H·W tokens of the grid, K context tokens, T tokens of a target.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from jepa.config import InputError, MaskConfig
from jepa.rng import Rng

__all__ = ["MaskSampler", "Masks"]

PADDING = 0.10  # K and T are the largest whose expected share of padding stays under this
CALIBRATION = 4096  # masks drawn once, with a seed of their own, to find K and T


class Masks(NamedTuple):
    """Token indices into the grid in raster order; where `valid` is False an index only fills the shape."""

    context: Tensor  # (B, K) long
    context_valid: Tensor  # (B, K) bool
    targets: Tensor  # (B, M, T) long
    targets_valid: Tensor  # (B, M, T) bool


class MaskSampler:
    """Draws masks for batches of one grid.

    K and T are fixed by (grid, config): longer contexts and targets are thinned by random priority, shorter ones padded
    and marked, so that neither the batch's size nor the raster order decides what is seen, and shapes are static.
    Sampling always ends. Raises `InputError` where a single target can leave fewer than `min_context` tokens.
    """

    def __init__(self, config: MaskConfig, grid: tuple[int, int]) -> None:
        self.config, self.grid = config, grid
        self.num_tokens = grid[0] * grid[1]
        rows = torch.arange(CALIBRATION)
        context, targets = self._regions(Rng(0, 0, rows))
        drawn_freely = config.strategy in ("random", "rasterized")
        area = int(targets.sum(-1).max()) if drawn_freely else self._largest_target()
        if self.num_tokens - area < config.min_context:
            raise InputError(
                f"a target of {area} of the {self.num_tokens} tokens (grid {grid[0]}x{grid[1]}) leaves less than "
                f"masks.min_context = {config.min_context} for the context; lower masks.target_scale or take smaller "
                "patches"
            )
        sizes = context.sum(-1)
        limit = max(config.min_context, int(config.context_limit * self.num_tokens))
        self.num_context = min(limit, _static_size(sizes))
        covered = targets.sum(-1)
        self.num_targets, self.target_size = targets.shape[1], _static_size(covered[covered > 0])
        kept, wanted = sizes.clamp(max=self.num_context).sum(), sizes.sum()
        self.context_kept = float(kept / wanted)
        self.context_padding = 1 - float(kept) / (CALIBRATION * self.num_context)

    def sample(self, rng: Rng) -> Masks:
        """Draw masks for the rows of `rng`; with `shared`, one that all rows of the global batch use."""
        batch = len(rng.rows)
        if self.config.shared:
            rng = Rng(rng.seed, rng.step, torch.zeros_like(rng.rows[:1]))
        context, targets = self._regions(rng)
        priority = rng.uniform("thin", targets.shape[1] + 1, self.num_tokens)
        masks = Masks(
            *_thin(context, priority[:, 0], self.num_context), *_thin(targets, priority[:, 1:], self.target_size)
        )
        return Masks(*(part.expand(batch, *part.shape[1:]) for part in masks)) if self.config.shared else masks

    def _regions(self, rng: Rng) -> tuple[Tensor, Tensor]:
        """Draw which tokens are context (B, N) and which are targets (B, M, N), as booleans."""
        strategy = self.config.strategy
        if strategy == "random":
            return self._random(rng)
        if strategy == "rasterized":
            return self._rasterized(rng)
        aspect = self.config.target_aspect
        count = self.config.targets if strategy == "multiblock" else 1
        wanted = self._blocks(rng, "target", count, self.config.target_scale, aspect)
        targets, free = self._leave_context(wanted)
        if strategy == "block":
            return free, targets
        block = self._blocks(rng, "context", 1, self.config.context_scale, (1.0, 1.0))[:, 0]
        context = block & free
        enough = context.sum(-1, keepdim=True) >= self.config.min_context
        return torch.where(enough, context, free), targets

    def _blocks(
        self, rng: Rng, purpose: str, count: int, scale: tuple[float, float], aspect: tuple[float, float]
    ) -> Tensor:
        """Draw rectangles (B, count, N): area, then shape, then a place, uniform over all that fit in the grid."""
        u = rng.uniform(purpose, count, 4)
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
        """Round height and width to tokens; a side that the grid cuts off is made up for by the other."""
        rows, columns = self.grid
        area = scale * self.num_tokens
        height = (area * aspect).sqrt().round().clamp(1, rows)
        width = (area / aspect).sqrt().round().clamp(1, columns)
        cut_width = (area / height).round().clamp(1, columns)
        cut_height = (area / width).round().clamp(1, rows)
        fits_height = (area * aspect).sqrt().round() <= rows
        fits_width = (area / aspect).sqrt().round() <= columns
        return torch.where(fits_width, height, cut_height), torch.where(fits_height, width, cut_width)

    def _largest_target(self) -> int:
        """Largest area in tokens that one target block can take."""
        scale = torch.tensor(self.config.target_scale[1])
        aspect = torch.linspace(*self.config.target_aspect, 1000)
        height, width = self._sides(scale.expand(1000), aspect)
        return int((height * width).max())

    def _leave_context(self, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Drop the targets that would leave fewer than `min_context` tokens; return targets and the tokens left."""
        covered = torch.zeros_like(wanted[:, 0])
        kept = []
        for target in wanted.unbind(1):  # one turn a target, all images at once
            grown = covered | target
            fits = (~grown).sum(-1, keepdim=True) >= self.config.min_context
            covered = torch.where(fits, grown, covered)
            kept.append(target & fits)
        return torch.stack(kept, 1), ~covered

    def _random(self, rng: Rng) -> tuple[Tensor, Tensor]:
        u = rng.uniform("target", self.num_tokens + 1)
        low, high = self.config.target_scale
        count = ((low + u[:, :1] * (high - low)) * self.num_tokens).round().clamp(min=1)
        rank = u[:, 1:].argsort(-1).argsort(-1)
        target = rank < count
        return ~target, target[:, None]

    def _rasterized(self, rng: Rng) -> tuple[Tensor, Tensor]:
        rows, columns = self.grid
        u = rng.uniform("target", 3)
        # an odd side has no middle: which half gets the spare row or column is drawn
        half_y = (rows + (u[:, 1] * (1 + rows % 2)).floor()).div(2, rounding_mode="floor")
        half_x = (columns + (u[:, 2] * (1 + columns % 2)).floor()).div(2, rounding_mode="floor")
        y = torch.arange(rows, device=u.device) >= half_y[:, None]
        x = torch.arange(columns, device=u.device) >= half_x[:, None]
        quadrant = (2 * y[:, :, None] + x[:, None, :].int()).flatten(1)
        chosen = (u[:, :1] * 4).floor()
        others = (chosen + torch.arange(1, 4, device=u.device)) % 4
        return quadrant == chosen, quadrant[:, None] == others[..., None]


def _thin(region: Tensor, priority: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Pick `size` indices of a region (..., N) at random; short regions are filled up and marked not valid."""
    valid, index = torch.where(region, priority + 1, priority).topk(size, dim=-1)
    return index, valid >= 1


def _static_size(sizes: Tensor) -> int:
    """Largest K for which sets of these sizes, cut to K, leave at most `PADDING` of K empty."""
    sizes = sizes.double()
    for size in range(int(sizes.max()), 1, -1):
        if float((size - sizes).clamp(min=0).mean()) <= PADDING * size:
            return size
    return max(1, math.floor(float(sizes.min())))
