"""Model cards: README.md of exported models, with the metadata of the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jepa.backbones import Encoder
from jepa.config import RECIPES, Config
from jepa.config.serialization import to_dict
from jepa.interop.agreement import BATCH_SIZES, Difference
from jepa.interop.graphs import Graph
from jepa.version import __version__

__all__ = ["ModelCard", "commit", "public_config", "public_name"]

METHODS = {
    "ijepa": "I-JEPA",
    "saccade": "Saccade JEPA",
    "vicreg": "VICReg",
    "lejepa": "LeJEPA",
    "mae": "MAE",
    "supervised": "supervised training",
}
"""Titles of objectives; others are called by their kind."""


@dataclass(frozen=True)
class ModelCard:
    """What a model card says."""

    config: Config
    encoder: Encoder
    encoder_name: str  # such as target
    step: int | None  # None if unknown
    origin: str | None  # of weights of another library
    title: str
    format: str
    usage: str  # Python code
    graphs: Sequence[Graph]  # of a format of graphs
    notes: Sequence[str]  # on the format, paragraphs
    differences: Sequence[Difference]
    evaluation: str  # Markdown, or empty
    license: str | None
    command: str

    def as_markdown(self) -> str:
        """Return the content of README.md."""
        sections = [
            self._front_matter(),
            f"# {self.title}\n\n{self._summary()}",
            f"## Usage\n\n```python\n{self.usage}\n```",
            *(self._graph_section() if self.graphs else []),
            "\n\n".join(["## Preprocessing", self._preprocessing(), *self.notes]),
            f"## Training\n\n{self._training()}",
            f"## Evaluation\n\n{self.evaluation or 'Not evaluated.'}",
            f"## Agreement with image-jepa\n\n{self._agreement()}",
            f"## Export\n\n```sh\n{self.command}\n```\n\n{self._version()}",
            f"## License\n\n{self._license()}",
            self._settings(),
        ]
        return "\n\n".join(sections) + "\n"

    def _front_matter(self) -> str:
        library = {"transformers": "transformers", "timm": "timm", "onnx": "onnx"}.get(self.format, "image-jepa")
        kind = self.config.objective.kind
        tags = ["image-jepa", "jepa", "self-supervised-learning", kind, self.config.backbone.kind]
        lines = [
            f"license: {json.dumps(self.license or 'unknown', ensure_ascii=False)}",  # JSON strings are YAML strings
            f"library_name: {library}",
            "pipeline_tag: image-feature-extraction",
            "tags:",
            *(f"- {json.dumps(tag)}" for tag in dict.fromkeys(tags)),
        ]
        return "\n".join(["---", *lines, "---"])

    def _summary(self) -> str:
        (height, width), channels = self.encoder.size, len(self.encoder.mean)
        rows, columns = self.encoder.grid
        parameters = sum(parameter.numel() for parameter in self.encoder.parameters())
        colors = "grayscale" if channels == 1 else "RGB"
        how = f"trained with {self._method()}" if self.config.objective.kind != "imported" else "imported"
        return (
            f"The {self.encoder_name} encoder of a model {how}: a {self.config.backbone.kind} backbone of "
            f"{parameters / 1e6:.2f} M parameters. It maps {colors} images of {height}x{width} pixels to "
            f"{rows}x{columns} tokens and to one embedding of width {self.encoder.backbone.dim}."
        )

    def _method(self) -> str:
        kind = self.config.objective.kind
        return METHODS.get(kind, kind)

    def _graph_section(self) -> list[str]:
        rows = [
            [f"`{graph.name}`", direction, f"`{name}`", "(" + ", ".join(map(str, shape)) + ")", meaning]
            for graph in self.graphs
            for direction, values in (("input", graph.inputs), ("output", graph.outputs))
            for name, (shape, meaning) in values.items()
        ]
        return ["## Inputs and outputs\n\n" + markdown_table(["graph", "", "name", "shape", "meaning"], rows)]

    def _preprocessing(self) -> str:
        (height, width), data = self.encoder.size, self.config.data
        canvas = data.canvas_size
        divisor = math.gcd(height, width)
        via = f", first to {canvas[0]}x{canvas[1]} and then" if canvas != (height, width) else ""
        mean, std = (
            ", ".join(f"{value:g}" for value in values.flatten()) for values in (self.encoder.mean, self.encoder.std)
        )
        return (
            f"The center of each image with the aspect ratio {width // divisor}:{height // divisor} is resized{via} to "
            f"{height}x{width} pixels (bilinear, antialiased). Pixels are divided by 255, and normalized with the mean "
            f"({mean}) and the standard deviation ({std}) of each channel."
        )

    def _training(self) -> str:
        config, data = self.config, self.config.data
        if config.objective.kind == "imported":
            return f"The weights were imported{f' from {self.origin}' if self.origin else ''}; see there."
        recipe = " (a recipe of image-jepa)" if config.name in RECIPES else ""
        step = "unknown" if self.step is None else f"{self.step:,} of {config.steps:,}"
        rows = [
            ["experiment", f"`{config.name}`{recipe}"],
            ["method", self._method()],
            ["data", f"`{data.source}`"],
            ["steps", step],
            ["images per step", f"{config.batch_size:,}"],
            ["seed", str(config.seed)],
            *([["weights", f"from {self.origin}"]] if self.origin else []),
        ]
        return markdown_table(["", ""], rows)

    def _agreement(self) -> str:
        counts = ", ".join(map(str, BATCH_SIZES[:-1]))
        table = markdown_table(["output", "largest difference"], [[item.name, str(item)] for item in self.differences])
        return (
            f"Measured on {counts} and {BATCH_SIZES[-1]} random images, and on as many of Fashion-MNIST, during the "
            f"export: the largest absolute difference of each output, and its largest value.\n\n{table}"
        )

    def _version(self) -> str:
        found = commit()
        return f"image-jepa {__version__}{f', commit {found}' if found else ''}."

    def _license(self) -> str:
        if self.license is None:
            return "The license of the data, and so that of this model, was not given when the model was exported."
        return f"As given when the model was exported: {self.license}."

    def _settings(self) -> str:
        text = json.dumps(to_dict(self.config), indent=2, ensure_ascii=False)
        return f"<details>\n<summary>All settings of the experiment</summary>\n\n```json\n{text}\n```\n\n</details>"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def public_name(path: str) -> str:
    """Return the last part of a path or the name of a source; folders of this machine are not told to others."""
    return path if path.startswith("hf:") else Path(path).name or Path(path).resolve().name


def public_config(config: Config) -> Config:
    """Return a config without the folder of its images."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, source=public_name(config.data.source)))


def commit() -> str | None:
    """Return the commit of the working copy that image-jepa runs from, or None if it runs from an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # another repository that contains the environment would have one further up
        return None
    try:
        result = subprocess.run(
            ["git", "-C", root, "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
