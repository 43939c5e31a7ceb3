"""Decode predicted tokens into pixels by a small convolutional network, which sees neighboring patches together.

Shapes: B images, N tokens in the grid, D width, P pixels of a patch with all channels.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from jepa.evaluation.decoding import RidgeDecoder
from jepa.rng import Rng
from jepa.transforms.masks import Masks, MaskSampler

__all__ = ["ConvolutionalDecoder", "hidden_tokens"]

WIDTH = 64
PASSES, BATCH_TOKENS = 30, 3200  # passes over the images; 600 steps for 64,000 tokens
MAX_OPERATIONS = 4e12  # of the training: about a minute on one core; wide tokens get fewer passes
LEARNING_RATE = 2e-3
DECODED_BATCH = 100  # images at a time
SEED = 1  # of weights, batches and masks; the masks of test images have seed 0


class ConvolutionalDecoder(nn.Module):
    """Three 3x3 convolutions over the grid of tokens, whose output is added to that of a ridge decoder.

    Only hidden tokens are decoded. The decoder sees the average token everywhere else, as it does outside of the image:
    the actual tokens around the hidden ones were computed from the whole image, so they contain hidden pixels, and a
    decoder that is given them draws these pixels whatever was predicted.
    """

    def __init__(self, ridge: RidgeDecoder, grid: tuple[int, int], token_std: Tensor, pixel_std: Tensor) -> None:
        super().__init__()
        self.ridge, self.grid = ridge, grid
        self.token_std, self.pixel_std = token_std, pixel_std
        dim, num_pixels = ridge.weights.shape
        last = nn.Conv2d(WIDTH, num_pixels, 3, padding=1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)  # training starts at the ridge decoder
        self.convolutions = nn.Sequential(
            nn.Conv2d(dim, WIDTH, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.GELU(),
            last,
        )

    @classmethod
    def fit(cls, tokens: Tensor, patches: Tensor, masks: MaskSampler, ridge: RidgeDecoder) -> Self:
        """Fit tokens (B, N, D) of training images to their patches (B, N, P), with hidden tokens as in training.

        `ridge` was fitted to the same tokens.
        """
        scales = (tokens.flatten(0, 1).std(0).clamp(min=1e-6), patches.std().clamp(min=1e-6))
        with torch.random.fork_rng(devices=[]):  # leaves the caller's generator unchanged
            torch.manual_seed(SEED)
            decoder = cls(ridge, masks.grid, *scales)
        count = min(len(tokens), max(1, BATCH_TOKENS // masks.num_tokens))
        operations = 6 * count * masks.num_tokens * sum(weight.numel() for weight in decoder.parameters())
        steps = max(2, min(PASSES * len(tokens) // count, int(MAX_OPERATIONS / operations)))
        optimizer = torch.optim.AdamW(decoder.parameters(), LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps)
        generator = torch.Generator().manual_seed(SEED)
        for step in range(steps):
            chosen = torch.randint(len(tokens), (count,), generator=generator)
            hidden = hidden_tokens(masks.sample(Rng(SEED, step, torch.arange(count))), masks.num_tokens)
            errors = (decoder(tokens[chosen], hidden) - patches[chosen])[hidden] / decoder.pixel_std
            optimizer.zero_grad()
            errors.square().mean().backward()
            optimizer.step()
            schedule.step()
        return decoder.eval()

    def forward(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Return the pixels (B, N, P) of tokens (B, N, D); only those of `hidden` (B, N) tokens mean something."""
        visible = (tokens - self.ridge.input_mean) / self.token_std * hidden[..., None]
        corrections: Tensor = self.convolutions(visible.mT.unflatten(-1, self.grid)).flatten(2).mT
        return self.ridge.decode(tokens) + corrections * self.pixel_std

    @torch.no_grad()
    def decode(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Return `forward` of any number of images."""
        batches = zip(tokens.split(DECODED_BATCH), hidden.split(DECODED_BATCH), strict=True)
        return torch.cat([self(*batch) for batch in batches])


def hidden_tokens(masks: Masks, num_tokens: int) -> Tensor:
    """Return which of the tokens (B, N) are in a target block."""
    counts = torch.zeros(len(masks.targets), num_tokens, device=masks.targets.device)
    return counts.scatter_add_(1, masks.targets.flatten(1), masks.targets_valid.flatten(1).float()) > 0
