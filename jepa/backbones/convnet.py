"""ConvNets of timm by name. The positions of the last feature map are the tokens, the stages are the layers."""

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
import timm  # noqa: E402  (timm imports torchvision)

__all__ = ["ConvNet"]


class ConvNet(Backbone):
    """A model of timm without its head.

    It is not maskable: convolutions would mix masked pixels into the tokens that are kept. Raises `InputError` if timm
    has no such model, or if the model does not return feature maps for images of this size.
    """

    maskable = False
    model: Any  # the models of timm have no common type

    def __init__(self, config: ConvNetConfig, channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        height, width = image_size
        self.model = create_model(config.name, channels)
        stride_factor = shrink_stem(self.model, config.name) if config.small_stem else 1
        self.dim = self.model.feature_info[-1]["num_chs"]
        self.stride = self.model.feature_info[-1]["reduction"] // stride_factor
        self.num_layers = len(self.model.feature_info)
        if min(image_size) < self.stride:
            raise InputError(
                f"backbone.name is '{config.name}', whose tokens are {self.stride} pixels wide, more than the image of "
                f"{height}x{width}; choose a larger --data.image-size, or --backbone.small-stem"
            )
        if not self.returns_feature_maps(channels, image_size):
            condition = " with backbone.small_stem" if config.small_stem else ""
            advice = "leave out --backbone.small-stem" if config.small_stem else "--backbone vit for a transformer"
            raise InputError(
                f"backbone.name is '{config.name}', which{condition} does not return feature maps for images of "
                f"{height}x{width}; choose a ConvNet such as convnext_atto or resnet18, or {advice}"
            )
        self.model.to(memory_format=torch.channels_last)

    def forward(
        self,
        images: Tensor,
        keep: Tensor | None = None,
        valid: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Tokens:
        """Encode images (B, C, H, W) of any size. `keep` must be None. Earlier layers have more and narrower tokens."""
        assert keep is None, "configs that mask a ConvNet are refused"
        images = images.contiguous(memory_format=torch.channels_last)
        if not layers:
            last = self.model.forward_features(images)
            return Tokens(as_tokens(last), tuple(last.shape[-2:]))
        last, maps = self.model.forward_intermediates(images)
        maps[-1] = last  # some models normalize the last map once more
        return Tokens(as_tokens(last), tuple(last.shape[-2:]), None, [as_tokens(maps[layer]) for layer in layers])

    def returns_feature_maps(self, channels: int, image_size: tuple[int, int]) -> bool:
        """Return whether the model turns images into feature maps of the width that timm lists. Runs it once."""
        images = torch.zeros(1, channels, *image_size)
        self.eval()
        try:
            with torch.no_grad():
                last = self.model.forward_features(images)
                last_of_maps, maps = self.model.forward_intermediates(images)
            are_maps = last.ndim == 4 and last.shape == last_of_maps.shape and all(each.ndim == 4 for each in maps)
            return are_maps and last.shape[1] == self.dim
        except Exception:  # models of timm raise various errors for images that they do not support
            return False
        finally:
            self.train()


def as_tokens(x: Tensor) -> Tensor:
    """Reshape a map (B, D, h, w) to tokens (B, h·w, D)."""
    return rearrange(x, "b d h w -> b (h w) d")


def create_model(name: str, channels: int) -> Any:
    """Create a model of timm with new weights, without the layers after its last feature map."""
    if not timm.is_model(name):
        hint = suggest(name.lower(), timm.list_models())
        raise InputError(f"backbone.name is '{name}'; it takes a name that timm.list_models() returns{hint}")
    try:
        model: Any = timm.create_model(name, num_classes=0, in_chans=channels)
    except RuntimeError as error:  # for example resnet18.a_tag_that_does_not_exist
        raise InputError(f"backbone.name is '{name}', which timm cannot build: {error}") from None
    feature_info: Any = getattr(model, "feature_info", None)
    if not feature_info or not hasattr(model, "prune_intermediate_layers") or "num_chs" not in feature_info[-1]:
        raise InputError(
            f"backbone.name is '{name}', of which timm does not return feature maps; choose a ConvNet such as "
            "convnext_atto or resnet18, or --backbone vit for a transformer"
        )
    model.prune_intermediate_layers(list(range(len(feature_info))), prune_norm=False, prune_head=True)
    return model


def shrink_stem(model: Any, name: str) -> int:
    """Halve the stride of the first strided layer and remove a pooling layer after it, as is usual for CIFAR-10.

    A patch of 4 pixels becomes one of 2, and a 7x7 convolution with stride 2 a 3x3 one with stride 1. Returns the
    factor by which the stride of the model decreases.
    """
    modules = dict(model.named_modules())
    strided = [path for path, m in modules.items() if isinstance(m, nn.Conv2d) and max(m.stride) > 1]
    if not strided or model.feature_info[0]["reduction"] < 2:
        raise InputError(
            f"backbone.small_stem is set, but the first layer of {name} does not shrink images; leave small_stem out"
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
    pooling = [path for path in ("maxpool", "features.pool0") if path in modules]
    for path in pooling:
        model.set_submodule(path, nn.Identity())
    return 4 if pooling else 2
