"""Features of images: what every evaluation works on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from jepa.backbones import Encoder
from jepa.config import InputError
from jepa.data import Images, stream
from jepa.views import as_float, resize

__all__ = ["Features", "extract", "pixels"]

BATCH = 250
PIXEL_SIDE = 32


@dataclass(frozen=True)
class Features:
    """Frozen features of one split."""

    x: Tensor  # (N, D) float32, the last layer averaged over tokens
    labels: Tensor | None  # (N,)
    last4: Tensor | None = None  # (N, 4·D), the last four layers averaged and concatenated


@torch.no_grad()
def extract(
    encoder: Encoder, images: Images, index: Tensor, last4: bool = True, label: str | None = None, workers: int = 0
) -> Features:
    """Encode the images at `index` on the encoder's device, leaving out those that cannot be read.

    `label` names the progress bar; `workers` processes decode ahead.
    """
    device = encoder.mean.device
    was_training = encoder.training
    encoder.eval()
    last, four, rows = [], [], []
    layers = (-4, -3, -2, -1) if last4 and encoder.backbone.num_layers >= 4 else (-1,)
    found = stream(images, index.split(BATCH), workers)
    total = -(-len(index) // BATCH)
    for read in tqdm(found, desc=label, total=total, unit="batch", delay=3, leave=False, disable=label is None):
        if not read.readable.any():
            continue
        rows.append(read.rows[read.readable])
        views = resize(read.pixels[read.readable].to(device), encoder.size)
        tokens = encoder(views, layers=layers)
        pooled = [encoder.backbone.pool(layer).float().cpu() for layer in tokens.layers]
        last.append(pooled[-1])
        four.append(torch.cat(pooled, -1))
    encoder.train(was_training)
    if not rows:
        raise InputError(f"none of {len(index):,} images of {images.name} can be read, so there is nothing to judge on")
    labels = None if images.labels is None else images.labels[torch.cat(rows)]
    return Features(torch.cat(last), labels, torch.cat(four) if len(layers) == 4 else None)


def pixels(images: Images, index: Tensor) -> Features:
    """Take the raw pixels of the images at `index` as features, the baseline that everything must beat.

    Images of more pixels than 32x32 are brought to that, or the probe would not fit into memory.
    """
    parts = []
    rows = []
    for part in index.split(BATCH):
        read = images.read(part)
        rows.append(part[read.readable])
        batch = as_float(read.pixels[read.readable])
        small = batch.shape[-2] * batch.shape[-1] <= PIXEL_SIDE**2
        parts.append((batch if small else resize(batch, (PIXEL_SIDE, PIXEL_SIDE))).flatten(1))
    return Features(torch.cat(parts), None if images.labels is None else images.labels[torch.cat(rows)])
