"""Export to ONNX: graphs with a dynamic batch, checked by onnxruntime."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa.config import Config, InputError
from jepa.interop.agreement import Difference, compare_graph
from jepa.interop.graphs import Graph, converting, graphs_of
from jepa.interop.model import Model

__all__ = ["write_onnx"]

MAX_FILE_BYTES = 2**30  # weights of larger models are written beside the graph; a file of ONNX holds at most 2 GiB


def write_onnx(model: Model, config: Config, predictor: bool, folder: Path) -> list[Difference]:
    """Write model.onnx and, with `predictor`, context.onnx and predictor.onnx; return how much their outputs differ.

    Raises `InputError` if a package is missing, or if there is no predictor.
    """
    graphs = graphs_of(model, predictor)
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"the format onnx needs the package {error.name}: pip install 'image-jepa[export]'") from error
    differences = []
    for graph in graphs:
        path = folder / f"{graph.name}.onnx"
        convert(graph, model, path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        differences += compare_graph(graph, model.encoder, partial(run_session, session, graph))
    return differences


def convert(graph: Graph, model: Model, path: Path) -> None:
    """Write the graph of a module."""
    inputs = graph.inputs_for(torch.rand(2, len(model.encoder.mean), *model.encoder.size))
    with converting("onnx"):
        graph.module(*inputs)  # computes the position embeddings, which become constants
        program = torch.onnx.export(
            graph.module,
            inputs,
            dynamo=True,
            verbose=False,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=tuple(graph.dynamic_axes().values()),
        )
        assert program is not None
        nbytes = sum(tensor.nbytes for tensor in graph.module.state_dict().values())
        program.save(path, external_data=nbytes > MAX_FILE_BYTES)


def run_session(session: Any, graph: Graph, *inputs: Tensor) -> list[Tensor]:
    """Return the outputs of a graph in onnxruntime."""
    feed = {name: tensor.numpy() for name, tensor in zip(graph.inputs, inputs, strict=True)}
    return [torch.from_numpy(output) for output in session.run(list(graph.outputs), feed)]
