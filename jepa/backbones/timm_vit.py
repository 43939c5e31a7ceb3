"""A Vision Transformer of timm, by name: with class token, registers, layer scale, and whatever else it has.

Shapes: B images, C channels, N patches in the grid, P class and register tokens, D width, L layers, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from jepa.backbones.base import Backbone, Tokens, take
from jepa.backbones.vit import attention_weights
from jepa.config import InputError, TimmViTConfig, suggest
from jepa.torchvision_guard import guard

guard()
import timm  # noqa: E402  (timm imports torchvision)
from timm.models import group_parameters  # noqa: E402
from timm.models.vision_transformer import Block, VisionTransformer  # noqa: E402

__all__ = ["TimmViT"]


class TimmViT(Backbone):
    """A Vision Transformer of timm without its head. The tokens are those of patches, after the final norm.

    Class and register tokens take part in the attention, but are not returned: features are averages over patches. Only
    the patches in `keep` are processed. Raises `InputError` if there is no such model, or for images that do not suit
    its patches.
    """

    model: Any  # a timm VisionTransformer

    def __init__(self, config: TimmViTConfig, channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.model = create_vit(config, channels, image_size)
        self.dim, self.num_layers = self.model.embed_dim, len(self.model.blocks)
        self.stride = int(self.model.patch_embed.patch_size[0])
        self.num_prefix_tokens = self.model.num_prefix_tokens

    def forward(
        self,
        images: Tensor,
        keep: Tensor | None = None,
        valid: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Tokens:
        """Encode normalized images (B, C, H, W); see `Backbone.forward`. Layers are normalized by the final norm."""
        x, grid = self._embed(images, keep)
        mask = self._mask(valid)
        outputs = []
        for block in self.model.blocks:
            x = block(x, attn_mask=mask) if mask is not None else block(x)
            outputs.append(x)
        chosen = [self.model.norm(outputs[layer])[:, self.num_prefix_tokens :] for layer in layers]
        return Tokens(self.model.norm(x)[:, self.num_prefix_tokens :], grid, valid, chosen)

    def pool(self, tokens: Tensor) -> Tensor:
        """Average the tokens (B, N, D) of patches; models that timm pools like this have a norm after the average."""
        return self.model.fc_norm(tokens.mean(1))  # type: ignore[no-any-return]

    def attention(self, images: Tensor) -> Tensor | None:
        """Return the attention among patches (L, B, H, N, N), normalized without class and register tokens."""
        x, _ = self._embed(images)
        weights = []
        for block in self.model.blocks:
            if not isinstance(block, Block):  # a block of another structure
                return None
            layer = attention_weights(block.attn, block.norm1(x), None)
            layer = layer[..., self.num_prefix_tokens :, self.num_prefix_tokens :]
            weights.append(layer / layer.sum(-1, keepdim=True))
            x = block(x)
        return torch.stack(weights)

    @cached_property
    def _layers(self) -> dict[str, int]:
        """The layer of each parameter, as timm groups them."""
        groups: dict[str, int] = group_parameters(self.model, self.model.group_matcher(coarse=False), reverse=True)
        return {f"model.{name}": layer for name, layer in groups.items()}

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter, as timm groups them."""
        return int(self._layers[name])

    def _embed(self, images: Tensor, keep: Tensor | None = None) -> tuple[Tensor, tuple[int, int]]:
        """Return the class and register tokens and those of the kept patches, with positions, and the grid."""
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise InputError(
                f"the image size {height}x{width} is not divisible by the patch size {self.stride}; resize the images, "
                "for example with Encoder.prepare"
            )
        x = self.model._pos_embed(self.model.patch_embed(images))
        if keep is not None:
            prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
            x = torch.cat([prefix, take(patches, keep)], 1)
        return self.model.norm_pre(x), (height // self.stride, width // self.stride)

    def _mask(self, valid: Tensor | None) -> Tensor | None:
        """Return `valid` (B, K) as a mask (B, 1, 1, P + K) over keys."""
        if valid is None:
            return None
        prefix = valid.new_ones(len(valid), self.num_prefix_tokens)
        return torch.cat([prefix, valid], 1)[:, None, None, :]


def create_vit(config: TimmViTConfig, channels: int, image_size: tuple[int, int]) -> VisionTransformer:
    """Create a randomly initialized timm Vision Transformer for images of a size, without its head."""
    if not timm.is_model(config.name):
        hint = suggest(config.name.lower(), timm.list_models("*vit*"))
        raise InputError(f"'{config.name}' is not a timm model{hint or '; see timm.list_models()'}")
    options: dict[str, Any] = {"num_classes": 0, "in_chans": channels, "global_pool": config.pool}
    try:
        model = timm.create_model(config.name, img_size=image_size, dynamic_img_size=True, **options)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise InputError(f"timm cannot build the backbone '{config.name}' for these images: {error}") from error
    if not isinstance(model, VisionTransformer):
        raise InputError(
            f"backbone.name is '{config.name}', but it is a {type(model).__name__}, not a Vision Transformer of timm; "
            "choose another, or use --backbone convnet for a ConvNet"
        )
    patch = model.patch_embed.patch_size
    if patch[0] != patch[1] or any(side % patch[0] for side in image_size):
        suitable = max(1, round(image_size[0] / patch[0])) * patch[0]
        raise InputError(
            f"the backbone '{config.name}' has patches of {patch[0]}x{patch[1]} pixels, which do not suit images of "
            f"{image_size[0]}x{image_size[1]}; choose --data.image-size {suitable}"
        )
    model.attn_pool = None  # its pooling is not used
    model.head = nn.Identity()
    return model
