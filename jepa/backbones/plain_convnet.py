"""A small ConvNet for short trainings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from jepa.backbones.base import Backbone, Tokens
from jepa.backbones.whitening import WhiteningFilters
from jepa.config import InputError, PlainConvNetConfig

__all__ = ["PlainConvNet"]


class PlainConvNet(Backbone):
    """Whitening filters, then 3x3 convolutions with BatchNorm and GELU, with max pooling in between.

    A small relative of the networks of airbench (Jordan 2024, arXiv 2404.00498). Each stage doubles the width, and a
    1x1 convolution widens the last feature map, whose positions are tokens. Convolutions are layers.
    """

    def __init__(self, config: PlainConvNetConfig, channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        filters = WhiteningFilters(channels, kernel=4, stride=2, padding=1)
        width = config.width
        blocks: list[nn.Module] = [conv_block(filters.out_channels, width, kernel=1)]
        for stage in range(config.stages):
            pool = [nn.MaxPool2d(2)] if stage else []
            blocks.append(nn.Sequential(*pool, conv_block(width, 2 * width)))
            width *= 2
        blocks.append(conv_block(width, config.dim, kernel=1))
        self.filters, self.blocks = filters, nn.ModuleList(blocks)
        self.dim, self.stride, self.num_layers = config.dim, config.stride, len(blocks)
        if min(image_size) < self.stride:
            raise InputError(
                f"backbone.stages is {config.stages}, so the stride is {self.stride}, larger than the image of "
                f"{image_size[0]}x{image_size[1]}; choose fewer stages or a larger --data.image-size"
            )

    def forward(
        self,
        images: Tensor,
        keep: Tensor | None = None,
        valid: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Tokens:
        """Encode normalized images (B, C, H, W); see `Backbone.forward`. `keep` is not supported."""
        assert keep is None, "a ConvNet cannot be masked"
        x = self.filters(images.contiguous(memory_format=torch.channels_last))
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        grid = (x.shape[-2], x.shape[-1])
        tokens = [rearrange(maps[layer], "b d h w -> b (h w) d") for layer in layers]
        return Tokens(rearrange(x, "b d h w -> b (h w) d"), grid, layers=tokens)

    def layer_of(self, name: str) -> int:
        """Return the number of the convolution."""
        return int(name.split(".")[1])


def conv_block(in_channels: int, out_channels: int, kernel: int = 3) -> nn.Sequential:
    """Build a convolution with BatchNorm and GELU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.GELU(),
    )
