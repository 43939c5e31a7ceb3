"""The first picture of a report: what the model sees in a few images, and what it predicts of them."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from jepa.evaluation.attention import attention as attention_weights
from jepa.evaluation.patch_predictions import PatchPredictions
from jepa.evaluation.patch_tokens import enlarged_tokens, patch_colors, patch_tokens
from jepa.evaluation_run import EvaluationRun
from jepa.report.plot_attention import overlay, patch_index
from jepa.report.plot_patches import ENLARGED, FITTED_IMAGES
from jepa.report.plot_predictions import HIDDEN, pixel_mask
from jepa.report.style import new_figure, show_image
from jepa.transforms.crop import resize

__all__ = ["overview"]

NUM_IMAGES, MAX_COLUMNS = 2, 10


def overview(run: EvaluationRun) -> Figure:
    """Draw test images, their features as colors and, where they apply, attention and a decoded prediction."""
    encoder, found = run.encoders["trained"], run.patch_predictions or run.pixel_predictions
    pixels = found.images[:FITTED_IMAGES] if found else resize(run.read_images(FITTED_IMAGES), encoder.size)
    tokens = enlarged_tokens(encoder, pixels, ENLARGED) or patch_tokens(encoder, pixels)
    columns = {"image": pixels, "features": patch_colors(tokens)[0].unflatten(1, tokens.grid).permute(0, 3, 1, 2)}
    if (weights := attention_weights(encoder, pixels[:MAX_COLUMNS])) is not None:
        received = weights[-1].mean(1)[:, patch_index(None, run.grid)]
        maps = [overlay(image, row, run.grid) for image, row in zip(pixels, received, strict=False)]
        columns["attention"] = torch.stack(maps).permute(0, 3, 1, 2)
    if found:
        count = len(pixels)
        context, hidden = (pixel_mask(mask[:count], found) for mask in (found.context, found.hidden))
        visible = torch.where(context, pixels, HIDDEN)
        predicted = found.predicted[:count]
        predicted = found.decoded(predicted) if isinstance(found, PatchPredictions) else predicted.clamp(0, 1)
        columns["context"] = visible
        columns["prediction"] = torch.where(hidden, predicted, visible)
    count = min(len(pixels), max(NUM_IMAGES, MAX_COLUMNS // len(columns)))
    width = 7.2 / (count * len(columns))
    figure = new_figure(width * pixels.shape[-2] / pixels.shape[-1] + 0.3)
    axes = iter(figure.subplots(1, count * len(columns), squeeze=False)[0])
    for image in range(count):
        for title, views in columns.items():
            current = next(axes)
            show_image(current, views[image])
            current.set_title(title, fontsize=8)
    return figure
