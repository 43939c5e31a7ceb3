"""Nearest features of a source: exactly, block by block, or by the graph of faiss if there are very many."""

from __future__ import annotations

import importlib.util
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.embeddings.store import FeatureShards, file_checksum
from jepa.evaluation.knn import largest
from jepa.files import atomic_write, read_record, write_record
from jepa.terminal import say_stage

__all__ = ["MIN_APPROXIMATE", "Neighbors"]

MIN_APPROXIMATE = 1_000_000  # number of images from which faiss is used, if it is installed
LINKS = 32  # of each image in the graph of faiss
CONSTRUCTION_CANDIDATES, SEARCH_CANDIDATES = 200, 128


class Neighbors:
    """Finds the features of a source that are nearest to given ones, by the cosine of centered features."""

    def __init__(self, shards: FeatureShards) -> None:
        self.shards = shards
        self.device = shards.images.model.device
        has_faiss = importlib.util.find_spec("faiss") is not None
        self.is_approximate = len(shards) >= MIN_APPROXIMATE and has_faiss

    @property
    def how(self) -> str:
        """How the features are compared, in words."""
        return "found approximately by faiss" if self.is_approximate else "compared exactly"

    @cached_property
    def center(self) -> Tensor:
        """Mean of all features (D,)."""
        total = torch.zeros(self.shards.images.model.dim, dtype=torch.float64)
        for block in self.shards.blocks():
            total += block.x.double().sum(0)
        return (total / len(self.shards)).float()

    def unit(self, x: Tensor) -> Tensor:
        """Return centered features (B, D) of length 1, whose products are the similarities."""
        return F.normalize(x - self.center, dim=-1)

    def nearest(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the similarities (Q, count) and rows of the features nearest to queries (Q, D), the nearest first."""
        unit = self.unit(queries)
        return self._approximate(unit, count) if self.is_approximate else self._exact(unit, count)

    def _exact(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the same as `jepa.evaluation.knn.nearest`. Of equal similarities, the first row comes first."""
        queries = queries.to(self.device)
        best = torch.empty(len(queries), 0, device=self.device)
        rows = torch.empty(len(queries), 0, dtype=torch.long, device=self.device)
        start = 0
        for block in self.shards.blocks():
            if len(block.x):
                products = queries @ self.unit(block.x).to(self.device).T
                values, columns = largest(products, min(count, len(block.x)))
                best, order = torch.cat([best, values], 1).sort(dim=1, descending=True, stable=True)
                rows = torch.cat([rows, columns + start], 1).gather(1, order)[:, :count]
                best = best[:, :count]
                start += len(block.x)
        return best.cpu(), rows.cpu()

    def _approximate(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        index = self._graph
        index.hnsw.efSearch = max(SEARCH_CANDIDATES, 2 * count)
        similarities, rows = index.search(queries.numpy(), count)
        return torch.from_numpy(similarities), torch.from_numpy(rows)

    @cached_property
    def _graph(self) -> Any:
        """The graph of all features, which is stored beside them, and built again if its checksum does not match."""
        import faiss

        file = self.shards.folder / "hnsw.faiss"
        record = file.with_suffix(".json")
        if file.is_file() and read_record(record) == {"checksum": file_checksum(file)}:
            return faiss.read_index(str(file))
        say_stage("building the index of faiss")
        index = faiss.IndexHNSWFlat(self.shards.images.model.dim, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = CONSTRUCTION_CANDIDATES
        for block in self.shards.blocks():
            index.add(self.unit(block.x).numpy())
        with atomic_write(file) as temporary:
            faiss.write_index(index, str(temporary))
        write_record(record, {"checksum": file_checksum(file)})
        return index
