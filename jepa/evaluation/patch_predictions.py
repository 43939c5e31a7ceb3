"""What the predictor of an I-JEPA foresees: tokens of hidden patches, decoded into pixels and compared with the truth.

Shapes: B images, N tokens in the grid, D width, P pixels of a patch with all channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.backbones import eval_mode
from jepa.config import InputError
from jepa.evaluation.convolutional_decoder import ConvolutionalDecoder, hidden_tokens
from jepa.evaluation.decoding import RidgeDecoder, r2_score
from jepa.evaluation.features import Subset, read_evenly
from jepa.evaluation.patch_tokens import patch_tokens
from jepa.objectives import Objective
from jepa.objectives.ijepa import IJepa
from jepa.rng import Rng
from jepa.transforms.crop import resize

__all__ = ["PatchPredictions", "add_convolutional_decoder", "predict_patches"]

MAX_TOKENS, MAX_IMAGES = 64_000, 1000  # of the training images for the decoder, and as many of the test images
CANDIDATES = 32  # number of images among whose tokens at the same position the actual one is searched, if there are
BATCH_SIZE = 100
SEED = 0  # of the masks


@dataclass(frozen=True)
class PatchPredictions:
    """Tokens of test images, predicted from a part of each image and computed from the whole image.

    Tokens that are in several target blocks are averaged over their predictions. The decoders were fitted to the tokens
    of training images.
    """

    images: Tensor  # (B, C, H, W) in [0, 1]
    context: Tensor  # (B, N) bool, True for tokens that the predictor was given
    hidden: Tensor  # (B, N) bool, True for tokens that it predicted
    predicted: Tensor  # (B, N, D), 0 where nothing was predicted
    actual: Tensor  # (B, N, D)
    decoder: RidgeDecoder
    grid: tuple[int, int]
    convolutional: ConvolutionalDecoder | None = None  # see `add_convolutional_decoder`

    @cached_property
    def errors(self) -> Tensor:
        """Squared errors (B, N) of the predictions, divided by the variance of the tokens; NaN where there are none.

        Predicting the average token would have an error of 1.
        """
        variance = (self.actual - self.actual.mean((0, 1))).square().sum(-1).mean().clamp(min=1e-12)
        errors = (self.predicted - self.actual).square().sum(-1) / variance
        return errors.masked_fill(~self.hidden, torch.nan)

    @cached_property
    def distance_to_context(self) -> Tensor:
        """Distances (B, N) of tokens to the nearest one of the context, in patches."""
        rows, columns = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, self.grid), indexing="ij"))
        positions = torch.stack([rows, columns], 1).float()
        distances = torch.cdist(positions, positions).expand(len(self.images), -1, -1)
        return distances.masked_fill(~self.context[:, None], torch.inf).amin(-1)

    def decoded(self, tokens: Tensor) -> Tensor:
        """Decode tokens (B, N, D) into images (B, C, H, W) in [0, 1]."""
        return from_patches(self.decoder.decode(tokens), self.grid, self.images.shape).clamp(0, 1)

    def decoded_by_convolutions(self, tokens: Tensor) -> Tensor:
        """Decode the hidden tokens of the first images (B, N, D) into images (B, C, H, W) in [0, 1]."""
        assert self.convolutional is not None
        patches = self.convolutional.decode(tokens, self.hidden[: len(tokens)])
        return from_patches(patches, self.grid, self.images.shape).clamp(0, 1)

    def nearest_patches(self, image: int) -> Tensor:
        """Return an image (C, H, W) of the patches whose tokens are nearest to those predicted for an image.

        They are patches of all other test images.
        """
        others = torch.arange(len(self.images)) != image
        bank = self.actual[others].flatten(0, 1)
        pixels = to_patches(self.images, self.grid)
        patches = pixels[others].flatten(0, 1)
        nearest = torch.cat([torch.cdist(rows, bank).argmin(-1) for rows in self.predicted[image].split(16)])
        return from_patches(patches[nearest][None], self.grid, self.images.shape)[0]

    def scores(self) -> dict[str, Any]:
        """Return how well pixels can be decoded from actual and predicted tokens, and how often the token is found."""
        pixels, r2 = to_patches(self.images, self.grid)[self.hidden], {}
        for name, tokens in (("r2_actual", self.actual), ("r2_predicted", self.predicted)):
            decoded = {name: self.decoder.decode(tokens)}
            if self.convolutional:
                decoded[f"{name}_convolutional"] = self.convolutional.decode(tokens, self.hidden)
            for key, patches in decoded.items():
                r2[key] = round(r2_score(patches[self.hidden], pixels, self.decoder.output_mean), 4)
        return {
            "of": "hidden patches",
            "images": len(self.images),
            **r2,
            "error": round(float(self.errors.nanmean()), 4),
            "candidates": min(CANDIDATES, len(self.images)),
            "top1": round(100 * self.retrieval(), 2),
        }

    def retrieval(self) -> float:
        """Return how often a predicted token is nearest to the actual one, among those of 32 images at its position.

        A predictor that knows only the position is right once in 32 times. All images are used if there are fewer.
        """
        found = []
        for chunk in torch.arange(len(self.images)).split(CANDIDATES):
            if len(chunk) < CANDIDATES and len(self.images) >= CANDIDATES:
                continue
            predicted, actual = self.predicted[chunk].transpose(0, 1), self.actual[chunk].transpose(0, 1)
            distance = torch.cdist(predicted, actual, compute_mode="donot_use_mm_for_euclid_dist")  # (N, b, b)
            own = distance.diagonal(dim1=1, dim2=2)[..., None]
            found.append(((distance <= own).sum(-1) == 1)[self.hidden[chunk].T])
        return float(torch.cat(found).double().mean())


def predict_patches(objective: Objective, train: Subset, test: Subset) -> PatchPredictions | None:
    """Predict tokens of up to 1,000 test images, from their masked views.

    The images are not cropped, and their masks are those of training. Returns None for other objectives than I-JEPA,
    and if tokens or predictions are not finite because training has diverged.
    """
    if not isinstance(objective, IJepa):
        return None
    try:
        tokens, patches = tokens_and_patches(objective, train)
    except InputError:  # they are not finite
        return None
    decoder = RidgeDecoder.fit(tokens.flatten(0, 1), patches.flatten(0, 1))
    images = read_images(test, objective.size, objective.masks.num_tokens)
    parts = []
    with torch.no_grad(), eval_mode(objective):
        for i, batch in enumerate(images.split(BATCH_SIZE)):
            positions = torch.arange(i * BATCH_SIZE, i * BATCH_SIZE + len(batch), device=objective.target.device)
            parts.append(predict_batch(objective, batch.to(positions.device), Rng(SEED, 0, positions)))
    context, hidden, predicted, actual = (torch.cat(part) for part in zip(*parts, strict=True))
    if not bool(predicted.isfinite().all()):
        return None
    return PatchPredictions(
        images=images,
        context=context,
        hidden=hidden,
        predicted=predicted,
        actual=actual,
        decoder=decoder,
        grid=objective.grid,
    )


def add_convolutional_decoder(found: PatchPredictions, objective: IJepa, train: Subset) -> PatchPredictions:
    """Return predictions with a convolutional decoder in addition, which takes up to a minute on two cores.

    It is fitted to the same tokens of training images as the ridge decoder.
    """
    tokens, patches = tokens_and_patches(objective, train)
    return replace(found, convolutional=ConvolutionalDecoder.fit(tokens, patches, objective.masks, found.decoder))


def tokens_and_patches(objective: IJepa, train: Subset) -> tuple[Tensor, Tensor]:
    """Return tokens (B, N, D) of the target encoder and patches (B, N, P) of training images.

    Raises `InputError` if tokens are not finite.
    """
    images = read_images(train, objective.size, objective.masks.num_tokens)
    tokens = patch_tokens(objective.target, images)
    return normalized(tokens.x), to_patches(images, tokens.grid)


def read_images(subset: Subset, size: tuple[int, int], num_tokens: int) -> Tensor:
    """Return up to 1,000 evenly spaced images (B, C, H, W), resized to `size`; fewer if they have many tokens each."""
    limit = max(CANDIDATES, min(MAX_IMAGES, MAX_TOKENS // num_tokens))
    return torch.cat([resize(batch, size) for batch, _ in read_evenly(subset, limit, BATCH_SIZE)])


def predict_batch(objective: IJepa, images: Tensor, rng: Rng) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the fields `context`, `hidden`, `predicted` and `actual` of `PatchPredictions` for a batch."""
    masks = objective.masks.sample(rng)
    actual = normalized(objective.target(images).x.float())
    context = objective.context(images, masks.context, masks.context_valid).x
    blocks = objective.predictor(context, masks).float().flatten(1, 2)  # (B, M·T, D)
    positions, valid = masks.targets.flatten(1), masks.targets_valid.flatten(1)
    counts = torch.zeros(actual.shape[:2], device=actual.device).scatter_add_(1, positions, valid.float())
    sums = torch.zeros_like(actual)
    sums.scatter_add_(1, positions[..., None].expand_as(blocks), blocks * valid[..., None])
    visible = torch.zeros_like(counts).scatter_add_(1, masks.context, masks.context_valid.float())
    predicted = sums / counts.clamp(min=1)[..., None]
    return (visible > 0).cpu(), hidden_tokens(masks, actual.shape[1]).cpu(), predicted.cpu(), actual.cpu()


def normalized(tokens: Tensor) -> Tensor:
    """Normalize tokens (…, D) as the targets of I-JEPA are."""
    return F.layer_norm(tokens, tokens.shape[-1:])


def to_patches(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cut images (B, C, H, W) into patches (B, N, P) of their pixels."""
    height, width = images.shape[-2] // grid[0], images.shape[-1] // grid[1]
    return F.unfold(images, (height, width), stride=(height, width)).mT


def from_patches(patches: Tensor, grid: tuple[int, int], shape: torch.Size) -> Tensor:
    """Put patches (B, N, P) together to images (B, C, H, W) of the last three sizes of `shape`."""
    height, width = shape[-2] // grid[0], shape[-1] // grid[1]
    return F.fold(patches.mT, (shape[-2], shape[-1]), (height, width), stride=(height, width))
