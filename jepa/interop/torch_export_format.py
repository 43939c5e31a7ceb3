"""Export to programs of `torch.export` with a dynamic batch, which run without image-jepa."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from jepa.config import Config
from jepa.interop.agreement import Difference, compare_graph
from jepa.interop.graphs import converting, graphs_of
from jepa.interop.model import Model

__all__ = ["write_torch_export"]


def write_torch_export(model: Model, config: Config, predictor: bool, folder: Path) -> list[Difference]:
    """Write model.pt2 and, with `predictor`, context.pt2 and predictor.pt2; return how much their outputs differ.

    Raises `InputError` if there is no predictor.
    """
    differences = []
    for graph in graphs_of(model, predictor):
        path = folder / f"{graph.name}.pt2"
        inputs = graph.inputs_for(torch.rand(2, len(model.encoder.mean), *model.encoder.size))
        names = {name for axes in graph.dynamic_axes().values() for name in axes.values()}
        dimensions = {name: torch.export.Dim(name) for name in names}
        shapes = tuple(
            {axis: dimensions[name] for axis, name in axes.items()} for axes in graph.dynamic_axes().values()
        )
        with converting("torch-export"):
            graph.module(*inputs)  # computes the position embeddings, which become constants
            torch.export.save(torch.export.export(graph.module, inputs, dynamic_shapes=shapes), path)
            loaded = torch.export.load(path).module()
        differences += compare_graph(graph, model.encoder, partial(run_program, loaded))
    return differences


def run_program(program: nn.Module, *inputs: Tensor) -> Sequence[Tensor]:
    """Return the outputs of a loaded program."""
    outputs = program(*inputs)
    return outputs if isinstance(outputs, tuple) else (outputs,)
