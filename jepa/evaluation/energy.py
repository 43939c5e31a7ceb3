"""Label-free evaluation of an Energy Transformer: its energy at each step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jepa.backbones import Encoder, eval_mode
from jepa.backbones.energy_transformer import EnergyTransformer
from jepa.data import ImageDataset, evenly_spaced

__all__ = ["energy_trace"]

MAX_IMAGES = 500
BATCH_SIZE = 100


@torch.no_grad()
def energy_trace(encoder: Encoder, dataset: ImageDataset, indices: Tensor) -> dict[str, Any] | None:
    """Return the energies before the first step and after each step, averaged over up to 500 images of `indices`.

    `total`, `attention` and `hopfield` are lists of T + 1 means over images; `falling` is the percentage of images
    whose total energy decreases at every step. Returns None if the backbone has no energy.
    """
    backbone = encoder.backbone
    if not isinstance(backbone, EnergyTransformer):
        return None
    decoded = dataset.read(indices[evenly_spaced(len(indices), MAX_IMAGES)])
    with eval_mode(encoder):
        batches = decoded.pixels[decoded.readable].split(BATCH_SIZE)
        energies = [backbone.energy(encoder.prepare(batch.to(encoder.device))) for batch in batches]
    attention, hopfield = (torch.cat(part, 1).double().cpu() for part in zip(*energies, strict=True))
    total = attention + hopfield  # (T + 1, B)
    falling = 100 * (total[1:] < total[:-1]).all(0).double().mean()
    traces = {"total": total, "attention": attention, "hopfield": hopfield}
    means = {name: [round(mean, 2) for mean in trace.mean(1).tolist()] for name, trace in traces.items()}
    return means | {"images": total.shape[1], "falling": round(float(falling), 2)}
