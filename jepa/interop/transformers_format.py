"""Vision Transformers in the format of transformers: folders of `IJepaModel`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa.backbones import Encoder
from jepa.backbones.vit import ViT
from jepa.config import Config, InputError
from jepa.config.hints import shown
from jepa.interop.official import imported_config, load_encoder, square
from jepa.interop.vit_layout import Shape, is_learned
from jepa.interop.weights import check_names, read_folder_tensors, read_json_object
from jepa.objectives import Objective, build_objective
from jepa.objectives.imported import Imported
from jepa.torchvision_guard import guard

__all__ = ["read_transformers", "require_plain_vit", "to_transformers"]

MODEL_TYPE = "ijepa"
IGNORED = "pooler."  # a layer for classification that features do not depend on
LAYERS = {  # names of blocks, in memory and in files, and of their parts
    "layers": {
        "attention.q_proj": "q",
        "attention.k_proj": "k",
        "attention.v_proj": "v",
        "attention.o_proj": "attn.proj",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    },
    "encoder.layer": {
        "attention.attention.query": "q",
        "attention.attention.key": "k",
        "attention.attention.value": "v",
        "attention.output.dense": "attn.proj",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    },
}
PROJECTIONS = "qkv"  # are joined in one matrix here
OUTER = {
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "embeddings.position_embeddings": "pos_embed",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}


def read_transformers(folder: Path, values: Mapping[str, Any]) -> tuple[Config, Objective]:
    """Return the encoder in a folder of `IJepaModel.save_pretrained`, and its config; `values` is its config.json.

    Images are normalized as preprocessor_config.json says, or as those of ImageNet without it. Raises `InputError` for
    models of another type, and for each missing or unexpected key.
    """
    if values.get("model_type") != MODEL_TYPE:
        raise InputError(
            f"{folder} is a model of transformers of the type {shown(values.get('model_type'))}, but only "
            f"'{MODEL_TYPE}' (IJepaModel) can be read"
        )
    shape = _shape(values, folder)
    tensors = {
        name.removeprefix("ijepa."): tensor
        for name, tensor in read_folder_tensors(folder).items()
        if not name.startswith(IGNORED)
    }
    tensors = to_timm_names(tensors, shape.depth, values.get("qkv_bias", True) is not False, str(folder))
    learned = is_learned(tensors["pos_embed"], shape.grid)
    config = imported_config(shape.config(learned), shape, **_normalization(folder, shape.channels))
    objective = build_objective(config)
    assert isinstance(objective, Imported)
    load_encoder(objective.encoder, tensors, str(folder))
    return config, objective


def _shape(values: Mapping[str, Any], folder: Path) -> Shape:
    """Return the architecture that a config.json describes. Raises `InputError` if it is incomplete or unsupported."""
    sizes = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "patch_size": 16,
        "num_channels": 3,
    }
    numbers = {name: values.get(name, default) for name, default in sizes.items()}
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name} in {folder / 'config.json'} must be a positive integer, got {shown(value)}")
    eps, activation = values.get("layer_norm_eps", 1e-12), values.get("hidden_act", "gelu")
    if activation != "gelu" or not isinstance(eps, float | int):
        raise InputError(
            f"{folder / 'config.json'} must have hidden_act 'gelu' and a number layer_norm_eps, got "
            f"{shown(activation)} and {shown(eps)}"
        )
    given = values.get("image_size", 224)
    size = (given, given) if isinstance(given, int) else tuple(given) if isinstance(given, list) else ()
    patch = numbers["patch_size"]
    if len(size) != 2 or any(not isinstance(side, int) or side < patch or side % patch for side in size):
        raise InputError(f"image_size in {folder / 'config.json'} must be a multiple of {patch}, got {shown(given)}")
    return Shape(
        dim=numbers["hidden_size"],
        depth=numbers["num_hidden_layers"],
        num_heads=numbers["num_attention_heads"],
        hidden=numbers["intermediate_size"],
        patch=patch,
        channels=numbers["num_channels"],
        grid=(size[0] // patch, size[1] // patch),
        norm_eps=float(eps),
    )


def _normalization(folder: Path, channels: int) -> dict[str, Any]:
    """Return the mean and standard deviation of preprocessor_config.json, if there is one."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return {}
    values = read_json_object(file)
    mean, std = values.get("image_mean"), values.get("image_std")
    for name, numbers in (("image_mean", mean), ("image_std", std)):
        if (
            not isinstance(numbers, list)
            or len(numbers) != channels
            or not all(isinstance(x, float | int) for x in numbers)
        ):
            raise InputError(f"{name} in {file} must be {channels} numbers, got {shown(numbers)}")
    assert isinstance(mean, list)
    assert isinstance(std, list)
    scale = values.get("rescale_factor", 1 / 255) * 255 if values.get("do_rescale", True) else 255.0
    if values.get("do_normalize", True) is False:
        mean, std = [0.0] * channels, [1.0] * channels
    return {"mean": tuple(x / scale for x in mean), "std": tuple(x / scale for x in std)}


def to_timm_names(tensors: Mapping[str, Tensor], depth: int, has_bias: bool, where: str) -> dict[str, Tensor]:
    """Return weights of `IJepaModel` with the names of timm; query, key and value weights are joined.

    Without biases of queries, keys and values, they are zero. Raises `InputError` for missing and unexpected names.
    """
    blocks = next((name for name in LAYERS if any(key.startswith(f"{name}.") for key in tensors)), next(iter(LAYERS)))
    names = dict(OUTER)
    for layer in range(depth):
        for theirs, own in LAYERS[blocks].items():
            for kind in ("weight", "bias"):
                if own not in PROJECTIONS or kind == "weight" or has_bias:
                    names[f"{blocks}.{layer}.{theirs}.{kind}"] = f"blocks.{layer}.{own}.{kind}"
    check_names(tensors, names, where)
    renamed = {names[name]: tensor for name, tensor in tensors.items()}
    for layer in range(depth):
        for kind in ("weight", "bias"):
            parts = [renamed.pop(f"blocks.{layer}.{letter}.{kind}", None) for letter in PROJECTIONS]
            found = [part for part in parts if part is not None]
            joined = torch.cat(found) if found else torch.zeros(3 * len(renamed["norm.bias"]))
            renamed[f"blocks.{layer}.attn.qkv.{kind}"] = joined
    return renamed


def require_plain_vit(encoder: Encoder, format: str) -> ViT:
    """Return the backbone of an encoder. Raises `InputError` unless it is a ViT with a linear stem."""
    backbone = encoder.backbone
    if not isinstance(backbone, ViT) or len(backbone.stem) != 1 or not isinstance(backbone.stem[0], torch.nn.Conv2d):
        stem = " with a convolutional stem" if isinstance(backbone, ViT) else ""
        raise InputError(
            f"the format {format} holds Vision Transformers with a linear stem only, but this is a "
            f"{type(backbone).__name__}{stem}; export it with --format safetensors, onnx or torch-export"
        )
    return backbone


def to_transformers(encoder: Encoder) -> Any:
    """Return a `transformers.IJepaModel` with the weights of an encoder.

    Raises `InputError` if transformers is not installed, or if the backbone is not a ViT with a linear stem.
    """
    backbone = require_plain_vit(encoder, "transformers")
    guard()
    try:
        from transformers import IJepaConfig, IJepaModel
    except ImportError as error:
        raise InputError("the format transformers needs the package: pip install transformers") from error
    block: Any = backbone.trunk.blocks[0]  # type: ignore[index]
    config = IJepaConfig(
        hidden_size=backbone.dim,
        num_hidden_layers=backbone.num_layers,
        num_attention_heads=block.attn.num_heads,
        intermediate_size=block.mlp.fc1.out_features,
        layer_norm_eps=backbone.trunk.norm.eps,  # type: ignore[union-attr, arg-type]
        image_size=square(encoder.size),
        patch_size=backbone.stride,
        num_channels=len(encoder.mean),
    )
    model = IJepaModel(config).eval()
    model.load_state_dict(to_transformers_names(backbone, encoder.device))
    return model


def to_transformers_names(backbone: ViT, device: torch.device) -> dict[str, Tensor]:
    """Return the weights of a ViT with the names of `IJepaModel` in memory."""
    tensors = {"embeddings.position_embeddings": backbone.positions(backbone.trained_grid, device)[None]}
    inner = {own: theirs for theirs, own in LAYERS["layers"].items()}
    outer = {own: theirs for theirs, own in OUTER.items()}
    for name, tensor in backbone.state_dict().items():
        if name == "learned":
            continue
        if name.startswith("stem.0."):
            tensors[outer[f"patch_embed.proj.{name.removeprefix('stem.0.')}"]] = tensor
            continue
        name = name.removeprefix("trunk.")
        found = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        if found is None:
            tensors[outer[name]] = tensor
        elif found[2] == "attn.qkv":
            for letter, part in zip(PROJECTIONS, tensor.chunk(3), strict=True):
                tensors[f"layers.{found[1]}.{inner[letter]}.{found[3]}"] = part
        else:
            tensors[f"layers.{found[1]}.{inner[found[2]]}.{found[3]}"] = tensor
    return tensors
