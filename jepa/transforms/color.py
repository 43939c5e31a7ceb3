"""Random changes of color on the device, for objectives that should not recognize a view by its colors."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.config import ColorConfig
from jepa.rng import Rng

__all__ = ["change_colors"]


def change_colors(views: Tensor, config: ColorConfig, rng: Rng) -> Tensor:
    """Change the colors of each view (B, C, h, w) in [0, 1] at random, as in SimCLR (arXiv 2002.05709, appendix A).

    Brightness, contrast (distance to the mean of the view), saturation (distance to the mean of the channels) and the
    single channels are multiplied by independent factors, uniform within 1 ± strength (channels: 1 ± strength / 2).
    The last ones change the hue.
    """
    if not (config.strength or config.gray):
        return views
    channels = views.shape[1]
    u = rng.uniform("color", 4 + channels)[:, :, None, None]
    factors = 1 + config.strength * (2 * u - 1)
    views = views * factors[:, 0:1]
    mean = views.mean((1, 2, 3), keepdim=True)
    views = mean + (views - mean) * factors[:, 1:2]
    gray = views.mean(1, keepdim=True)
    views = gray + (views - gray) * factors[:, 2:3]
    views = views * (1 + (factors[:, 4:] - 1) / 2)
    return torch.where(u[:, 3:4] < config.gray, gray, views).clamp(0, 1)
