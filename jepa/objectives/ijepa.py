"""I-JEPA (Assran et al. 2023, arXiv 2301.08243): predict representations of target blocks from a context block.

Shapes: B images, N tokens in the grid, D encoder width, P predictor width, K context tokens, M targets of T tokens.
"""

from __future__ import annotations

import copy
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.backbones import Encoder, build_encoder, build_trunk, take
from jepa.config import Config, IJepaConfig
from jepa.data import Batch
from jepa.objectives.base import Objective, ema_update
from jepa.objectives.contrastive import info_nce
from jepa.objectives.mask_tokens import MaskTokenPredictor
from jepa.objectives.patch_codes import CodeTeacher
from jepa.objectives.regularizers import feature_std, variance_covariance
from jepa.optim import momentum
from jepa.rng import Rng
from jepa.transforms.crop import crop
from jepa.transforms.masks import Masks, MaskSampler

__all__ = ["IJepa", "IJepaInputs", "Predictor"]

CODE_HIDDEN = 512  # width of the hidden layer that predicts codes of patches


class IJepaInputs(NamedTuple):
    """One view of each image, and its masks."""

    images: Tensor  # (B, C, H, W) floats in [0, 1]
    masks: Masks


class Predictor(MaskTokenPredictor):
    """A narrow network that predicts the tokens of each target block from the context tokens."""

    def forward(self, context: Tensor, masks: Masks) -> Tensor:
        """Predict target tokens (B, M, T, D) from context tokens (B, K, D).

        The input for each target token is a shared mask token plus its position embedding. Target blocks are predicted
        independently.
        """
        batch, count, size = masks.targets.shape
        context_tokens = self.embed(context) + self.positions[masks.context]  # (B, K, P)
        mask_tokens = self.mask_token + self.positions[masks.targets]  # (B, M, T, P)
        context_tokens = context_tokens[:, None].expand(-1, count, -1, -1)
        valid = torch.cat([masks.context_valid[:, None].expand(-1, count, -1), masks.targets_valid], 2)
        tokens = torch.cat([context_tokens, mask_tokens.to(context_tokens.dtype)], 2).flatten(0, 1)  # (B·M, K+T, P)
        predicted = self.trunk(tokens, valid.flatten(0, 1))[:, -size:]
        return self.project(predicted).view(batch, count, size, -1)  # type: ignore[no-any-return]


class IJepa(Objective):
    """I-JEPA: a context encoder, its EMA as the target encoder, and a predictor."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert isinstance(config.objective, IJepaConfig)
        self.config = config.objective
        self.context = build_encoder(config.backbone, config.data)
        self.size, self.grid = config.data.size, self.context.grid
        trunk = build_trunk(config.backbone, self.config.predictor)
        dim = self.context.backbone.dim
        self.predictor = Predictor(*trunk, dim=dim, out=dim, grid=self.grid)
        self.code_teacher: CodeTeacher | None = None
        if self.config.patch_codes:
            self.code_teacher = CodeTeacher(config.data.channels)
            self.code_predictor = code_predictor(dim, self.code_teacher.dim)
        self.target = copy.deepcopy(self.context).requires_grad_(False)
        self.masks = MaskSampler(self.config.masks, self.grid)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; the target encoder stays in evaluation mode."""
        super().train(mode)
        self.target.eval()
        return self

    def sample(self, batch: Batch, rng: Rng) -> IJepaInputs:
        """Crop one view of each image and sample its masks."""
        return IJepaInputs(crop(batch.images, self.config.crop, self.size, rng), self.masks.sample(rng))

    def forward(self, inputs: IJepaInputs) -> dict[str, Tensor]:
        """Return "loss" and its terms. The prediction loss is averaged over tokens, then targets, then images."""
        images, masks = inputs
        with torch.no_grad():  # the target encoder sees the whole image: its output is masked, not its input
            encoded = self.target(images).x
            targets = take(F.layer_norm(encoded, encoded.shape[-1:]), masks.targets)
        context = self.context(images, masks.context, masks.context_valid).x
        predicted = self.predictor(context, masks)
        prediction = block_mean(self.distance(predicted.float(), targets.float()), masks.targets_valid)
        pooled = masked_mean(context, masks.context_valid)
        losses = {"loss": prediction, "prediction": prediction.detach()}
        if self.config.variance or self.config.covariance:
            variance, covariance = variance_covariance(pooled)
            losses["loss"] = prediction + self.config.variance * variance + self.config.covariance * covariance
            losses |= {"variance": variance.detach(), "covariance": covariance.detach()}
        if self.code_teacher is not None:
            codes = info_nce(self.code_predictor(pooled), self.code_teacher(images))
            losses["loss"] = losses["loss"] + self.config.patch_codes * codes
            losses["patch_codes"] = codes.detach()
        losses["padding"] = 1 - masks.context_valid.float().mean()
        losses["feature_std"] = feature_std(encoded.mean(1).float())
        return losses

    def distance(self, predicted: Tensor, targets: Tensor) -> Tensor:
        """Return the distance (…) between tokens (…, D), averaged over D."""
        distance = F.smooth_l1_loss if self.config.loss == "smooth_l1" else F.mse_loss
        return distance(predicted, targets, reduction="none").mean(-1)

    def after_step(self, progress: float) -> None:
        """Update the target encoder, an EMA of the context encoder."""
        ema_update(
            self.target,
            self.context,
            momentum(progress, self.config.ema_half_life, self.config.ema_half_life_end),
        )

    def describe(self) -> str:
        """Describe the masks in one line."""
        masks = self.masks
        kept, padding = 100 * masks.context_kept, 100 * masks.context_padding
        return (
            f"{masks.num_context} of {masks.num_tokens} tokens as context ({kept:.0f}% of those outside the targets, "
            f"{padding:.0f}% padding), {masks.num_targets} targets of up to {masks.target_size} tokens"
        )

    def encoders(self) -> dict[str, Encoder]:
        """Return the target encoder, which the paper evaluates, and the context encoder."""
        return {"target": self.target, "context": self.context}

    def collapse_advice(self) -> str:
        """Advise stronger regularization or a slower target encoder."""
        variance, covariance = (max(0.1, 2 * weight) for weight in (self.config.variance, self.config.covariance))
        return (
            f"try --objective.variance {variance:g} --objective.covariance {covariance:g}, a lower --optim.lr, or an "
            f"--objective.ema-half-life above {self.config.ema_half_life:g}"
        )


def code_predictor(dim: int, out: int) -> nn.Sequential:
    """Build the MLP that predicts the code of a view from its average context token."""
    return nn.Sequential(nn.Linear(dim, CODE_HIDDEN), nn.GELU(), nn.Linear(CODE_HIDDEN, out))


def masked_mean(x: Tensor, valid: Tensor) -> Tensor:
    """Average the valid tokens of x (B, K, D) into (B, D)."""
    weight = valid.to(x.dtype)[..., None]
    return (x * weight).sum(1) / weight.sum(1)


def block_mean(loss: Tensor, valid: Tensor) -> Tensor:
    """Average a loss (B, M, T) over valid tokens per target, then over non-empty targets, then over images."""
    weight = valid.to(loss.dtype)
    num_tokens = weight.sum(-1)
    targets = (loss * weight).sum(-1) / num_tokens.clamp(min=1)
    return (targets.sum(-1) / (num_tokens > 0).sum(-1)).mean()
