"""Export to a folder of transformers: an IJepaModel with its image processor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from torch import Tensor

from jepa.config import Config
from jepa.interop.agreement import Difference, compare_graph
from jepa.interop.graphs import encoder_graph
from jepa.interop.model import Model
from jepa.interop.processor import pixel_differences, processor_config
from jepa.interop.transformers_format import to_transformers

__all__ = ["write_transformers"]


def write_transformers(model: Model, config: Config, predictor: bool, folder: Path) -> list[Difference]:
    """Write a folder that `AutoModel` and `AutoImageProcessor` of transformers load; return how much both differ.

    Raises `InputError` if transformers is not installed, or cannot hold the backbone.
    """
    encoder = model.encoder
    exported = to_transformers(encoder)  # imports transformers
    with quiet_transformers():
        exported.save_pretrained(folder)
        text = json.dumps(processor_config(encoder), indent=2)
        (folder / "preprocessor_config.json").write_text(text + "\n", encoding="utf-8")

        from transformers import AutoImageProcessor, AutoModel

        loaded = AutoModel.from_pretrained(folder, local_files_only=True).eval()
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)

    def run(images: Tensor) -> list[Tensor]:
        tokens = loaded((images - encoder.mean) / encoder.std).last_hidden_state
        return [tokens, tokens.mean(1)]

    def process(image: Image.Image) -> Tensor:
        pixels: Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    features = compare_graph(encoder_graph("model", encoder), encoder, run)
    return [*features, *pixel_differences(encoder, config.data, process)]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Show no progress bars of transformers within a `with` block."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
