"""Any ConvNet of timm by name: its last map is a grid of tokens, its stages are the layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from jepa.backbones.base import Backbone, Tokens
from jepa.config import ConvNetConfig, InputError, suggest
from jepa.torchvision_guard import guard

guard()

import timm  # noqa: E402

__all__ = ["ConvNet"]


class ConvNet(Backbone):
    """A model of timm without its head. Nothing can be masked: a convolution sees across every border."""

    maskable = False
    model: Any  # timm's models have no common type

    def __init__(self, config: ConvNetConfig, channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.model = build(config.name, channels)
        shrunk = make_small(self.model, config.name) if config.small_stem else 1
        self.dim = self.model.feature_info[-1]["num_chs"]
        self.stride = self.model.feature_info[-1]["reduction"] // shrunk
        self.num_layers = len(self.model.feature_info)
        if min(image_size) < self.stride:
            raise InputError(
                f"backbone.name is '{config.name}', whose tokens are {self.stride} pixels wide, more than the image of "
                f"{image_size[0]}x{image_size[1]}; choose a larger --data.image-size, or --backbone.small-stem"
            )
        if not self.gives_maps(channels, image_size):
            small, (height, width) = " with backbone.small_stem" if config.small_stem else "", image_size
            raise InputError(
                f"backbone.name is '{config.name}', which{small} does not turn images of {height}x{width} into "
                "maps, as a ConvNet does; take another, such as convnext_atto or resnet18, "
                + ("leave the small stem out" if small else "or --backbone vit for a transformer")
            )
        self.model.to(memory_format=torch.channels_last)

    def forward(
        self,
        images: Tensor,
        keep: Tensor | None = None,
        valid: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Tokens:
        """Encode images (B, C, H, W) of any size; `keep` must be None. Earlier layers have more, narrower tokens."""
        assert keep is None, "a ConvNet cannot look at some tokens only; a config that asks for it is refused"
        images = images.contiguous(memory_format=torch.channels_last)
        if not layers:
            last = self.model.forward_features(images)
            return Tokens(as_tokens(last), tuple(last.shape[-2:]))
        last, maps = self.model.forward_intermediates(images)
        maps[-1] = last  # some networks norm it once more
        return Tokens(as_tokens(last), tuple(last.shape[-2:]), None, [as_tokens(maps[i]) for i in layers])

    def gives_maps(self, channels: int, image_size: tuple[int, int]) -> bool:
        """Say whether images become maps of the width that timm names, in one pass through the network."""
        images = torch.zeros(1, channels, *image_size)
        self.eval()
        try:
            with torch.no_grad():
                last = self.model.forward_features(images)
                listed, maps = self.model.forward_intermediates(images)
            same = last.ndim == 4 and last.shape == listed.shape and all(each.ndim == 4 for each in maps)
            return same and last.shape[1] == self.dim
        except Exception:  # what a thousand networks raise for images that they cannot take
            return False
        finally:
            self.train()


def as_tokens(x: Tensor) -> Tensor:
    """Turn a map (B, D, h, w) into tokens (B, h·w, D)."""
    return rearrange(x, "b d h w -> b (h w) d")


def build(name: str, channels: int) -> Any:
    """Build a model with fresh weights, cut behind its last map."""
    if not timm.is_model(name):
        raise InputError(
            f"timm has no model '{name}'{suggest(name.lower(), timm.list_models())} (timm.list_models() has them all)"
        )
    try:
        model: Any = timm.create_model(name, num_classes=0, in_chans=channels)
    except RuntimeError as error:  # resnet18.a_tag_that_it_does_not_have
        raise InputError(f"backbone.name is '{name}', which timm cannot build: {error}") from None
    maps: Any = getattr(model, "feature_info", None)
    if not maps or not hasattr(model, "prune_intermediate_layers") or "num_chs" not in maps[-1]:
        raise InputError(
            f"backbone.name is '{name}', whose maps timm does not give out; take another, such as convnext_atto or "
            "resnet18, or --backbone vit for a transformer"
        )
    model.prune_intermediate_layers(list(range(len(maps))), prune_norm=False, prune_head=True)
    return model


def make_small(model: Any, name: str) -> int:
    """Halve the stride of the first strided layer and drop a pooling right behind it, as is done for CIFAR-10.

    A patch of 4 becomes one of 2; a 7x7 convolution with stride 2 becomes a 3x3 one with stride 1. Returns by how much
    the stride of the whole shrinks.
    """
    modules = dict(model.named_modules())
    strided = [path for path, m in modules.items() if isinstance(m, nn.Conv2d) and max(m.stride) > 1]
    if not strided or model.feature_info[0]["reduction"] < 2:
        raise InputError(
            f"backbone.small_stem is given, but {name} does not shrink images in its first layer; leave it out"
        )
    first: nn.Conv2d = modules[strided[0]]
    stride = first.stride[0] // 2
    if first.kernel_size[0] == 3:
        first.stride = (stride, stride)
    else:
        kernel, padding = (stride, 0) if first.kernel_size == first.stride else (3, 1)
        new = nn.Conv2d(first.in_channels, first.out_channels, kernel, stride, padding, bias=first.bias is not None)
        nn.init.kaiming_normal_(new.weight)
        model.set_submodule(strided[0], new)
    pools = [path for path in ("maxpool", "features.pool0") if path in modules]
    for path in pools:
        model.set_submodule(path, nn.Identity())
    return 4 if pools else 2
