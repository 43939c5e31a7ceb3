"""A trained model outside of training: images of any kind in, features out.

Shapes: B images, N tokens in the grid, K context tokens, T target tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from jepa.backbones import Encoder, Tokens
from jepa.config import DataConfig, InputError
from jepa.interop.images import Images, read_batches
from jepa.interop.predictor import (
    Movement,
    SaccadePredictor,
    TokenPredictor,
    build_predictor,
    check_count,
    check_positions,
    positions_of,
)
from jepa.objectives import Objective

__all__ = ["Model", "predict"]

BATCH_SIZE = 64


class Model:
    """A frozen encoder with its preprocessing, and the predictor that was trained with it, if there is one.

    Images are given as a path, a PIL image, a NumPy array (H, W, C) or (B, H, W, C) of uint8, a tensor (C, H, W) or
    (B, C, H, W) of uint8 or of floats in [0, 1], or a list of single ones. They may have any size: the center with the
    aspect ratio of the model's input is resized to it, as `jepa evaluate --data` does.
    """

    def __init__(self, encoder: Encoder, data: DataConfig, objective: Objective | None = None, name: str = "") -> None:
        self.encoder = encoder.eval().requires_grad_(False)
        self.data, self.objective, self.name = data, objective, name
        self.predictor: TokenPredictor | SaccadePredictor | None = None
        if objective is not None:
            objective.eval().requires_grad_(False)
            self.predictor = build_predictor(objective)

    def __repr__(self) -> str:
        backbone, size = type(self.encoder.backbone).__name__, "x".join(map(str, self.canvas))
        return f"Model({backbone} of {self.name}, {size} pixels, {self.dim} values)"

    @property
    def dim(self) -> int:
        """Width D of tokens and embeddings."""
        return self.encoder.backbone.dim

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.encoder.device

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width to which images are cropped and resized before those of the encoder's input."""
        return self.data.canvas_size

    def embed(self, images: Images, batch_size: int = BATCH_SIZE) -> Tensor:
        """Return one vector for each image, the average of its tokens: (B, D) float32 on the CPU.

        Raises `InputError` if an image cannot be read, or has the wrong shape, type or values.
        """
        with torch.inference_mode():
            vectors = [self.encoder.embed(batch).float().cpu() for batch in self._batches(images, batch_size)]
        return torch.cat(vectors) if vectors else torch.empty(0, self.dim)

    def tokens(self, images: Images, batch_size: int = BATCH_SIZE) -> Tokens:
        """Return the tokens of each image: `.x` (B, N, D) float32 on the CPU, and `.grid`, their rows and columns.

        Raises `InputError` like `embed`.
        """
        return self._encode(self.encoder, images, batch_size)

    def context_tokens(
        self, images: Images, positions: Sequence[int] | Tensor | None = None, batch_size: int = BATCH_SIZE
    ) -> Tensor:
        """Return the inputs of the predictor: tokens (B, K, D), or embeddings (B, D), of the context encoder.

        For an I-JEPA, only the patches at `positions` (K,) or (B, K), indices in the grid in raster order, enter the
        encoder. For a Saccade JEPA, the whole image is one view. Raises `InputError` if the model has no predictor.
        """
        predictor, objective = self.require_predictor(), self.objective
        assert objective is not None
        context = objective.encoders()["context"]
        if isinstance(predictor, TokenPredictor):
            if positions is None:
                raise InputError("give the positions of the context: indices of patches in raster order")
            return self._encode(context, images, batch_size, positions).x
        if positions is not None:
            raise InputError("a Saccade JEPA encodes whole views; leave out the positions")
        x = self._encode(context, images, batch_size).x
        return x if predictor.takes_tokens else context.backbone.pool(x)

    def require_predictor(self) -> TokenPredictor | SaccadePredictor:
        """Return the predictor. Raises `InputError` if there is none."""
        if self.predictor is None:
            raise InputError(
                f"{self.name or 'this model'} has no predictor in latent space; train an I-JEPA or a Saccade JEPA, or "
                "load a checkpoint that contains the predictor"
            )
        return self.predictor

    def _batches(self, images: Images, batch_size: int) -> Iterator[Tensor]:
        """Yield batches of images on the device of the model."""
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        channels = len(self.encoder.mean)
        for batch in read_batches(images, channels, self.canvas, batch_size):
            yield batch.to(self.device)

    def _encode(
        self, encoder: Encoder, images: Images, batch_size: int, positions: Sequence[int] | Tensor | None = None
    ) -> Tokens:
        parts: list[Tensor] = []
        grid, done = (0, 0), 0
        with torch.inference_mode():
            for batch in self._batches(images, batch_size):
                keep = None if positions is None else positions_of(positions, done, len(batch), self.device)
                if keep is not None:
                    check_positions(keep, len(batch), encoder.grid)
                tokens = encoder.backbone(encoder.prepare(batch), keep)
                grid, done = tokens.grid, done + len(batch)
                parts.append(tokens.x.float().cpu())
        if positions is not None:
            check_count(positions, done)
        return Tokens(torch.cat(parts) if parts else torch.empty(0, 0, self.dim), grid)


def predict(
    model: Model,
    context: Tensor,
    *,
    positions: Sequence[int] | Tensor | None = None,
    targets: Sequence[int] | Tensor | None = None,
    movement: Movement | None = None,
) -> Tensor:
    """Predict in latent space, with the predictor of a loaded model.

    Args:
        model: a model from `jepa.load`.
        context: tokens (B, K, D) or embeddings (B, D) from `model.context_tokens`.
        positions: for an I-JEPA, positions (K,) or (B, K) of the context tokens, indices in the grid in raster order.
        targets: for an I-JEPA, positions (T,) or (B, T) to predict. They are predicted as one block.
        movement: for a Saccade JEPA, the movement from the view that was encoded to the one to predict.

    Returns predicted tokens (B, T, D) of the target encoder, normalized over D as in training, or predicted features
    of the teacher, of the shape of `context`. Raises `InputError` if the model has no predictor, or for inputs that it
    was not trained with: positions outside of the grid, or larger movements.
    """
    predictor = model.require_predictor()
    context = context.to(model.device)
    with torch.inference_mode():
        if isinstance(predictor, SaccadePredictor):
            if movement is None or positions is not None or targets is not None:
                raise InputError("a Saccade JEPA predicts from a movement: give movement=jepa.Movement(...) alone")
            moved = movement.as_tensor(len(context), model.device)
            predictor.check(context, moved)
            return predictor(context, moved).cpu()  # type: ignore[no-any-return]
        if positions is None or targets is None or movement is not None:
            raise InputError("an I-JEPA predicts from positions: give positions=... of the context, and targets=...")
        for values in (positions, targets):
            check_count(values, len(context))
        given = [positions_of(values, 0, len(context), model.device) for values in (positions, targets)]
        predictor.check(context, *given)
        return predictor(context, *given).cpu()  # type: ignore[no-any-return]
