"""Attention maps of a run by layer and by head, over the images, and an animation with a moving query patch."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator, NullLocator
from PIL import Image, ImageDraw
from torch import Tensor

from jepa.backbones.energy_transformer import EnergyTransformer
from jepa.config import InputError
from jepa.evaluation.attention import attention as attention_weights
from jepa.evaluation.attention import entropy, rollout
from jepa.evaluation_run import EvaluationRun
from jepa.report.style import BLUE, ENCODER_COLORS, GRAY, INK, RED, SKY, YELLOW, new_figure, outline_box, show_image
from jepa.transforms.crop import resize

__all__ = ["animate", "animate_attention", "attention", "outline_patch", "overlay", "patch_index"]

NUM_IMAGES, MAX_LAYERS, MAX_HEADS = 3, 5, 8  # numbers of images, layers and heads in the figure
ANIMATED_IMAGES, MAX_FRAMES = 4, 64  # numbers of images and frames in the animation
IMAGE_WIDTH, GAP, FRAME_MS = 180, 6, 120  # image width and gap in pixels, frame duration in ms
MAX_RATIO = 8  # ratio of attention to uniform attention at which the colors saturate
OPACITY = 0.75  # of saturated colors
DrawMap = Callable[[Tensor, Tensor, tuple[int, int]], Tensor]
LESS, EQUAL, MORE = BLUE, 0.65, RED  # colors of less than uniform, uniform (a gray) and more than uniform attention


def attention(run: EvaluationRun, patch: tuple[int, int] | None = None) -> Figure:
    """Draw the attention of one patch by layer and by head, and the entropy of the attention.

    `patch` is the (row, column) of the query, by default the central patch. Raises `InputError` if it is outside the
    grid, or if the backbone has no attention.
    """
    pixels, weights = images_and_attention(run, NUM_IMAGES)
    query = patch_index(patch, run.grid)
    layer_name = "step" if isinstance(run.encoders["trained"].backbone, EnergyTransformer) else "layer"
    energy = run.energy_trace
    columns = 2 + min(MAX_LAYERS, len(weights))
    top_height = 0.3 + len(pixels) * 6.4 / columns * pixels.shape[-2] / pixels.shape[-1]
    figure = new_figure(top_height + 2.6)
    top, bottom = figure.subfigures(2, 1, height_ratios=(top_height, 2.6), squeeze=False)[:, 0]
    draw_layers(top, pixels, weights, grid=run.grid, query=query, layer_name=layer_name)
    left, right = bottom.subfigures(1, 2, width_ratios=(1, 1.25) if energy else (1.25, 1), squeeze=False)[0]
    draw_heads(left, pixels[0], weights[-1, 0, :, query], grid=run.grid, query=query, layer_name=layer_name)
    if energy:
        entropy_axes, energy_axes = right.subplots(1, 2)
        draw_energy(energy_axes, energy)
    else:
        entropy_axes = right.subplots()
    draw_entropy(entropy_axes, entropy(weights), layer_name)
    return figure


def patch_index(patch: tuple[int, int] | None, grid: tuple[int, int]) -> int:
    """Return the index of the patch (row, column), by default the central one.

    Raises `InputError` if it is outside the grid.
    """
    row, column = patch or (grid[0] // 2, grid[1] // 2)
    if not (0 <= row < grid[0] and 0 <= column < grid[1]):
        raise InputError(
            f"--patch must have a row between 0 and {grid[0] - 1} and a column between 0 and {grid[1] - 1}, "
            f"got {row} {column}"
        )
    return row * grid[1] + column


def images_and_attention(run: EvaluationRun, count: int) -> tuple[Tensor, Tensor]:
    """Return test images (B, C, H, W), resized to the encoder's input size, and their attention (L, B, H, N, N)."""
    encoder = run.encoders["trained"]
    pixels = resize(run.read_images(count), encoder.size)
    weights = attention_weights(encoder, pixels)
    if weights is None:
        raise InputError(
            f"the backbone {run.config.backbone.kind} has no attention to draw; the figure 'attention' requires a vit "
            "or energy backbone"
        )
    return pixels, weights


def draw_layers(
    figure: SubFigure, pixels: Tensor, weights: Tensor, *, grid: tuple[int, int], query: int, layer_name: str
) -> None:
    """Draw one row per image: the image, its attention averaged over heads in several layers, and the rollout."""
    layers = torch.linspace(0, len(weights) - 1, min(MAX_LAYERS, len(weights))).round().long().tolist()
    rollouts = rollout(weights)
    axes_grid = figure.subplots(len(pixels), 2 + len(layers), squeeze=False)
    for i, row in enumerate(axes_grid):
        show_image(row[0], pixels[i])
        outline_patch(row[0], (pixels.shape[-2], pixels.shape[-1]), grid, query)
        maps = [*(weights[layer, i].mean(0)[query] for layer in layers), rollouts[i, query]]
        for axes, attention_map in zip(row[1:], maps, strict=True):
            show_map(axes, pixels[i], attention_map, grid, query)
    titles = ["image", *(f"{layer_name} {layer + 1}" for layer in layers), "rollout"]
    for axes, title in zip(axes_grid[0], titles, strict=True):
        axes.set_title(title)
    draw_scale(figure, list(axes_grid.flat))


def draw_scale(figure: SubFigure, axes: list[Axes]) -> None:
    """Draw the color scale of the maps to the right of `axes`."""
    ends = [EQUAL + OPACITY * (torch.tensor(to_rgb(color)) - EQUAL) for color in (LESS, MORE)]
    colors = LinearSegmentedColormap.from_list("attention", [ends[0].tolist(), (EQUAL,) * 3, ends[1].tolist()])
    bar = figure.colorbar(
        ScalarMappable(LogNorm(1 / MAX_RATIO, MAX_RATIO), colors), ax=axes, fraction=0.03, shrink=0.9, aspect=30
    )
    bar.set_ticks([1 / MAX_RATIO, 0.5, 1, 2, MAX_RATIO], labels=[f"1/{MAX_RATIO}", "1/2", "1", "2", str(MAX_RATIO)])
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.set_label("attention / uniform attention", fontsize=8)
    bar.outline.set_visible(False)


def draw_heads(
    figure: SubFigure, image: Tensor, weights: Tensor, *, grid: tuple[int, int], query: int, layer_name: str
) -> None:
    """Draw one attention map per head, from weights (H, N)."""
    heads = weights[:MAX_HEADS]
    rows = 1 if len(heads) <= 3 else 2
    axes_grid = figure.subplots(rows, -(-len(heads) // rows), squeeze=False).flatten()
    for axes in axes_grid:
        axes.set_axis_off()
    for i, (axes, head) in enumerate(zip(axes_grid, heads, strict=False), 1):
        show_map(axes, image, head, grid, query)
        axes.set_title(f"head {i}", fontsize=8)
    figure.suptitle(f"heads of the last {layer_name}, first image", fontsize=9, x=0.02, ha="left")


def draw_entropy(axes: Axes, entropies: Tensor, layer_name: str) -> None:
    """Draw the normalized entropy (L, H) by layer, one line per head."""
    layers = range(1, len(entropies) + 1)
    for i, head in enumerate(entropies.T):
        label = None if i else "individual heads"
        axes.plot(layers, head.numpy(), color=SKY, linewidth=1, marker="o", markersize=2.5, label=label)
    axes.plot(layers, entropies.mean(1).numpy(), color=ENCODER_COLORS["trained"], linewidth=2, label="mean over heads")
    axes.set(ylim=(0, 1.05), xlabel=layer_name, title="normalized entropy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28))


def draw_energy(axes: Axes, trace: dict[str, list[float]]) -> None:
    """Draw the energy before the first step and after each step."""
    for name, color in (("total", ENCODER_COLORS["trained"]), ("attention", SKY), ("hopfield", GRAY)):
        axes.plot(trace[name], color=color, marker="o", markersize=2.5, label=name)
    axes.set(xlabel="step", title="mean energy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28))


def overlay(image: Tensor, weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """Color an image (C, H, W), in gray, by attention weights (N,) relative to uniform ones; return floats (H, W, 3).

    Patches with more than uniform attention become red, patches with less blue; the image stays gray where attention is
    uniform. The colors saturate at `MAX_RATIO` times the uniform attention, and at its inverse.
    """
    floats = image.float() / 255 if image.dtype == torch.uint8 else image
    gray = (0.15 + 0.75 * floats.mean(0))[..., None].expand(-1, -1, 3)
    log_ratio = (weights * len(weights)).clamp(1 / MAX_RATIO, MAX_RATIO).log() / math.log(MAX_RATIO)
    strength = F.interpolate(log_ratio.view(1, 1, *grid), image.shape[-2:])[0, 0, ..., None]
    less, more = torch.tensor(to_rgb(LESS)), torch.tensor(to_rgb(MORE))
    return gray.lerp(torch.where(strength > 0, more, less), OPACITY * strength.abs()).clamp(0, 1)


def show_map(axes: Axes, image: Tensor, weights: Tensor, grid: tuple[int, int], query: int) -> None:
    """Show attention weights (N,) over an image, with the query outlined."""
    axes.imshow(overlay(image, weights, grid).numpy(), interpolation="nearest")
    axes.set_axis_off()
    outline_patch(axes, (image.shape[-2], image.shape[-1]), grid, query)


def outline_patch(axes: Axes, size: tuple[int, int], grid: tuple[int, int], query: int) -> None:
    """Outline the query patch on an image with height and width `size`."""
    height, width = size[0] / grid[0], size[1] / grid[1]
    row, column = divmod(query, grid[1])
    outline_box(axes, (column * width - 0.5, row * height - 0.5), width, height)


def animate_attention(run: EvaluationRun) -> bytes:
    """Return an animated WebP: a query patch moving over several images, with its mean last-layer attention below.

    Raises `InputError` if the backbone has no attention.
    """
    pixels, weights = images_and_attention(run, ANIMATED_IMAGES)
    return animate(pixels, weights[-1].mean(1), run.grid, overlay)


def animate(pixels: Tensor, maps: Tensor, grid: tuple[int, int], draw_map: DrawMap) -> bytes:
    """Return an animated WebP: a query patch moving over images (B, C, H, W), with its row of `maps` (B, N, N) below.

    `draw_map` draws an image (C, H, W) with a map (N,) of a grid as floats (H, W, 3).
    """
    num_tokens = maps.shape[-1]
    queries = torch.linspace(0, num_tokens - 1, min(MAX_FRAMES, num_tokens)).round().long().tolist()
    frames = [draw_frame(pixels, maps[:, query], grid, query, draw_map) for query in queries]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0, quality=80)
    return buffer.getvalue()


def draw_frame(pixels: Tensor, maps: Tensor, grid: tuple[int, int], query: int, draw_map: DrawMap) -> Image.Image:
    """Draw a row of images with the query outlined, above their maps (B, N)."""
    height = round(IMAGE_WIDTH * pixels.shape[-2] / pixels.shape[-1])
    frame = Image.new("RGB", (ANIMATED_IMAGES * (IMAGE_WIDTH + GAP) - GAP, 2 * height + GAP), "white")
    row, column = divmod(query, grid[1])
    corner = (round(column * IMAGE_WIDTH / grid[1]), round(row * height / grid[0]))
    end = (round((column + 1) * IMAGE_WIDTH / grid[1]) - 1, round((row + 1) * height / grid[0]) - 1)
    for i, (view, values) in enumerate(zip(pixels, maps, strict=True)):
        array = view.permute(1, 2, 0).expand(-1, -1, 3)
        image = array * 255 if array.is_floating_point() else array
        for top, tile in ((0, image), (height + GAP, draw_map(view, values, grid) * 255)):
            picture = Image.fromarray(tile.byte().numpy()).resize((IMAGE_WIDTH, height), Image.Resampling.NEAREST)
            drawing = ImageDraw.Draw(picture)
            drawing.rectangle((*corner, *end), outline=INK, width=4)
            drawing.rectangle((*(x + 1 for x in corner), *(x - 1 for x in end)), outline=YELLOW, width=2)
            frame.paste(picture, (i * (IMAGE_WIDTH + GAP), top))
    return frame
