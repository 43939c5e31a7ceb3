"""Where the tokens of an image look: layer by layer, head by head, and a film that moves the query patch."""

from __future__ import annotations

import io

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw
from torch import Tensor

from jepa.backbones import EnergyTransformer
from jepa.config import InputError
from jepa.evaluation import attention as attention_of
from jepa.evaluation import entropy, rollout
from jepa.figures.style import COLORS, GREY, SKY, canvas, image
from jepa.subject import Subject
from jepa.views import resize

__all__ = ["attention", "film"]

IMAGES, LAYERS, HEADS = 3, 5, 8  # that are shown
FILMED, FRAMES, SIDE, GAP = 4, 64, 96, 6  # images, frames at most, pixels of an image and between two


def attention(subject: Subject, patch: tuple[int, int] | None = None) -> Figure:
    """Draw the attention of one patch (row, column; by default the middle) by layer, by head, and its entropy."""
    pixels, weights, grid = look(subject, IMAGES)
    row, column = patch or (grid[0] // 2, grid[1] // 2)
    if not (0 <= row < grid[0] and 0 <= column < grid[1]):
        raise InputError(
            f"--patch is {row} {column}; it takes a row of 0 to {grid[0] - 1} and a column of 0 to {grid[1] - 1}"
        )
    query = row * grid[1] + column
    energy = subject.energy
    unit = "step" if isinstance(subject.encoders["trained"].backbone, EnergyTransformer) else "layer"
    figure = canvas(6.6)
    top, bottom = figure.subfigures(2, 1, height_ratios=(3.9, 2.7), squeeze=False)[:, 0]
    draw_layers(top, pixels, weights, grid, query, unit)
    left, right = bottom.subfigures(1, 2, width_ratios=(1, 1.25) if energy else (1.25, 1), squeeze=False)[0]
    draw_heads(left, weights[-1, 0, :, query], grid, unit)
    if energy:
        entropies, falling = right.subplots(1, 2)
        draw_energy(falling, energy)
    else:
        entropies = right.subplots()
    draw_entropy(entropies, entropy(weights), unit)
    return figure


def look(subject: Subject, count: int) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Return images (B, C, H, W) as the encoder sees them, attention (L, B, H, N, N) and the grid of tokens."""
    encoder = subject.encoders["trained"]
    pixels = resize(subject.pixels(count), encoder.size)
    weights = attention_of(encoder, pixels)
    if weights is None:
        raise InputError(f"a {subject.config.backbone.kind} has no attention to show; a vit or an energy backbone has")
    stride = encoder.backbone.stride
    return pixels, weights, (encoder.size[0] // stride, encoder.size[1] // stride)


def draw_layers(
    figure: SubFigure, pixels: Tensor, weights: Tensor, grid: tuple[int, int], query: int, unit: str
) -> None:
    """Draw images in rows: the image with the query, then maps of some layers, averaged over heads, and rollout."""
    count = len(weights)
    layers = torch.linspace(0, count - 1, min(LAYERS, count)).round().long().tolist()
    flow = rollout(weights)
    panels = figure.subplots(len(pixels), 2 + len(layers), squeeze=False)
    for place, row in enumerate(panels):
        image(row[0], pixels[place])
        mark(row[0], (pixels.shape[-2], pixels.shape[-1]), grid, query)
        for axes, layer in zip(row[1:-1], layers, strict=True):
            heat(axes, weights[layer, place].mean(0)[query], grid, query)
        heat(row[-1], flow[place, query], grid, query)
    for axes, title in zip(panels[0], ["image", *(f"{unit} {layer + 1}" for layer in layers), "rollout"], strict=True):
        axes.set_title(title)


def draw_heads(figure: SubFigure, weights: Tensor, grid: tuple[int, int], unit: str) -> None:
    """Draw the maps of the heads (H, N) of the last layer."""
    shown = weights[:HEADS]
    panels = figure.subplots(2, -(-len(shown) // 2), squeeze=False).flatten()
    for axes in panels:
        axes.set_axis_off()
    for number, (axes, head) in enumerate(zip(panels, shown, strict=False)):
        heat(axes, head, grid)
        axes.set_title(f"head {number + 1}", fontsize=8)
    figure.suptitle(f"heads of the last {unit}, first image", fontsize=9, x=0.02, ha="left")


def draw_entropy(axes: Axes, entropies: Tensor, unit: str) -> None:
    """Draw entropy (L, H) as a line a head."""
    places = range(1, len(entropies) + 1)
    for head in entropies.T:
        axes.plot(places, head.numpy(), color=SKY, linewidth=1, marker="o", markersize=2.5)
    axes.plot(places, entropies.mean(1).numpy(), color=COLORS["trained"], linewidth=2, label="mean of the heads")
    axes.set(ylim=(0, 1.05), xlabel=unit, title="entropy / greatest")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower left")


def draw_energy(axes: Axes, found: dict[str, list[float]]) -> None:
    """Draw the energy of the tokens before every step and after the last."""
    for name, color in (("total", COLORS["trained"]), ("attention", SKY), ("hopfield", GREY)):
        axes.plot(found[name], color=color, marker="o", markersize=2.5, label=name)
    axes.set(xlabel="step", title="energy of an image")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28))


def heat(axes: Axes, weights: Tensor, grid: tuple[int, int], query: int | None = None) -> None:
    """Draw weights (N,) over the grid, from 0 to the largest."""
    axes.imshow(weights.view(grid).numpy(), vmin=0)
    axes.set_axis_off()
    if query is not None:
        mark(axes, grid, grid, query)


def mark(axes: Axes, size: tuple[int, int], grid: tuple[int, int], query: int) -> None:
    """Outline the query patch on an image of `size`."""
    height, width = size[0] / grid[0], size[1] / grid[1]
    row, column = divmod(query, grid[1])
    corner = (column * width - 0.5, row * height - 0.5)
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=SKY, linewidth=1.4))


def film(subject: Subject) -> bytes:
    """Make an animated PNG: the query patch sweeps over some images, below them the attention of the last layer."""
    pixels, weights, grid = look(subject, FILMED)
    last = weights[-1].mean(1)  # (B, N, N)
    count = grid[0] * grid[1]
    queries = torch.linspace(0, count - 1, min(FRAMES, count)).round().long().tolist()
    frames = [frame(pixels, last[:, query], grid, query) for query in queries]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:], duration=120, loop=0, optimize=True)
    return buffer.getvalue()


def frame(pixels: Tensor, weights: Tensor, grid: tuple[int, int], query: int) -> Image.Image:
    """Paint images in a row, the query patch outlined, and their attention (B, N) below."""
    height = round(SIDE * pixels.shape[-2] / pixels.shape[-1])
    sheet = Image.new("RGB", (len(pixels) * (SIDE + GAP) - GAP, 2 * height + GAP), "white")
    row, column = divmod(query, grid[1])
    box = [round(edge) for edge in (column * SIDE / grid[1], row * height / grid[0])]
    ends = [round(edge) - 1 for edge in ((column + 1) * SIDE / grid[1], (row + 1) * height / grid[0])]
    for place, (photo, map_) in enumerate(zip(pixels, weights, strict=True)):
        shown = photo.permute(1, 2, 0).expand(-1, -1, 3)
        painted = Image.fromarray((shown * 255).byte().numpy() if shown.is_floating_point() else shown.numpy())
        heat_map = colormaps["magma"]((map_ / map_.max()).view(grid).numpy())[..., :3]
        for top, part in ((0, painted), (height + GAP, Image.fromarray((heat_map * 255).astype(np.uint8)))):
            part = part.resize((SIDE, height), Image.Resampling.NEAREST)
            outline(part, box, ends)
            sheet.paste(part, (place * (SIDE + GAP), top))
    return sheet


def outline(picture: Image.Image, corner: list[int], end: list[int]) -> None:
    """Draw a rectangle two pixels strong."""
    ImageDraw.Draw(picture).rectangle((*corner, *end), outline=SKY, width=2)
