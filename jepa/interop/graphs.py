"""Trained networks as modules of plain tensors with named inputs and outputs, for formats of computation graphs.

Shapes: B images, C channels, N tokens in the grid, K context tokens, T target tokens, D width.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jepa.backbones import Encoder
from jepa.config import InputError
from jepa.files import printable
from jepa.interop.model import Model
from jepa.interop.predictor import SaccadePredictor, TokenPredictor

__all__ = ["Graph", "Inputs", "converting", "encoder_graph", "graphs_of"]

Inputs = tuple[Tensor, ...]
NORMALIZED = "float32 in [0, 1]; the graph normalizes them"


@contextmanager
def converting(format: str) -> Iterator[None]:
    """Convert the errors of an exporter, which cannot trace every model of a user's code, to `InputError`.

    Warnings of exporters, about their own code, and the graphs that they print after an error are not shown.
    """
    try:
        output = io.StringIO()
        with torch.no_grad(), warnings.catch_warnings(), redirect_stdout(output), redirect_stderr(output):
            warnings.simplefilter("ignore")
            yield
    except OSError:
        raise
    except Exception as error:
        reason = printable(next(iter(str(error).strip().splitlines()), type(error).__name__)[:200])
        raise InputError(
            f"the format {format} cannot hold this model: {reason}; choose --format safetensors"
        ) from error


@dataclass(frozen=True)
class Graph:
    """A network to export, and how to call it."""

    name: str  # of its file, without the ending
    module: nn.Module
    inputs: dict[str, tuple[tuple[int | str, ...], str]]  # shape, whose dynamic axes are named, and meaning
    outputs: dict[str, tuple[tuple[int | str, ...], str]]
    inputs_for: Callable[[Tensor], Inputs]  # of the module, for images (B, C, H, W) in [0, 1]
    reference: Callable[..., Inputs]  # what image-jepa computes from the same inputs

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """Return the names of the dynamic axes of each input."""
        return {
            name: {axis: length for axis, length in enumerate(shape) if isinstance(length, str)}
            for name, (shape, _) in self.inputs.items()
        }


class EncoderGraph(nn.Module):
    """Tokens and embeddings of images."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (B, N, D) and embeddings (B, D) of images (B, C, H, W) in [0, 1] of the encoder's size."""
        x = self.encoder(images).x
        return x, self.encoder.backbone.pool(x)


class ContextGraph(nn.Module):
    """Tokens of some patches of images, which the predictor of an I-JEPA takes."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor, context_positions: Tensor) -> Tensor:
        """Return tokens (B, K, D) of the patches at positions (B, K) of images (B, C, H, W) in [0, 1]."""
        tokens: Tensor = self.encoder(images, context_positions).x
        return tokens


def graphs_of(model: Model, predictor: bool) -> list[Graph]:
    """Return the graph of the encoder and, with `predictor`, those of the context encoder and of the predictor.

    Raises `InputError` if there is no predictor.
    """
    graphs = [encoder_graph("model", model.encoder)]
    if not predictor:
        return graphs
    network = model.require_predictor()
    assert model.objective is not None
    context = model.objective.encoders()["context"]
    if isinstance(network, TokenPredictor):
        return [*graphs, *token_graphs(context, network)]
    return [*graphs, *saccade_graphs(context, network)]


def encoder_graph(name: str, encoder: Encoder) -> Graph:
    """Return the graph of an encoder."""
    (rows, columns), dim = encoder.grid, encoder.backbone.dim

    def reference(images: Tensor) -> Inputs:
        return encoder.backbone(encoder.prepare(images)).x, encoder.embed(images)

    return Graph(
        name,
        EncoderGraph(encoder).eval(),
        inputs={"images": image_input(encoder)},
        outputs={
            "tokens": (("batch", rows * columns, dim), f"one for each of {rows}x{columns} patches, in raster order"),
            "embedding": (("batch", dim), "one for each image: its tokens, pooled"),
        },
        inputs_for=lambda images: (images,),
        reference=reference,
    )


def image_input(encoder: Encoder) -> tuple[tuple[int | str, ...], str]:
    """Return the shape and the meaning of the input images."""
    return ("batch", len(encoder.mean), *encoder.size), NORMALIZED


def token_graphs(encoder: Encoder, predictor: TokenPredictor) -> list[Graph]:
    """Return the graphs of the context encoder of an I-JEPA and of its predictor."""
    rows, columns = predictor.grid
    positions = f"int64, patches in raster order, 0 to {rows * columns - 1}"
    context = (("batch", "context"), f"{positions}; those of the context")
    tokens = (("batch", "context", predictor.dim), "of the context encoder, one for each context position")

    def encode(images: Tensor, context_positions: Tensor) -> Inputs:
        return (encoder.backbone(encoder.prepare(images), context_positions).x,)

    def positions_for(images: Tensor) -> Inputs:
        return images, draw_positions(len(images), rows * columns)[0]

    def predictor_inputs_for(images: Tensor) -> Inputs:
        context_positions, targets = draw_positions(len(images), rows * columns)
        return *encode(images, context_positions), context_positions, targets

    return [
        Graph(
            "context",
            ContextGraph(encoder).eval(),
            inputs={"images": image_input(encoder), "context_positions": context},
            outputs={"context_tokens": tokens},
            inputs_for=positions_for,
            reference=encode,
        ),
        Graph(
            "predictor",
            predictor.eval(),
            inputs={
                "context_tokens": tokens,
                "context_positions": context,
                "target_positions": (("batch", "targets"), f"{positions}; those to predict"),
            },
            outputs={
                "predicted_tokens": (
                    ("batch", "targets", predictor.dim),
                    "predicted tokens of the target encoder, normalized over their features",
                )
            },
            inputs_for=predictor_inputs_for,
            reference=lambda *inputs: (predictor(*inputs),),
        ),
    ]


def draw_positions(count: int, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Return positions of context tokens (B, K) and of targets (B, T); K and T depend on the number of images."""
    generator = torch.Generator().manual_seed(count)
    orders = torch.stack([torch.randperm(num_tokens, generator=generator) for _ in range(count)])
    num_context = min(num_tokens, 2 + count) if count > 1 else num_tokens  # all tokens are a context, too
    # with the strides of a slice, a graph would be valid only for fewer tokens than there are
    return orders[:, :num_context].contiguous(), orders[:, -min(num_tokens, count) :].contiguous()


def saccade_graphs(encoder: Encoder, predictor: SaccadePredictor) -> list[Graph]:
    """Return the graphs of the context encoder of a Saccade JEPA and of its predictor."""
    context = encoder_graph("context", encoder)
    source = "tokens" if predictor.takes_tokens else "embedding"
    shape = context.outputs[source][0]
    config = predictor.geometry.config
    limits = torch.tensor([predictor.geometry.max_shift] * 2 + [config.rotation])

    def inputs_for(images: Tensor) -> Inputs:
        u = torch.rand(len(images), 4, generator=torch.Generator().manual_seed(len(images)))
        movement = torch.cat([(2 * u[:, :3] - 1) * limits, config.zoom ** (2 * u[:, 3:] - 1)], 1)
        return context.reference(images)[list(context.outputs).index(source)], movement

    return [
        context,
        Graph(
            "predictor",
            predictor.eval(),
            inputs={
                "features": (shape, f"the output '{source}' of the context encoder"),
                "movement": (
                    ("batch", 4),
                    f"shift to the right and down (up to {predictor.geometry.max_shift:.3g} view sides), clockwise "
                    f"rotation in degrees (up to {config.rotation:g}) and zoom (up to a factor of {config.zoom:g})",
                ),
            },
            outputs={"predicted_features": (shape, "predicted features of the target encoder after the movement")},
            inputs_for=inputs_for,
            reference=lambda *inputs: (predictor(*inputs),),
        ),
    ]
