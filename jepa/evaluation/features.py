"""Features of images: what every evaluation works on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from jepa.backbones import Encoder
from jepa.data import Images
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
def extract(encoder: Encoder, images: Images, index: Tensor, last4: bool = True, label: str | None = None) -> Features:
    """Encode the images at `index` on the encoder's device; `label` names the progress bar."""
    device = encoder.mean.device
    was_training = encoder.training
    encoder.eval()
    last, four = [], []
    layers = (-4, -3, -2, -1) if last4 and encoder.backbone.num_layers >= 4 else (-1,)
    for part in tqdm(index.split(BATCH), desc=label, unit="batch", leave=False, disable=label is None):
        views = resize(images.batch(part).to(device), encoder.size)
        tokens = encoder(views, layers=layers)
        pooled = [encoder.backbone.pool(layer).float().cpu() for layer in tokens.layers]
        last.append(pooled[-1])
        four.append(torch.cat(pooled, -1))
    encoder.train(was_training)
    labels = None if images.labels is None else images.labels[index]
    return Features(torch.cat(last), labels, torch.cat(four) if len(layers) == 4 else None)


def pixels(images: Images, index: Tensor) -> Features:
    """Take the raw pixels of the images at `index` as features, the baseline that everything must beat.

    Images of more pixels than 32x32 are brought to that, or the probe would not fit into memory.
    """
    parts = []
    for part in index.split(BATCH):
        batch = as_float(images.batch(part))
        small = batch.shape[-2] * batch.shape[-1] <= PIXEL_SIDE**2
        parts.append((batch if small else resize(batch, (PIXEL_SIDE, PIXEL_SIDE))).flatten(1))
    return Features(torch.cat(parts), None if images.labels is None else images.labels[index])
