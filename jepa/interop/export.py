"""Export a trained model as a folder for other libraries and runtimes, with a model card."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from jepa.config import Config, InputError, suggest
from jepa.config.serialization import to_dict
from jepa.files import atomic_folder, printable
from jepa.interop.agreement import Difference, require_agreement
from jepa.interop.graphs import Graph, graphs_of
from jepa.interop.load import Pretrained
from jepa.interop.model import Model
from jepa.interop.model_card import ModelCard, public_config, public_name
from jepa.interop.onnx_format import write_onnx
from jepa.interop.safetensors_format import write_safetensors
from jepa.interop.timm_folder import write_timm
from jepa.interop.torch_export_format import write_torch_export
from jepa.interop.transformers_folder import write_transformers
from jepa.version import __version__

__all__ = ["FORMATS", "Exported", "Format", "export"]

PROCESSOR_NOTE = (
    "The {processor} prepares images in this way as closely as it can. {exact} Others differ as measured below: "
    "large images are reduced in another way, and images are cropped to whole pixels, after they were resized."
)
EXACT_NOTE = "Images that have the size of the model's input give the same pixels."
CANVAS_NOTE = "It resizes images once, not twice, so all pixels differ slightly."
ASPECT_NOTE = "It does not crop, so first crop images to the aspect ratio of the model's input."
GRAPH_NOTE = (
    "The graphs take images of exactly this size, in [0, 1], and normalize them. The code above prepares images of up "
    "to twice this size {exact}; image-jepa reduces larger ones in another way, with small differences."
)


@dataclass(frozen=True)
class Format:
    """How a model is written in one format."""

    write: Callable[[Model, Config, bool, Path], list[Difference]]
    bar: float  # the largest difference, relative to the values
    usage: str  # Python code, in which PATH is the folder
    is_graph: bool = False  # whether graphs are written, and described in config.json
    processor: str = ""  # what prepares images in the library of the format
    holds_predictor: bool = True


@dataclass(frozen=True)
class Exported:
    """An exported model."""

    path: Path
    files: list[Path]
    encoder: str  # name of the encoder, such as target
    differences: list[Difference]


FORMATS = {
    "transformers": Format(
        write_transformers,
        bar=1e-5,
        processor="image processor",
        holds_predictor=False,
        usage="""from PIL import Image
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("PATH")
model = AutoModel.from_pretrained("PATH")
inputs = processor(images=Image.open("image.png").convert("MODE"), return_tensors="pt")
tokens = model(**inputs).last_hidden_state
embedding = tokens.mean(1)""",
    ),
    "timm": Format(
        write_timm,
        bar=1e-5,
        processor="transform",
        holds_predictor=False,
        usage="""import timm
from PIL import Image

model = timm.create_model("local-dir:PATH", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
tokens = model.forward_features(transform(Image.open("image.png").convert("MODE"))[None])""",
    ),
    "safetensors": Format(
        write_safetensors,
        bar=1e-5,
        usage="""import jepa

model = jepa.load("PATH")
embedding = model.embed("image.png")
tokens = model.tokens("image.png").x""",
    ),
    "onnx": Format(
        write_onnx,
        bar=1e-4,
        is_graph=True,
        usage="""import numpy as np
import onnxruntime
from PIL import Image, ImageOps

image = ImageOps.fit(Image.open("image.png").convert("MODE"), (WIDTH, HEIGHT), Image.Resampling.BILINEAR)
images = np.asarray(image, np.float32).reshape(1, HEIGHT, WIDTH, CHANNELS).transpose(0, 3, 1, 2) / 255
session = onnxruntime.InferenceSession("PATH/model.onnx")
tokens, embedding = session.run(["tokens", "embedding"], {"images": images})""",
    ),
    "torch-export": Format(
        write_torch_export,
        bar=1e-5,
        is_graph=True,
        usage="""import numpy as np
import torch
from PIL import Image, ImageOps

image = ImageOps.fit(Image.open("image.png").convert("MODE"), (WIDTH, HEIGHT), Image.Resampling.BILINEAR)
images = torch.tensor(np.asarray(image)).reshape(1, HEIGHT, WIDTH, CHANNELS).permute(0, 3, 1, 2) / 255
model = torch.export.load("PATH/model.pt2").module()
tokens, embedding = model(images)""",
    ),
}
"""Formats by name."""


def export(
    pretrained: Pretrained,
    format: str,
    out: str | Path,
    *,
    predictor: bool = False,
    license: str | None = None,
    evaluation: str = "",
    command: str = "",
) -> Exported:
    """Write the main encoder of a trained model into the new folder `out`, with a model card.

    Args:
        pretrained: a model on the CPU, from `read_pretrained`.
        format: a key of `FORMATS`.
        out: the folder, which must not exist.
        predictor: also write the predictor, and the context encoder whose tokens it takes.
        license: of the data or the model, for the model card.
        evaluation: scores as Markdown, for the model card.
        command: that exports the model, for the model card.

    The files are read back, and their outputs are compared with those of the model. Raises `InputError` if they differ,
    if the format cannot hold the model, or if the folder cannot be written; it is then not created.
    """
    if format not in FORMATS:
        raise InputError(f"there is no format '{format}'{suggest(format, FORMATS)} (formats: {', '.join(FORMATS)})")
    chosen = FORMATS[format]
    if predictor and not chosen.holds_predictor:
        holding = ", ".join(name for name, other in FORMATS.items() if other.holds_predictor)
        raise InputError(f"the format {format} holds no predictor; leave out --predictor, or choose one of {holding}")
    path = Path(os.path.abspath(Path(out).expanduser()))  # noqa: PTH100  (resolve would follow links)
    if os.path.lexists(path):
        raise InputError(f"{out} already exists; choose a new folder with --out PATH, or remove it first")
    model = Model(pretrained.objective.main_encoder, pretrained.config.data, pretrained.objective, pretrained.origin)
    config = public_config(pretrained.config)
    name = next(name for name, encoder in pretrained.objective.encoders().items() if encoder is model.encoder)
    with new_folder(path, out) as folder:
        differences = chosen.write(model, config, predictor, folder)
        require_agreement(differences, chosen.bar)
        graphs = graphs_of(model, predictor) if chosen.is_graph else []
        if chosen.is_graph:
            text = json.dumps(graph_config(format, graphs, config), indent=2, ensure_ascii=False)
            (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        origin = pretrained.metadata.get("origin")
        card = ModelCard(
            config=config,
            encoder=model.encoder,
            encoder_name=name,
            step=pretrained.metadata.get("step"),
            origin=None if origin is None else public_name(origin),
            title=printable(path.name),
            format=format,
            usage=usage(chosen, model, path.name),
            graphs=graphs,
            notes=notes(chosen, model),
            differences=differences,
            evaluation=evaluation,
            license=license,
            command=command,
        )
        (folder / "README.md").write_text(card.as_markdown(), encoding="utf-8")
    return Exported(path, sorted(file for file in path.rglob("*") if file.is_file()), name, differences)


@contextmanager
def new_folder(path: Path, out: str | Path) -> Iterator[Path]:
    """Yield a folder that becomes `path`, which the user gave as `out`; if the block raises, nothing is left of it.

    Converts the errors of a full or read-only disk to `InputError`.
    """
    new_parents = [parent for parent in path.parents if not os.path.exists(parent)]  # noqa: PTH110  (False for a name that is too long)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(path) as folder:
            yield folder
    except BaseException as error:
        for parent in new_parents:
            with suppress(OSError):  # it was not created, or is in use by now
                parent.rmdir()
        if isinstance(error, OSError | SafetensorError):
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise InputError(f"{out} cannot be written: {reason}; choose another folder with --out PATH") from error
        raise


def graph_config(format: str, graphs: Sequence[Graph], config: Config) -> dict[str, object]:
    """Return the config.json of a format of graphs: what they take and return, and the settings of the experiment."""
    described = {
        graph.name: {
            direction: {name: {"shape": list(shape), "meaning": meaning} for name, (shape, meaning) in values.items()}
            for direction, values in (("inputs", graph.inputs), ("outputs", graph.outputs))
        }
        for graph in graphs
    }
    return {"format": format, "image_jepa_version": __version__, "graphs": described, "config": to_dict(config)}


def usage(format: Format, model: Model, name: str) -> str:
    """Return the Python code that uses a model in the folder `name`."""
    height, width = model.encoder.size
    channels = len(model.encoder.mean)
    values = {"WIDTH": width, "HEIGHT": height, "CHANNELS": channels, "MODE": "L" if channels == 1 else "RGB"}
    text = format.usage
    for word, value in values.items():
        text = text.replace(word, str(value))
    return text.replace("PATH", json.dumps(name, ensure_ascii=False)[1:-1])  # within quotes


def notes(format: Format, model: Model) -> list[str]:
    """Return what a model card says on the preprocessing in a format."""
    if format.is_graph:
        exact = "exactly like this" if model.canvas == model.encoder.size else "almost like this, in one step"
        return [GRAPH_NOTE.format(exact=exact)]
    if not format.processor:
        return []
    height, width = model.encoder.size
    exact = EXACT_NOTE if model.canvas == (height, width) else CANVAS_NOTE
    note = PROCESSOR_NOTE.format(processor=format.processor, exact=exact)
    return [note if height == width else f"{note} {ASPECT_NOTE}"]
