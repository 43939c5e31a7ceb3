"""Any timm ConvNet, by name. Positions in the last feature map are tokens, and stages are layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from jepa.backbones.base import Backbone, Tokens
from jepa.config import ConvNetConfig, InputError, suggest
from jepa.torchvision_guard import guard

guard()
import timm  # noqa: E402  (timm imports torchvision)
from timm.models import group_parameters  # noqa: E402

__all__ = ["ConvNet"]


class ConvNet(Backbone):
    """A timm model without its head. It cannot be masked, because convolutions mix masked pixels into kept tokens.

    Raises `InputError` if there is no such timm model, or if it does not return feature maps for images of this size.
    """

    model: Any  # timm models have no common type

    def __init__(self, config: ConvNetConfig, channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        height, width = image_size
        self.model, self.small_stem = create_model(config.name, channels), config.small_stem
        stride_factor = shrink_stem(self.model, config.name) if config.small_stem else 1
        self.dim = self.model.feature_info[-1]["num_chs"]
        self.stride = self.model.feature_info[-1]["reduction"] // stride_factor
        self.num_layers = len(self.model.feature_info)
        if min(image_size) < self.stride:
            raise InputError(
                f"the backbone '{config.name}' has stride {self.stride}, larger than the image of {height}x{width}; "
                "use --backbone.small-stem or a larger --data.image-size"
            )
        if not self.returns_feature_maps(channels, image_size):
            condition = " with backbone.small_stem" if config.small_stem else ""
            advice = "remove --backbone.small-stem" if config.small_stem else "use --backbone vit for a transformer"
            raise InputError(
                f"the backbone '{config.name}' does not return feature maps for {height}x{width} images{condition}; "
                f"choose a ConvNet such as convnext_atto or resnet18, or {advice}"
            )
        self.model.to(memory_format=torch.channels_last)

    def forward(
        self,
        images: Tensor,
        keep: Tensor | None = None,
        valid: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Tokens:
        """Encode images (B, C, H, W) of any size. `keep` must be None. Earlier layers return more, narrower tokens."""
        assert keep is None, "ConvNets do not support masking"
        images = images.contiguous(memory_format=torch.channels_last)
        if not layers:
            last = self.model.forward_features(images)
            return Tokens(as_tokens(last), tuple(last.shape[-2:]))
        last, maps = self.model.forward_intermediates(images)
        maps[-1] = last  # some models apply a final norm after the last stage
        return Tokens(as_tokens(last), tuple(last.shape[-2:]), None, [as_tokens(maps[layer]) for layer in layers])

    @cached_property
    def _layers(self) -> dict[str, int]:
        """The layer of each parameter, as timm groups them."""
        groups: dict[str, int] = group_parameters(self.model, self.model.group_matcher(coarse=False), reverse=True)
        return {f"model.{name}": layer for name, layer in groups.items()}

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter, as timm groups them."""
        return int(self._layers[name])

    def returns_feature_maps(self, channels: int, image_size: tuple[int, int]) -> bool:
        """Run the model once and return whether its outputs are feature maps of the width that timm reports."""
        images = torch.zeros(1, channels, *image_size)
        self.eval()
        try:
            with torch.no_grad():
                last = self.model.forward_features(images)
                last_of_maps, maps = self.model.forward_intermediates(images)
            are_maps = last.ndim == 4 and last.shape == last_of_maps.shape and all(x.ndim == 4 for x in maps)
            return are_maps and last.shape[1] == self.dim
        except Exception:  # timm models raise various errors for unsupported image sizes
            return False
        finally:
            self.train()


def as_tokens(x: Tensor) -> Tensor:
    """Flatten a feature map (B, D, h, w) to tokens (B, h·w, D)."""
    return rearrange(x, "b d h w -> b (h w) d")


def create_model(name: str, channels: int) -> Any:
    """Create a randomly initialized timm model without the layers after its last feature map."""
    if not timm.is_model(name):
        hint = suggest(name.lower(), timm.list_models())
        raise InputError(f"'{name}' is not a timm model{hint or '; see timm.list_models()'}")
    try:
        model: Any = timm.create_model(name, num_classes=0, in_chans=channels)
    except RuntimeError as error:  # for example resnet18.a_tag_that_does_not_exist
        raise InputError(f"timm cannot build the backbone '{name}': {error}") from None
    feature_info: Any = getattr(model, "feature_info", None)
    if not feature_info or not hasattr(model, "prune_intermediate_layers") or "num_chs" not in feature_info[-1]:
        raise InputError(
            f"backbone.name is '{name}', but timm provides no feature maps for it; choose a ConvNet such as "
            "convnext_atto or resnet18, or use --backbone vit for a transformer"
        )
    model.prune_intermediate_layers(list(range(len(feature_info))), prune_norm=False, prune_head=True)
    return model


def shrink_stem(model: Any, name: str) -> int:
    """Halve the stride of the first strided layer and remove the pooling after it, as is common for CIFAR-10.

    A 4x4 patch embedding becomes 2x2, and a 7x7 convolution with stride 2 becomes 3x3 with stride 1. Returns the factor
    by which the total stride decreases.
    """
    modules = dict(model.named_modules())
    strided = [path for path, m in modules.items() if isinstance(m, nn.Conv2d) and max(m.stride) > 1]
    if not strided or model.feature_info[0]["reduction"] < 2:
        raise InputError(f"the backbone '{name}' does not downsample in its first layer; remove --backbone.small-stem")
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
