"""What the predictor of a JEPA foresees, decoded into pixels, and where it errs."""

from __future__ import annotations

from itertools import zip_longest

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from jepa.config import InputError
from jepa.config.hints import command
from jepa.evaluation.patch_predictions import PatchPredictions
from jepa.evaluation.pixel_predictions import PixelPredictions
from jepa.evaluation.view_predictions import ViewPredictions
from jepa.evaluation_run import EvaluationRun
from jepa.report.plot_saccades import describe_saccade
from jepa.report.style import ENCODER_COLORS, WIDTH, new_figure, show_image

__all__ = ["errors", "predictions"]

NUM_IMAGES, NUM_EXTREMES, NUM_COLUMNS = 6, 16, 8
MIN_TOKENS = 30  # of a distance that is drawn
USUAL_COLUMNS = 6  # more have room for small titles only
HIDDEN = 0.9  # gray of hidden patches
CONVOLUTIONAL_TITLES = {
    "actual": "truth by\nconvolutions\nR² {[r2_actual_convolutional]:.2f}",
    "predicted": "prediction by\nconvolutions\nR² {[r2_predicted_convolutional]:.2f}",
}


def predictions(run: EvaluationRun) -> Figure:
    """Draw test images, what the predictor was given of them, and what it foresees.

    I-JEPA and the masked autoencoder foresee hidden patches, and Saccade JEPA the view after a movement. Raises
    `InputError` if the objective predicts neither.
    """
    if run.view_predictions:
        return draw_views(run.view_predictions)
    if run.pixel_predictions:
        return draw_pixels(run.pixel_predictions)
    return draw_patches(require_predictions(run))


def draw_patches(found: PatchPredictions) -> Figure:
    """Draw images, the context, the decoded tokens, and the patches whose tokens are nearest to the predictions."""
    count = min(NUM_IMAGES, len(found.images))
    hidden, context = (pixel_mask(mask[:count], found) for mask in (found.hidden, found.context))
    images = found.images[:count]
    actual, predicted = (found.decoded(tokens[:count]) for tokens in (found.actual, found.predicted))
    nearest = torch.stack([found.nearest_patches(image) for image in range(count)])
    visible = torch.where(context, images, HIDDEN)
    difference = (predicted - actual).abs().mean(1, keepdim=True).expand_as(images)
    scores, space = found.scores(), "\n" if found.convolutional else " "
    columns = {
        "image": images,
        "context": visible,
        f"decoded truth\nR² {scores['r2_actual']:.2f}": torch.where(hidden, actual, visible),
        f"decoded{space}prediction\nR² {scores['r2_predicted']:.2f}": torch.where(hidden, predicted, visible),
    }
    if found.convolutional:
        for name, tokens in (("actual", found.actual), ("predicted", found.predicted)):
            decoded = found.decoded_by_convolutions(tokens[:count])
            columns[CONVOLUTIONAL_TITLES[name].format(scores)] = torch.where(hidden, decoded, visible)
    columns["difference"] = torch.where(hidden, 1 - difference, HIDDEN)
    columns["nearest patches\nof other images"] = torch.where(hidden, nearest, visible)
    return draw_table(columns)


def draw_pixels(found: PixelPredictions) -> Figure:
    """Draw images, their visible patches, what is given of the others, their predicted pixels, and the difference."""
    count = min(NUM_IMAGES, len(found.images))
    images, hidden = found.images[:count], pixel_mask(found.hidden[:count], found)
    predicted = found.predicted[:count].clamp(0, 1)
    difference = (predicted - images).abs().mean(1, keepdim=True).expand_as(images)
    columns = {"image": images, "visible": torch.where(hidden, HIDDEN, images)}
    if found.normalized:
        columns["mean of patches\nR² 0.00"] = torch.where(hidden, found.reference[:count].clamp(0, 1), images)
    columns |= {
        f"prediction\nR² {found.scores()['r2_predicted']:.2f}": torch.where(hidden, predicted, images),
        "difference": torch.where(hidden, 1 - difference, HIDDEN),
    }
    return draw_table(columns)


def draw_table(columns: dict[str, Tensor]) -> Figure:
    """Draw the images (B, C, H, W) of each column below its title."""
    count, _, height, width = next(iter(columns.values())).shape
    side = 7.2 / max(len(columns), USUAL_COLUMNS)  # of few columns, too, so that the figure is not too tall
    figure = new_figure(count * side * height / width + 0.5)
    axes_grid = figure.subplots(count, len(columns), squeeze=False)
    for column, (title, views) in enumerate(columns.items()):
        axes_grid[0, column].set_title(title, fontsize=9 if len(columns) <= USUAL_COLUMNS else 7)
        for axes, view in zip(axes_grid[:, column], views, strict=True):
            show_image(axes, view)
    return figure


def draw_views(found: ViewPredictions) -> Figure:
    """Draw views before and after a movement, the decoded prediction, and the view that is nearest to it."""
    count, scores = min(NUM_IMAGES, len(found.before)), found.scores()
    nearest = found.after[torch.arange(count), found.nearest()[:count, 0]]
    columns = {
        "before": found.before[:count],
        "after": found.after[:count, 0],
        f"decoded truth\nR² {scores['r2_actual']:.2f}": found.decoded(found.actual[:count, 0]),
        f"decoded prediction\nR² {scores['r2_predicted']:.2f}": found.decoded(found.predicted[:count, 0]),
        f"nearest of {scores['candidates']} views\nright: {scores['top1']:.0f}%": nearest,
    }
    height, width = found.before.shape[-2:]
    figure = new_figure(count * (7.2 / len(columns) * height / width + 0.18) + 0.4)
    axes_grid = figure.subplots(count, len(columns), squeeze=False)
    for column, (title, views) in enumerate(columns.items()):
        for row, (axes, view) in enumerate(zip(axes_grid[:, column], views, strict=True)):
            show_image(axes, view)
            text = describe_saccade(found.saccade, row * found.after.shape[1]) if column == 1 else ""
            axes.set_title(text or (title if row == 0 else ""), fontsize=8)
    return figure


def errors(run: EvaluationRun) -> Figure:
    """Draw the error of the predictions by position, by distance to the context, and the easiest and hardest images.

    Raises `InputError` if the objective predicts no tokens of patches.
    """
    found = require_predictions(run)
    by_image = found.errors.nanmean(1)
    order = by_image.nan_to_num(0).argsort()
    count = min(NUM_EXTREMES, len(order) // 2)
    rows = -(-count // NUM_COLUMNS)
    grid_height = 0.3 + rows * (0.2 + WIDTH / NUM_COLUMNS * found.images.shape[-2] / found.images.shape[-1])
    figure = new_figure(2.6 + 2 * grid_height)
    parts = figure.subfigures(3, 1, height_ratios=(2.6, grid_height, grid_height), squeeze=False)[:, 0]
    top = parts[0]
    left, right = top.subplots(1, 2)
    by_position = found.errors.nanmean(0).view(found.grid)
    shown = left.imshow(by_position.numpy(), vmin=0)
    figure.colorbar(shown, ax=left)
    left.set(xticks=[], yticks=[], title="error by position")
    distances = found.distance_to_context[found.hidden].round()
    values = found.errors[found.hidden]
    levels = [level for level in distances.unique().tolist() if int((distances == level).sum()) >= MIN_TOKENS]
    means = [float(values[distances == level].mean()) for level in levels]
    right.plot(levels, means, marker="o", color=ENCODER_COLORS["trained"])
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.margins(y=0.1)
    right.set(xlabel="distance to the nearest context patch, in patches", title="error by distance", ylim=(0, None))
    for part, title, chosen in ((parts[1], "easiest", order[:count]), (parts[2], "hardest", order.flip(0)[:count])):
        part.suptitle(f"{title} images, with their errors", x=0.01, ha="left", fontsize=9)
        for axes, image in zip_longest(part.subplots(rows, NUM_COLUMNS, squeeze=False).flat, chosen.tolist()):
            axes.set_axis_off()
            if image is not None:
                show_image(axes, found.images[image])
                axes.set_title(f"{by_image[image]:.2f}", fontsize=8)
    return figure


def require_predictions(run: EvaluationRun) -> PatchPredictions:
    """Return the predictions of a run. Raises `InputError` if there are none."""
    if run.patch_predictions is None:
        raise InputError(
            f"the objective {run.config.objective.kind} has no predictions of patch features to draw, or "
            f"training has diverged; run '{command('plot', run.folder.path)}' to draw all applicable figures"
        )
    return run.patch_predictions


def pixel_mask(mask: Tensor, found: PatchPredictions | PixelPredictions) -> Tensor:
    """Return a mask of tokens (B, N) as one of pixels (B, C, H, W)."""
    size = found.images.shape[-2:]
    pixels = F.interpolate(mask.float().view(-1, 1, *found.grid), size) > 0.5
    return pixels.expand(-1, found.images.shape[1], -1, -1)
