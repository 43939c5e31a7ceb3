"""Folders of this library: the config as JSON and the weights as safetensors, without any training state."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from jepa.config import Config, ImportedConfig, InputError
from jepa.config.hints import shown
from jepa.config.serialization import from_dict, to_dict
from jepa.config.user_code import check_code_loaded
from jepa.interop.agreement import Difference, compare_graph
from jepa.interop.graphs import graphs_of
from jepa.interop.model import Model
from jepa.interop.weights import load_strictly, read_json_object, read_safetensors
from jepa.objectives import Objective
from jepa.runs import fresh_objective

__all__ = ["FORMAT", "read_folder", "write_safetensors"]

FORMAT, VERSION = "image-jepa", 1
WEIGHTS = "model.safetensors"
PARTS = ("encoder", "objective")


def write_safetensors(model: Model, config: Config, predictor: bool, folder: Path) -> list[Difference]:
    """Write config.json and model.safetensors; return how much the outputs differ after reading them.

    With `predictor`, the file holds the whole objective: its encoders, predictor and everything else with weights.
    Raises `InputError` if there is no predictor.
    """
    if predictor:
        model.require_predictor()
        assert model.objective is not None
        tensors = dict(model.objective.state_dict())
    else:
        tensors = {f"encoder.{name}": tensor for name, tensor in model.encoder.state_dict().items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    values = {"format": FORMAT, "version": VERSION, "part": PARTS[predictor], "config": to_dict(config)}
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    read_config, objective = read_folder(folder)
    read = Model(objective.main_encoder, read_config.data, objective)
    differences = []
    for own, other in zip(graphs_of(model, predictor), graphs_of(read, predictor), strict=True):
        differences += compare_graph(own, model.encoder, other.reference)
    return differences


def read_folder(folder: Path, values: Mapping[str, Any] | None = None) -> tuple[Config, Objective]:
    """Return the config and the objective in a folder of `jepa export --format safetensors`.

    A folder without predictor has the objective `imported`. `values` are those of its config.json, if they have been
    read. Raises `InputError` if a file is missing or damaged, and for each missing or unexpected key.
    """
    file = folder / "config.json"
    values = read_json_object(file) if values is None else values
    if values.get("format") != FORMAT:
        raise InputError(
            f"{folder} is an export in the format {shown(values.get('format'))}, which only other programs read; "
            "export the run with --format safetensors, or give the run folder"
        )
    if values.get("version") != VERSION or values.get("part") not in PARTS:
        raise InputError(
            f"{file} must have version {VERSION} and part {' or '.join(PARTS)}, got {shown(values.get('version'))} and "
            f"{shown(values.get('part'))}; export the run again, or install the version of image-jepa that wrote it"
        )
    settings = values.get("config")
    check_code_loaded(settings.get("code") if isinstance(settings, dict) else None, file)
    config: Config = from_dict(Config, settings, f"config in {file}")
    if values["part"] == "encoder":
        config = dataclasses.replace(config, objective=ImportedConfig())
    objective = fresh_objective(config)
    load_strictly(objective, read_safetensors(folder / WEIGHTS), str(folder / WEIGHTS))
    return config, objective
