"""Export to a folder in timm's layout of the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from jepa.backbones import Encoder
from jepa.config import Config
from jepa.interop.agreement import Difference, compare_graph
from jepa.interop.graphs import encoder_graph
from jepa.interop.model import Model
from jepa.interop.processor import pixel_differences, timm_preprocessing
from jepa.interop.timm_format import to_timm

__all__ = ["write_timm"]


def write_timm(model: Model, config: Config, predictor: bool, folder: Path) -> list[Difference]:
    """Write a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads; return how much it differs.

    Raises `InputError` if timm cannot hold the backbone.
    """
    encoder = model.encoder
    architecture, arguments, exported = to_timm(encoder)  # imports timm
    values = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": encoder.backbone.dim,
        "model_args": arguments,
        "pretrained_cfg": timm_preprocessing(encoder) | architecture_settings(exported),
    }
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    tensors = {name: tensor.contiguous() for name, tensor in exported.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    import timm
    from timm.data import create_transform, resolve_data_config

    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=loaded), is_training=False)

    def run(images: Tensor) -> list[Tensor]:
        features = loaded.forward_features((images - encoder.mean) / encoder.std)
        tokens = as_tokens(features, encoder)
        is_average = getattr(loaded, "global_pool", "") == "avg" and features.ndim == 3
        return [tokens, loaded.forward_head(features) if is_average else tokens.mean(1)]

    def process(image: Image.Image) -> Tensor:
        pixels: Tensor = transform(image)
        return pixels

    features = compare_graph(encoder_graph("model", encoder), encoder, run)
    return [*features, *pixel_differences(encoder, config.data, process)]


def architecture_settings(model: Any) -> dict[str, Any]:
    """Return the settings of timm's pretrained_cfg that belong to an architecture, not to its weights."""
    names = ("first_conv", "classifier", "fixed_input_size")
    return {"num_classes": 0} | {name: model.pretrained_cfg[name] for name in names}


def as_tokens(features: Tensor, encoder: Encoder) -> Tensor:
    """Return the patch tokens (B, N, D) of `forward_features`: a feature map, or tokens after class and registers."""
    if features.ndim == 4:
        return features.flatten(2).mT
    rows, columns = encoder.grid
    return features[:, -rows * columns :]
