"""Patch tokens of an encoder, and what they have in common: colors of their principal axes, and similarity.

Shapes: B images, N tokens in the grid, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.backbones import Encoder, Tokens, eval_mode
from jepa.evaluation.collapse import check_features
from jepa.evaluation.pca import principal_axes
from jepa.transforms.crop import resize

__all__ = ["centered", "enlarged_tokens", "patch_colors", "patch_similarity", "patch_tokens"]

BATCH_SIZE = 100
MIN_IMAGES = 8  # minimum number of images to tell what is at a position from what all images share there
CONTRAST = 0.02  # fraction of tokens that are darker than black or lighter than white, per color channel


@torch.no_grad()
def patch_tokens(encoder: Encoder, images: Tensor, scale: int = 1) -> Tokens:
    """Return the tokens (B, N, D) of images (B, C, H, W), uint8 or floats in [0, 1], on the CPU.

    The images are first resized to `scale` times the input size of the encoder, which gives `scale` ** 2 times as many
    tokens. Raises `InputError` if tokens are NaN or infinite.
    """
    size = (scale * encoder.size[0], scale * encoder.size[1])
    count = max(1, BATCH_SIZE // scale**4)  # attention needs memory for pairs of tokens
    with eval_mode(encoder):
        batches = [encoder(resize(batch, size).to(encoder.device)) for batch in images.split(count)]
    x = torch.cat([batch.x.float().cpu() for batch in batches])
    check_features(x.flatten(0, 1))
    return Tokens(x, batches[0].grid)


def enlarged_tokens(encoder: Encoder, images: Tensor, scale: int) -> Tokens | None:
    """Return `patch_tokens` of enlarged images, or None if the backbone accepts images of one size only."""
    try:
        return patch_tokens(encoder, images, scale)
    except RuntimeError:  # of a layer with a fixed number of tokens
        return None


def patch_colors(tokens: Tokens, foreground: bool = False) -> tuple[Tensor, Tensor]:
    """Return colors (B, N, 3) in [0, 1] of tokens (B, N, D), and which tokens (B, N) are colored.

    Red, green and blue are the first three principal axes of all tokens together (DINOv2, Oquab et al. 2023, arXiv
    2304.07193, figure 1), `centered`, so equal colors mean similar tokens, also in different images. With `foreground`,
    the tokens below the average of the first axis are left out and the axes are those of the others, as in that figure;
    the side of the axis with most tokens at the border of the images counts as background.
    """
    flat, shape = centered(tokens.x).flatten(0, 1), tokens.x.shape[:2]
    shown = torch.ones(len(flat), dtype=torch.bool)
    if foreground:
        first = projected(flat, flat, 1)[:, 0]
        border = torch.ones(tokens.grid, dtype=torch.bool)
        border[1:-1, 1:-1] = False
        shown = first > 0 if first.view(shape)[:, border.flatten()].mean() <= 0 else first < 0
    if int(shown.sum()) < 2:  # all tokens are the same
        shown = torch.ones_like(shown)
    axes = projected(flat[shown], flat, 3)
    low, high = (axes[shown].quantile(q, 0) for q in (CONTRAST, 1 - CONTRAST))
    colors = ((axes - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return colors.view(*shape, 3), shown.view(shape)


def projected(fitted: Tensor, x: Tensor, count: int) -> Tensor:
    """Return the coordinates (N, count) of x (N, D) along the principal axes of `fitted`.

    The sign of each axis is such that its largest component is positive.
    """
    axes = principal_axes(fitted)[1][:, :count]
    axes = F.pad(axes, (0, count - axes.shape[1]))
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    return (x - fitted.mean(0)) @ (axes * signs).float()


def patch_similarity(tokens: Tensor, image: int, patch: int) -> Tensor:
    """Return the cosine similarity (B, N) of one token to all tokens (B, N, D).

    They are `centered` first, because what all tokens share says nothing about a patch.
    """
    unit = F.normalize(centered(tokens), dim=-1)
    return unit @ unit[image, patch]


def centered(tokens: Tensor) -> Tensor:
    """Subtract from tokens (B, N, D) their average over images at each position.

    Otherwise, positions are most of what the tokens of a small ViT differ in. Of fewer than 8 images, the average over
    all positions is subtracted.
    """
    return tokens - (tokens.mean(0) if len(tokens) >= MIN_IMAGES else tokens.mean((0, 1)))
