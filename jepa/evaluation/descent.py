"""How the energy of an Energy Transformer falls along its steps, over images: needs no labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jepa.backbones import Encoder, EnergyTransformer
from jepa.data import Images

__all__ = ["descent", "descent_table"]

COUNT = 500  # images


@torch.no_grad()
def descent(encoder: Encoder, images: Images, index: Tensor) -> dict[str, Any] | None:
    """Average the energies before every step and after the last over up to 500 images; None without an energy.

    `total`, `attention` and `hopfield` are lists of T + 1 means over images; `falling` is the share of images, in
    percent, whose total falls at every step.
    """
    backbone = encoder.backbone
    if not isinstance(backbone, EnergyTransformer):
        return None
    was_training = encoder.training
    encoder.eval()
    read = images.read(index[:: -(-len(index) // COUNT)])
    batches = read.pixels[read.readable].split(100)
    parts = [backbone.energy(encoder.prepare(batch.to(encoder.mean.device))) for batch in batches]
    encoder.train(was_training)
    attention, hopfield = (torch.cat(part, 1).double().cpu() for part in zip(*parts, strict=True))
    total = attention + hopfield
    means = {"total": total, "attention": attention, "hopfield": hopfield}
    falling = 100 * (total[1:] < total[:-1]).all(0).double().mean()
    return {name: [round(mean, 2) for mean in values.mean(1).tolist()] for name, values in means.items()} | {
        "images": total.shape[1],
        "falling": round(float(falling), 2),
    }


def descent_table(found: dict[str, Any]) -> str:
    """Lay `descent` out as text, a column a step."""
    lines = [f"{'step':<10}" + "".join(f"{step:>10}" for step in range(len(found["total"])))]
    for name in ("total", "attention", "hopfield"):
        lines += [f"{name:<10}" + "".join(f"{value:>10,.0f}" for value in found[name])]
    return "\n".join(lines)
