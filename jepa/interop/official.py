"""Checkpoints of the official I-JEPA code (github.com/facebookresearch/ijepa).

They hold `encoder` (the context encoder), `target_encoder` and `predictor`. The paper evaluates the target encoder, so
it is the main one here. The conversions of both timm and transformers hold the context encoder, `encoder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from jepa.backbones import Encoder
from jepa.backbones.vit import ViT
from jepa.config import Config, DataConfig, IJepaConfig, ImportedConfig, InputError, MaskConfig
from jepa.interop.vit_layout import Shape, depth_of, is_learned, load_vit, shape_of
from jepa.interop.weights import as_tensors, load_strictly
from jepa.objectives import Objective, build_objective
from jepa.objectives.ijepa import IJepa
from jepa.objectives.imported import Imported

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "imported_config", "is_official", "read_official"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ENCODERS = ("target_encoder", "encoder")  # the main one first
PREDICTOR = "predictor"
MIN_CONTEXT = 1  # tokens; small grids leave few


def is_official(values: Any) -> bool:
    """Return whether the content of a file is that of a checkpoint of the official code, or of an encoder of it."""
    if not isinstance(values, Mapping):
        return False
    return any(isinstance(values.get(name), Mapping) for name in (*ENCODERS, PREDICTOR)) or _has_patches(values)


def _has_patches(values: Mapping[Any, Any]) -> bool:
    return any(str(name).endswith("patch_embed.proj.weight") for name in values)


def read_official(values: Mapping[str, Any], num_heads: int | None, where: str) -> tuple[Config, Objective]:
    """Return the objective with the weights of a checkpoint, and its config.

    With both encoders and the predictor, it is an I-JEPA that can be trained further; otherwise it is an encoder alone,
    the target encoder if there is one. `num_heads` is that of encoders of another size than the published ones. Raises
    `InputError` for each missing or unexpected key.
    """
    if _has_patches(values):  # a state dict of an encoder
        values = {"target_encoder": values}
    parts = {
        name: as_tensors(values[name], f"'{name}' of {where}") for name in (*ENCODERS, PREDICTOR) if values.get(name)
    }
    main = next((name for name in ENCODERS if name in parts), None)
    if main is None:
        raise InputError(f"{where} has a predictor but no encoder; give a checkpoint with target_encoder or encoder")
    shape = shape_of(parts[main], num_heads, f"'{main}' of {where}")
    backbone = shape.config(learned=is_learned(parts[main]["pos_embed"], shape.grid))
    if len(parts) < len(ENCODERS) + 1:
        objective: Objective = build_objective(config := imported_config(backbone, shape))
        assert isinstance(objective, Imported)
        load_encoder(objective.encoder, parts[main], f"'{main}' of {where}")
        return config, objective
    predictor = parts[PREDICTOR]
    config = ijepa_config(shape, backbone, predictor, where)
    objective = build_objective(config)
    assert isinstance(objective, IJepa)
    for name, encoder in (("target_encoder", objective.target), ("encoder", objective.context)):
        load_encoder(encoder, parts[name], f"'{name}' of {where}")
    load_predictor(objective, predictor, f"'{PREDICTOR}' of {where}")
    return config, objective


def imported_config(backbone: Any, shape: Shape, **data: Any) -> Config:
    """Return the config of an imported encoder, with ImageNet's normalization unless `data` has another."""
    gray = shape.channels == 1
    mean, std = ((0.5,), (0.5,)) if gray else (IMAGENET_MEAN, IMAGENET_STD)
    defaults: dict[str, Any] = {
        "source": "unknown",
        "image_size": square(shape.image_size),
        "channels": shape.channels,
        "mean": mean,
        "std": std,
    }
    return Config(
        name="imported", steps=1, data=DataConfig(**defaults | data), backbone=backbone, objective=ImportedConfig()
    )


def square(size: tuple[int, int]) -> int | tuple[int, int]:
    """Return a size as a setting: one number for a square."""
    return size[0] if size[0] == size[1] else size


def ijepa_config(shape: Shape, backbone: Any, predictor: Mapping[str, Tensor], where: str) -> Config:
    """Return the config of an I-JEPA; the heads of the official predictor are as many as those of its encoder."""
    try:
        width = predictor["predictor_embed.weight"].shape[0]
    except KeyError as error:
        raise InputError(f"'{PREDICTOR}' of {where} lacks the key predictor_embed.weight") from error
    size = f"{width}x{depth_of(predictor, 'predictor_blocks')}x{shape.num_heads}"
    imported = imported_config(backbone, shape)
    masks = MaskConfig(min_context=MIN_CONTEXT)
    objective = IJepaConfig(predictor=size, masks=masks)
    return Config(name="imported", steps=1, data=imported.data, backbone=backbone, objective=objective)


def load_encoder(encoder: Encoder, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load the weights of a Vision Transformer with a linear stem."""
    assert isinstance(encoder.backbone, ViT)
    load_vit(encoder.backbone, tensors, where)


def load_predictor(objective: IJepa, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load the weights of a predictor. Raises `InputError` if its position embeddings are not sines and cosines."""
    tensors = dict(tensors)
    positions = tensors.pop("predictor_pos_embed", None)
    if positions is None:
        raise InputError(f"{where} lacks key predictor_pos_embed; give the complete checkpoint")
    if positions.shape[1:] != objective.predictor.positions.shape or is_learned(positions, objective.grid):
        raise InputError(
            f"{where} has position embeddings {list(positions.shape)} that are not the fixed sines and cosines of its "
            f"grid of {objective.grid[0]}x{objective.grid[1]}; learned ones are not supported"
        )
    if "mask_token" in tensors:
        tensors["mask_token"] = tensors["mask_token"].flatten()
    load_strictly(objective.predictor, tensors, where, predictor_name)


def predictor_name(name: str) -> str:
    """Return the name in the official code of a weight of `jepa.objectives.ijepa.Predictor`."""
    for own, official in (
        ("embed.", "predictor_embed."),
        ("trunk.blocks.", "predictor_blocks."),
        ("trunk.norm.", "predictor_norm."),
        ("project.", "predictor_proj."),
    ):
        if name.startswith(own):
            return official + name.removeprefix(own)
    return name
