"""Load trained models from run folders and from the files and folders of other libraries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jepa.config import Config, InputError
from jepa.distributed import pick_device
from jepa.interop.model import Model
from jepa.interop.official import is_official, read_official
from jepa.interop.safetensors_format import read_folder
from jepa.interop.timm_format import read_timm
from jepa.interop.transformers_format import read_transformers
from jepa.interop.weights import read_json_object, read_pickle
from jepa.objectives import Objective
from jepa.runs import Run, load_objective

__all__ = ["Pretrained", "load_model", "read_config_of", "read_pretrained"]


@dataclass(frozen=True)
class Pretrained:
    """A trained objective and its config, read from a run folder or from weights of another library."""

    config: Config
    objective: Objective
    metadata: dict[str, Any]  # of the checkpoint: its step, and what is known of its origin
    origin: str  # what was read, for messages


def load_model(
    path: str | Path, encoder: str | None = None, device: str = "auto", num_heads: int | None = None
) -> Model:
    """Load a model, see `jepa.load`."""
    pretrained = read_pretrained(path, num_heads)
    encoders = pretrained.objective.encoders()
    if encoder is not None and encoder not in encoders:
        raise InputError(f"there is no encoder '{encoder}'; {pretrained.origin} has {', '.join(encoders)}")
    objective = pretrained.objective.to(pick_device(device))
    chosen = objective.encoders()[encoder] if encoder else objective.main_encoder
    return Model(chosen, pretrained.config.data, objective, pretrained.origin)


def read_pretrained(path: str | Path, num_heads: int | None = None) -> Pretrained:
    """Read a trained model.

    `path` is a run folder or one of its checkpoints, a folder of `jepa export --format safetensors`, of `IJepaModel` of
    transformers or of timm, a checkpoint of the official I-JEPA code, or `hf:OWNER/NAME`, a folder on the Hugging Face
    Hub. `num_heads` is needed for checkpoints of the official code whose size is not a published one. Raises
    `InputError` if the model cannot be read, or if its weights do not match its architecture exactly.
    """
    if str(path).startswith("hf:"):
        return read_pretrained(download(str(path).removeprefix("hf:")))
    given = Path(path).expanduser()
    if given.suffix == ".safetensors" and given.parent.name == "checkpoints":
        return _from_run(Run.open(given.parent.parent), given.stem)
    if given.is_file() and given.suffix != ".safetensors":
        return _from_file(given, num_heads)
    if given.is_dir() and (given / "config.json").is_file():
        values = read_json_object(given / "config.json")
        if "format" in values:
            config, objective = read_folder(given, values)
            return Pretrained(config, objective, {}, f"the folder {given} of 'jepa export'")
        if "model_type" in values:
            config, objective = read_transformers(given, values)
            return Pretrained(config, objective, {}, f"the folder {given} of transformers")
        if "architecture" in values:
            config, objective = read_timm(given, values)
            return Pretrained(config, objective, {}, f"the folder {given} of timm")
    if (given.is_dir() and not Run(given).exists) or given.suffix == ".safetensors":
        raise InputError(
            f"{given} is neither a run folder nor a folder of transformers, timm or 'jepa export' with a config.json; "
            "give one of them, or a checkpoint of the official I-JEPA code (.pth.tar)"
        )
    return _from_run(Run.open(given), "last")


def read_config_of(path: str | Path) -> Config:
    """Return the config of a trained model; see `read_pretrained`. The weights of a run are not read."""
    run = Run(path)
    return run.config if run.exists and _is_config(run) else read_pretrained(path).config


def _is_config(run: Run) -> bool:
    """Return whether the config.json of a folder is that of a run, rather than of another library."""
    return not {"model_type", "architecture"} & read_json_object(run.path / "config.json").keys()


def _from_file(path: Path, num_heads: int | None) -> Pretrained:
    values = read_pickle(path)
    if not is_official(values):
        raise InputError(
            f"{path} is not a checkpoint of the official I-JEPA code: it has no target_encoder, encoder or "
            "patch_embed.proj.weight; give weights of another model as a folder with its config.json"
        )
    config, objective = read_official(values, num_heads, str(path))
    return Pretrained(config, objective, {}, f"the checkpoint {path}")


def download(name: str) -> Path:
    """Download the config and weights of a model on the Hugging Face Hub, unless they are cached; return the folder.

    Raises `InputError` if there is no such model, or no connection.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"hf:{name} cannot be downloaded: {reason}; check the name and the connection") from error


def _from_run(run: Run, checkpoint: str) -> Pretrained:
    objective, _, metadata = load_objective(run, checkpoint)
    return Pretrained(run.config, objective, metadata, f"the run {run.path}")
