"""What an encoder sees in patches: the principal axes of its tokens as colors, and the similarity of one to others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from jepa.data import evenly_spaced
from jepa.evaluation.patch_tokens import centered, enlarged_tokens, patch_colors, patch_similarity, patch_tokens
from jepa.evaluation_run import EvaluationRun
from jepa.report.plot_attention import ANIMATED_IMAGES, animate, outline_patch, patch_index
from jepa.report.style import new_figure, show_image
from jepa.transforms.crop import resize

__all__ = ["animate_similarity", "features", "similarity"]

FITTED_IMAGES, COLORED_IMAGES, SIMILAR_IMAGES = 64, 8, 5  # images for the axes; images that are drawn
ENLARGED = 2  # factor by which images are also enlarged, for more tokens


def features(run: EvaluationRun, foreground: bool = False) -> Figure:
    """Draw the tokens of test images in the colors of their first three principal axes, trained and untrained.

    The axes are those of 64 test images. With `foreground`, only the tokens on one side of the first axis are drawn.
    """
    pixels = resize(run.read_images(FITTED_IMAGES), run.encoders["trained"].size)
    count = min(COLORED_IMAGES, len(pixels))
    rows = {"image": pixels[:count]}
    for name, title, scale in (
        ("trained", "trained", 1),
        ("trained", "trained, twice the resolution", ENLARGED),
        ("untrained", "untrained", 1),
    ):
        tokens = enlarged_tokens(run.encoders[name], pixels, scale)
        if tokens is None:
            continue
        colors, shown = patch_colors(tokens, foreground)
        colors[~shown] = 1.0
        rows[title] = colors[:count].unflatten(1, tokens.grid).permute(0, 3, 1, 2)
    height = 7.2 / count * pixels.shape[-2] / pixels.shape[-1]
    figure = new_figure(len(rows) * (height + 0.25))
    axes_grid = figure.subplots(len(rows), count, squeeze=False)
    for axes_row, (title, images) in zip(axes_grid, rows.items(), strict=True):
        for axes, image in zip(axes_row, images, strict=True):
            show_image(axes, image)
        axes_row[0].set_title(title)
    return figure


def similarity(run: EvaluationRun, patch: tuple[int, int] | None = None) -> Figure:
    """Draw the cosine similarity of one patch of a test image to all patches of this image and of others.

    `patch` is its (row, column), by default the central patch; the others are the images with the most similar patch.
    Raises `InputError` if the patch is outside the grid.
    """
    pixels = resize(run.read_images(FITTED_IMAGES), run.encoders["trained"].size)
    query = 0
    maps = {}
    for name in ("trained", "untrained"):
        tokens = patch_tokens(run.encoders[name], pixels)
        position = patch_index(patch, tokens.grid)
        maps[name] = patch_similarity(tokens.x, query, position)
    closest = maps["trained"].amax(-1)
    closest[query] = torch.inf
    chosen = closest.topk(min(SIMILAR_IMAGES, len(pixels))).indices
    height = 7.2 / len(chosen) * pixels.shape[-2] / pixels.shape[-1]
    figure = new_figure(3 * (height + 0.25))
    axes_grid = figure.subplots(3, len(chosen), squeeze=False)
    for column, image in enumerate(chosen.tolist()):
        show_image(axes_grid[0, column], pixels[image])
        for axes, name in zip(axes_grid[1:, column], maps, strict=True):
            show_similarity(axes, maps[name][image].view(tokens.grid), run.encoders["trained"].size)
    for axes in axes_grid[:, 0]:
        outline_patch(axes, (pixels.shape[-2], pixels.shape[-1]), tokens.grid, position)
    for axes, title in zip(axes_grid[:, 0], ("image", *maps), strict=True):
        axes.set_title(title)
    return figure


def show_similarity(axes: Axes, cosines: Tensor, size: tuple[int, int]) -> None:
    """Show cosines on a grid, enlarged to an image of this size."""
    axes.imshow(similarity_colors(cosines, size).numpy(), interpolation="nearest")
    axes.set_axis_off()


def similarity_colors(cosines: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the colors (H, W, 3) of cosines on a grid: red if similar, blue if dissimilar."""
    enlarged = F.interpolate(cosines[None, None], size)[0, 0]
    return torch.from_numpy(colormaps["RdBu_r"](((enlarged + 1) / 2).numpy())[..., :3]).float()


def animate_similarity(run: EvaluationRun) -> bytes:
    """Return an animated WebP: a patch moving over several images, with its similarity to all others below."""
    pixels = resize(run.read_images(FITTED_IMAGES), run.encoders["trained"].size)
    tokens = patch_tokens(run.encoders["trained"], pixels)
    shown = evenly_spaced(len(pixels), ANIMATED_IMAGES)
    unit, pixels = F.normalize(centered(tokens.x)[shown], dim=-1), pixels[shown]

    def draw_map(image: Tensor, cosines: Tensor, grid: tuple[int, int]) -> Tensor:
        return similarity_colors(cosines.view(grid), (image.shape[-2], image.shape[-1]))

    return animate(pixels, unit @ unit.mT, tokens.grid, draw_map)
