"""Features that are pooled in quadrants instead of over the whole image, and features of equal width."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.backbones import Encoder, Tokens, eval_mode
from jepa.evaluation.features import Features, Subset, digest, read_evenly
from jepa.evaluation.pca import first_axes
from jepa.transforms.crop import resize

__all__ = ["EQUAL_WIDTH", "QuadrantPooling", "equal_width", "pool_quadrants"]

EQUAL_WIDTH = 128  # of features that are compared at equal width
MAX_WIDTH = 512  # of features that are pooled in quadrants; wider ones are projected on as many principal axes
FITTED_IMAGES = 4_000  # maximum number of training images to which these axes are fitted


def pool_quadrants(tokens: Tokens) -> Tensor:
    """Average tokens (B, N, D) over each quadrant of the grid, (B, 4D); a side of one token is not divided."""
    height, width = tokens.grid
    maps = tokens.x.float().mT.unflatten(-1, (height, width))
    return F.adaptive_avg_pool2d(maps, (min(2, height), min(2, width))).flatten(1)


@dataclass
class QuadrantPooling:
    """Pools the tokens of an encoder in quadrants, and projects them on principal axes if they are wide.

    The axes are those of up to 4,000 images of `train`, and are computed when the first tokens are pooled.
    """

    encoder: Encoder
    train: Subset

    @property
    def key(self) -> str:
        """Identifies what the axes depend on, besides the encoder."""
        return f"{self.train.dataset.signature} {digest(self.train.indices).hex()} {MAX_WIDTH} {FITTED_IMAGES}"

    @cached_property
    def _projection(self) -> tuple[Tensor, Tensor] | None:
        """The mean (4D,) and the axes (4D, 512) of wide features; None for narrow ones."""
        encoder, parts = self.encoder, []
        for images, _ in read_evenly(self.train, FITTED_IMAGES):
            with torch.no_grad(), eval_mode(encoder):
                pooled = pool_quadrants(encoder(resize(images.to(encoder.device), encoder.size)))
            if pooled.shape[1] <= MAX_WIDTH:
                return None
            parts.append(pooled.cpu())
        x = torch.cat(parts)
        return x.mean(0).to(encoder.device), first_axes(x, MAX_WIDTH).to(encoder.device)

    def __call__(self, tokens: Tokens) -> Tensor:
        """Pool tokens (B, N, D) to features (B, 4D), or (B, 512) if these are fewer."""
        pooled = pool_quadrants(tokens)
        if pooled.shape[1] <= MAX_WIDTH or not bool(pooled.isfinite().all()):
            return pooled
        assert self._projection is not None
        mean, axes = self._projection
        return (pooled - mean) @ axes


def equal_width(train: Features, test: Features) -> tuple[Features, Features] | None:
    """Project features on the first 128 principal axes of `train`; None if they are not wider."""
    if train.x.shape[1] <= EQUAL_WIDTH:
        return None
    mean, axes = train.x.mean(0), first_axes(train.x, EQUAL_WIDTH)
    return replace(train, x=(train.x - mean) @ axes), replace(test, x=(test.x - mean) @ axes)
