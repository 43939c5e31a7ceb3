"""Compare the outputs of an exported model with those of image-jepa."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow.parquet as pq
import torch
from torch import Tensor

from jepa.backbones import Encoder
from jepa.config import InputError
from jepa.data.decode import decode
from jepa.data.sources.parquet import SAMPLE
from jepa.interop.graphs import Graph
from jepa.transforms.crop import as_float

__all__ = ["BATCH_SIZES", "Difference", "compare", "compare_graph", "example_images", "require_agreement"]

BATCH_SIZES = (1, 2, 5)  # of random images, and of images of the built-in sample


@dataclass(frozen=True)
class Difference:
    """The largest absolute difference of an output, and the largest absolute value that image-jepa computes."""

    name: str
    largest: float
    scale: float
    of_pixels: bool = False  # of the preprocessing, in levels of 0 to 255

    def __str__(self) -> str:
        """Return the difference with its scale."""
        if self.of_pixels:
            return f"{self.largest:.1f} of 255"
        return f"{self.largest:.1e} of {self.scale:.3g}"

    def within(self, bar: float) -> bool:
        """Return whether the difference is at most `bar`, relative to the values."""
        return self.largest <= bar * self.scale  # False for NaN


def sample_files(count: int) -> list[bytes]:
    """Return the first image files of the built-in sample."""
    (path,) = SAMPLE.glob("test-*.parquet")
    with pq.ParquetFile(path) as file:
        rows = next(file.iter_batches(count, columns=["image"]))["image"].to_pylist()
    return [row["bytes"] for row in rows]


def example_images(encoder: Encoder) -> Iterator[Tensor]:
    """Yield batches of images (B, C, H, W) in [0, 1] at the size of an encoder: random ones, and real ones."""
    channels, generator = len(encoder.mean), torch.Generator().manual_seed(0)
    files = sample_files(max(BATCH_SIZES))
    real = torch.stack([torch.tensor(decode(file, channels, encoder.size)) for file in files])
    for count in BATCH_SIZES:
        yield torch.rand(count, channels, *encoder.size, generator=generator)
        yield as_float(real[:count])


def compare(names: Sequence[str], pairs: Iterable[tuple[Sequence[Tensor], Sequence[Tensor]]]) -> list[Difference]:
    """Return the differences of named outputs, given pairs of ours and theirs."""
    differences = {name: Difference(name, 0.0, 0.0) for name in names}
    for ours, theirs in pairs:
        for name, own, other in zip(names, ours, theirs, strict=True):
            if own.shape != other.shape:
                raise InputError(f"{name} has the shape {tuple(other.shape)} after the export, not {tuple(own.shape)}")
            values = torch.tensor([differences[name].largest, float((own - other).abs().max())])
            scales = torch.tensor([differences[name].scale, float(own.abs().max())])
            differences[name] = Difference(name, float(values.max()), float(scales.max()))  # NaN stays NaN
    return list(differences.values())


def compare_graph(graph: Graph, encoder: Encoder, run: Callable[..., Sequence[Tensor]]) -> list[Difference]:
    """Return the differences of the outputs of a graph, which `run` computes with the exported one."""
    pairs = []
    with torch.no_grad():
        for images in example_images(encoder):
            inputs = graph.inputs_for(images)
            pairs.append((graph.reference(*inputs), run(*inputs)))
    return compare([f"{graph.name}: {output}" for output in graph.outputs], pairs)


def require_agreement(differences: Sequence[Difference], bar: float) -> None:
    """Raise `InputError` if a difference is above the bar, relative to the values."""
    for difference in differences:
        if not difference.of_pixels and not difference.within(bar):
            raise InputError(
                f"the exported model differs by {difference.largest:.2g} in {difference.name}, whose values are up to "
                f"{difference.scale:.2g}, but at most {bar:g} of them is allowed, so nothing was written; choose "
                "another format, or other versions of the packages that write this one"
            )
