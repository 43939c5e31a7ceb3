"""Folders of timm: config.json with the architecture, and weights, in the layout of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jepa.backbones import Encoder
from jepa.backbones.convnet import ConvNet
from jepa.backbones.timm_vit import TimmViT
from jepa.backbones.vit import ViT
from jepa.config import (
    BackboneConfig,
    Config,
    ConvNetConfig,
    DataConfig,
    ImportedConfig,
    InputError,
    TimmViTConfig,
    suggest,
)
from jepa.config.hints import shown
from jepa.interop.official import IMAGENET_MEAN, IMAGENET_STD, square
from jepa.interop.transformers_format import require_plain_vit
from jepa.interop.vit_layout import Shape, is_learned, load_vit, timm_name
from jepa.interop.weights import load_strictly, read_folder_tensors
from jepa.objectives import Objective, build_objective
from jepa.objectives.imported import Imported
from jepa.torchvision_guard import guard

__all__ = ["read_timm", "to_timm"]

READ_OTHERWISE = {"num_classes", "in_chans", "img_size", "global_pool", "drop_rate", "drop_path_rate"}
"""Arguments of models that the weights tell, or that do not change features."""
OF_PLAIN_VIT = {"patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "class_token", "fc_norm"}
"""Arguments that are read for Vision Transformers without class token and other extras."""
TIMM_NORM_EPS = 1e-6
PLAIN_VIT = "vit_base_patch16_224"  # any architecture of timm whose size may be changed


def read_timm(folder: Path, values: Mapping[str, Any]) -> tuple[Config, Objective]:
    """Return the encoder in a folder of timm, and its config; `values` is its config.json.

    Vision Transformers and ConvNets are read. Images are normalized as the pretrained_cfg says. Raises `InputError` for
    other models, and for each missing or unexpected key.
    """
    where, settings = str(folder), values.get("pretrained_cfg") or {}
    model = create_model(values, where)
    load_strictly(model, read_folder_tensors(folder), where)  # all of it, so that no key is missing or left over
    data = _data(model, settings, where)
    backbone = _backbone(model, str(values["architecture"]), values.get("model_args") or {}, data.size)
    if backbone is None:
        extra = ", ".join(sorted(set(values.get("model_args") or {}) - READ_OTHERWISE))
        raise InputError(
            f"{where} has the arguments {extra} in model_args, which are not supported for '{values['architecture']}'; "
            "save a model of timm without them"
        )
    config = Config(name="imported", steps=1, data=data, backbone=backbone, objective=ImportedConfig())
    objective = build_objective(config)
    assert isinstance(objective, Imported)
    own, tensors = objective.encoder.backbone, model.state_dict()
    if isinstance(own, ViT):
        load_vit(own, tensors, where)
    else:
        assert isinstance(own, TimmViT | ConvNet)
        kept = own.model.state_dict()
        load_strictly(own.model, {name: tensor for name, tensor in tensors.items() if name in kept}, where)
    return config, objective


def create_model(values: Mapping[str, Any], where: str) -> nn.Module:
    """Create the model of timm that a config.json describes. Raises `InputError` if there is none."""
    guard()
    import timm

    architecture, arguments = str(values.get("architecture")), dict(values.get("model_args") or {})
    if not timm.is_model(architecture):
        hint = suggest(architecture, timm.list_models())
        raise InputError(f"{where} has the architecture {shown(architecture)}, which timm does not have{hint}")
    settings = values.get("pretrained_cfg") or {}
    arguments.setdefault("num_classes", values.get("num_classes", settings.get("num_classes", 1000)))
    if "global_pool" in values:
        arguments.setdefault("global_pool", values["global_pool"])
    try:
        model: nn.Module = timm.create_model(architecture, **arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise InputError(f"timm cannot build '{architecture}' of {where}: {error}") from error
    return model.eval()


def _backbone(
    model: Any, architecture: str, arguments: Mapping[str, Any], size: tuple[int, int]
) -> BackboneConfig | None:
    """Return the config of a backbone for a model of timm, or None if it has arguments that no config holds."""
    from timm.models.vision_transformer import Block, VisionTransformer

    extra = set(arguments) - READ_OTHERWISE
    if not isinstance(model, VisionTransformer):
        return None if extra else ConvNetConfig(name=architecture)
    patch, block = model.patch_embed.patch_size[0], model.blocks[0]
    if extra <= OF_PLAIN_VIT and isinstance(block, Block):
        grid = (size[0] // patch, size[1] // patch)
        learned = is_learned(model.pos_embed, grid) if model.pos_embed is not None else True
        shape = Shape(
            dim=model.embed_dim,
            depth=len(model.blocks),
            num_heads=block.attn.num_heads,
            hidden=block.mlp.fc1.out_features,
            patch=patch,
            channels=model.patch_embed.proj.in_channels,
            grid=grid,
            norm_eps=model.norm.eps if isinstance(model.norm, nn.LayerNorm) else 0.0,
        )
        config = shape.config(learned=True)
        with torch.device("meta"):
            plain = ViT(config, shape.channels, size)
        if set(map(timm_name, plain.state_dict())) == set(model.state_dict()):
            return shape.config(learned)
    return None if extra else TimmViTConfig(name=architecture, pool=model.global_pool)


def _data(model: Any, settings: Mapping[str, Any], where: str) -> DataConfig:
    """Return the image size and normalization of a timm model."""
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    if first.in_channels not in (1, 3):
        raise InputError(f"{where} takes images of {first.in_channels} channels, but only 1 and 3 are supported")
    channels: Literal[1, 3] = 1 if first.in_channels == 1 else 3
    embed = getattr(model, "patch_embed", None)
    size = tuple(getattr(embed, "img_size", None) or settings.get("input_size", (3, 224, 224))[1:])
    mean = tuple(settings.get("mean", IMAGENET_MEAN))
    std = tuple(settings.get("std", IMAGENET_STD))
    if channels == 1 and len(mean) == 3:  # timm averages the weights of the three channels
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    return DataConfig(source="unknown", image_size=square((size[0], size[1])), channels=channels, mean=mean, std=std)


def to_timm(encoder: Encoder) -> tuple[str, dict[str, Any], nn.Module]:
    """Return the timm architecture of an encoder, the arguments of `timm.create_model`, and the model with its weights.

    A ViT with a linear stem becomes a Vision Transformer without class token, whose tokens are averaged. Raises
    `InputError` for backbones that timm does not have.
    """
    guard()
    import timm

    backbone = encoder.backbone
    arguments: dict[str, Any] = {"num_classes": 0, "in_chans": len(encoder.mean)}
    if isinstance(backbone, TimmViT | ConvNet):
        if isinstance(backbone, ConvNet) and backbone.small_stem:
            raise InputError(
                "timm has no ConvNet with backbone.small_stem; export it with --format safetensors, onnx or "
                "torch-export"
            )
        architecture, tensors = backbone.model.pretrained_cfg["architecture"], backbone.model.state_dict()
        if isinstance(backbone, TimmViT):
            pool = backbone.model.global_pool
            arguments |= {"img_size": list(encoder.size), "global_pool": "" if pool in ("map", "prr") else pool}
    else:
        plain = require_plain_vit(encoder, "timm")
        architecture, tensors = PLAIN_VIT, timm_names(plain, encoder)
        arguments |= plain_arguments(plain, encoder.size)
    model = timm.create_model(architecture, **arguments).eval()
    missing = model.load_state_dict(tensors, strict=False).missing_keys
    assert all(name.startswith(("head", "norm")) for name in missing), missing  # layers after the last feature map
    return architecture, arguments, model


def plain_arguments(backbone: ViT, size: tuple[int, int]) -> dict[str, Any]:
    """Return the arguments with which timm creates this Vision Transformer, without class token."""
    block: Any = backbone.trunk.blocks[0]  # type: ignore[index]
    eps = backbone.trunk.norm.eps  # type: ignore[union-attr]
    if eps != TIMM_NORM_EPS:
        raise InputError(
            f"Vision Transformers of timm have LayerNorms with eps {TIMM_NORM_EPS}, but this one has {eps}; export it "
            "with --format transformers, safetensors, onnx or torch-export"
        )
    return {
        "img_size": list(size),
        "patch_size": backbone.stride,
        "embed_dim": backbone.dim,
        "depth": backbone.num_layers,
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / backbone.dim,
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,
    }


def timm_names(backbone: ViT, encoder: Encoder) -> dict[str, Tensor]:
    """Return the weights of a Vision Transformer with the names of timm."""
    tensors = {"pos_embed": backbone.positions(backbone.trained_grid, encoder.device)[None]}
    for name, tensor in backbone.state_dict().items():
        if name.startswith("stem.0."):
            tensors[f"patch_embed.proj.{name.removeprefix('stem.0.')}"] = tensor
        elif name != "learned":
            tensors[name.removeprefix("trunk.")] = tensor
    return tensors
