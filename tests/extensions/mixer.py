"""A backbone in one file: an MLP-Mixer (Tolstikhin et al. 2021) on patches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from jepa.backbones import Backbone, Tokens
from jepa.config import BACKBONES, RECIPES, BackboneConfig, Config, DataConfig, SaccadeConfig, recipe, require


@dataclass(frozen=True)
class MixerConfig(BackboneConfig):
    """An MLP-Mixer."""

    kind: ClassVar[str] = "mixer"

    dim: int = 32
    """Width of the tokens."""
    depth: int = 2
    """Number of blocks."""
    patch: int = 4
    """Side of a patch, in pixels."""

    def check_data(self, data: DataConfig) -> None:
        require(
            all(side % self.patch == 0 for side in data.size),
            f"backbone.patch is {self.patch}, but the image of {data.size} is not a multiple of it; choose another",
        )


class Block(nn.Module):
    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.tokens = nn.Sequential(nn.Linear(count, count), nn.GELU(), nn.Linear(count, count))
        self.channels = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norms[0](x).mT).mT
        return x + self.channels(self.norms[1](x))


class Mixer(Backbone):
    def __init__(self, config: MixerConfig, channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.dim, self.stride, self.num_layers = config.dim, config.patch, config.depth
        self.stem = nn.Conv2d(channels, config.dim, config.patch, config.patch)
        count = (image_size[0] // config.patch) * (image_size[1] // config.patch)
        self.blocks = nn.ModuleList([Block(config.dim, count) for _ in range(config.depth)])

    def forward(
        self, images: Tensor, keep: Tensor | None = None, valid: Tensor | None = None, layers: Sequence[int] = ()
    ) -> Tokens:
        x = self.stem(images)
        grid = (x.shape[-2], x.shape[-1])
        x = x.flatten(2).mT
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return Tokens(x, grid, None, [outputs[layer] for layer in layers])


def saccade_mixer() -> Config:
    """Saccade JEPA with a Mixer."""
    config = recipe("saccade-demo")
    assert isinstance(config.objective, SaccadeConfig)
    return replace(config, name="saccade-mixer", backbone=MixerConfig(), objective=replace(config.objective, hidden=32))


BACKBONES[MixerConfig] = Mixer
RECIPES["saccade-mixer"] = saccade_mixer
