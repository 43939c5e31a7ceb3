"""Draw the figures of docs/what-is-a-jepa.md into docs/figures/: `python docs/figures.py`, about half a minute.

Requires scikit-image, which has the photo of a cat.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle
from PIL import Image
from torch import Tensor, nn

from jepa.config import MaskConfig
from jepa.objectives.base import ema_update
from jepa.objectives.regularizers import variance_covariance
from jepa.rng import Rng
from jepa.transforms.crop import resize
from jepa.transforms.masks import Masks, MaskSampler

FOLDER = Path(__file__).parent / "figures"
WIDTH, DPI = 8.0, 175  # inches; 1400 pixels, so 10 pt are 14 pixels on a page that is 800 pixels wide

BLUE, ORANGE, GREEN, RED, PINK, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"  # Okabe-Ito
INK, GRAY, PALE, MASK = "#222222", "#6A6A6A", "#E4E4E4", "#9FDCC8"

SIZE, GRID = 224, 14  # the photo in pixels and in tokens: patches of 16, as in the paper


def save(figure: Figure, name: str) -> None:
    """Write a figure as a PNG of at most 256 colors, which keeps the files small."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, facecolor="white")
    path = FOLDER / f"{name}.png"
    Image.open(buffer).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=4).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KB")


# Masks on a photo


def photo() -> Tensor:
    """Return a photo (1, 3, SIZE, SIZE), floats in [0, 1]: the center of scikit-image's cat (CC0, S. van der Walt)."""
    import skimage  # pip install scikit-image

    pixels = np.array(Image.open(Path(skimage.data_dir) / "chelsea.png").convert("RGB"))
    return resize(torch.from_numpy(pixels).permute(2, 0, 1)[None], (SIZE, SIZE))


def sample_masks(first: int, count: int) -> Masks:
    """Sample masks with the default settings, for `count` images from position `first` of a batch."""
    return MaskSampler(MaskConfig(), (GRID, GRID)).sample(Rng(0, 1, torch.arange(first, first + count)))


def token_map(indices: Tensor, valid: Tensor) -> Tensor:
    """Return a boolean map (GRID, GRID) of the tokens at the valid indices."""
    tokens = torch.zeros(GRID * GRID, dtype=torch.bool)
    tokens[indices[valid]] = True
    return tokens.view(GRID, GRID)


def show_photo(axes: Axes, image: Tensor, tokens: Tensor | None = None) -> None:
    """Show a photo (1, 3, SIZE, SIZE) and its grid. Tokens that are False in `tokens` are gray."""
    pixels = image[0].permute(1, 2, 0)
    if tokens is not None:
        side = SIZE // GRID
        visible = tokens.repeat_interleave(side, 0).repeat_interleave(side, 1)[..., None]
        pixels = torch.where(visible, pixels, torch.full_like(pixels, 0.87))
    axes.imshow(pixels.numpy(), extent=(0, GRID, GRID, 0), interpolation="lanczos")
    for line in range(1, GRID):
        axes.axhline(line, color="white", linewidth=0.4, alpha=0.5)
        axes.axvline(line, color="white", linewidth=0.4, alpha=0.5)
    axes.set_axis_off()


def draw_masks(rows: int = 3) -> None:
    """Draw masks.png: the photo, the context and the four targets, for several samples."""
    image, masks = photo(), sample_masks(0, rows)
    columns = 2 + masks.targets.shape[1]
    panel, gap, title = 1.28, 0.05, 0.25  # inches
    height = title + rows * (panel + gap)
    figure = Figure((WIDTH, height))
    for row in range(rows):
        context = token_map(masks.context[row], masks.context_valid[row])
        targets = [token_map(*pair) for pair in zip(masks.targets[row], masks.targets_valid[row], strict=True)]
        for column, tokens in enumerate([None, context, *targets]):
            left = column * (panel + gap) + gap / 2
            bottom = height - title - (row + 1) * panel - row * gap
            axes = figure.add_axes((left / WIDTH, bottom / height, panel / WIDTH, panel / height))
            show_photo(axes, image, tokens)
            if row == 0:
                names = ["image", "context", *(f"target {k + 1}" for k in range(columns - 2))]
                axes.set_title(names[column], fontsize=10, color=INK, pad=4)
    save(figure, "masks")


# Block diagrams


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure and hidden axes that are `width` units wide and `height` units high."""
    figure = Figure((WIDTH, WIDTH * height / width))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    return figure, axes


def box(axes: Axes, center: tuple[float, float], size: tuple[float, float], text: str, color: str) -> None:
    """Draw a rounded box with a label."""
    (x, y), (width, height) = center, size
    corner = (x - width / 2 + 0.1, y - height / 2 + 0.1)
    style = "round,pad=0.1,rounding_size=0.15"
    inner = (width - 0.2, height - 0.2)
    axes.add_patch(FancyBboxPatch(corner, *inner, boxstyle=style, facecolor=color + "30", edgecolor=color, lw=1.5))
    axes.text(x, y, text, ha="center", va="center", fontsize=10, color=INK, linespacing=1.3)


def node(axes: Axes, x: float, y: float, text: str, radius: float = 0.5) -> None:
    """Draw a variable as a circle with a label."""
    axes.add_patch(Circle((x, y), radius, facecolor="white", edgecolor=INK, lw=1.2))
    axes.text(x, y, text, ha="center", va="center_baseline", fontsize=11, color=INK)


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = INK, dashed: bool = False
) -> None:
    """Draw an arrow from start to end."""
    style = {"arrowstyle": "-|>", "color": color, "lw": 1.3, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 11}
    axes.annotate("", end, start, arrowprops=style | {"linestyle": (0, (4, 2)) if dashed else "-"})


def label(
    axes: Axes, x: float, y: float, text: str, *, color: str = INK, size: float = 9.5, ha: str = "center"
) -> None:
    """Write a label at (x, y)."""
    axes.text(x, y, text, ha=ha, va="center", fontsize=size, color=color, linespacing=1.3)


def draw_architecture(axes: Axes, left: float, kind: str, title: str, aim: str) -> None:
    """Draw an architecture, 6.2 units wide, with the inputs at the bottom and the distance at the top."""
    x, y, middle = left + 1.5, left + 4.9, left + 3.2
    label(axes, middle, 10.9, title, size=11)
    label(axes, middle, 10.2, aim, color=GRAY)
    distance = "distance of pixels" if kind == "generative" else "distance of representations"
    box(axes, (middle, 8.9), (5.8, 0.95), distance, GRAY)
    node(axes, x, 0.8, "$x$")
    node(axes, y, 0.8, "$y$")
    box(axes, (x, 3.0), (2.2, 1.1), "encoder", BLUE)
    arrow(axes, (x, 1.3), (x, 2.45))
    if kind == "generative":
        arrow(axes, (y, 1.3), (y, 8.42))
    else:
        box(axes, (y, 3.0), (2.2, 1.1), "encoder", ORANGE)
        arrow(axes, (y, 1.3), (y, 2.45))
        arrow(axes, (y, 3.55), (y, 8.42))
        label(axes, y + 0.25, 4.3, "$s_y$", size=11, ha="left")
    label(axes, x - 0.25, 4.3, "$s_x$", size=11, ha="right")
    if kind == "joint":
        arrow(axes, (x, 3.55), (x, 8.42))
        return
    box(axes, (x, 6.0), (2.2, 1.1), "decoder" if kind == "generative" else "predictor", GREEN)
    arrow(axes, (x, 3.55), (x, 5.45))
    arrow(axes, (x, 6.55), (x, 8.42))
    label(axes, x - 0.25, 7.4, r"$\hat{y}$" if kind == "generative" else r"$\hat{s}_y$", size=11, ha="right")
    node(axes, left + 3.65, 6.0, "$z$", 0.42)
    arrow(axes, (left + 3.23, 6.0), (left + 2.6, 6.0))


def draw_architectures() -> None:
    """Draw jepa.png: generative, joint-embedding and joint-embedding predictive architectures side by side."""
    figure, axes = canvas(20, 11.4)
    draw_architecture(axes, 0.1, "generative", "generative", "predict the pixels of y")
    draw_architecture(axes, 6.8, "joint", "joint-embedding", "make the representations similar")
    draw_architecture(axes, 13.5, "predictive", "joint-embedding predictive", "predict the representation of y")
    for line in (6.65, 13.35):
        axes.plot([line, line], [0.3, 11.1], color=PALE, lw=1)
    save(figure, "jepa")


def inset(axes: Axes, x: float, y: float, side: float, below: str = "", above: str = "") -> Axes:
    """Return axes for a small square image around (x, y), with a label below or above."""
    axes.text(x, y - side / 2 - 0.12, below, ha="center", va="top", fontsize=9, color=INK, linespacing=1.2)
    axes.text(x, y + side / 2 + 0.12, above, ha="center", va="bottom", fontsize=9, color=INK, linespacing=1.2)
    return axes.inset_axes((x - side / 2, y - side / 2, side, side), transform=axes.transData)


def show_tokens(axes: Axes, regions: Sequence[tuple[Tensor, str]]) -> None:
    """Show tokens as colored cells of the grid. Each region is a boolean map (GRID, GRID) and a color."""
    axes.add_patch(Rectangle((0, 0), GRID, GRID, facecolor="#F4F4F4"))
    for tokens, color in regions:
        for row, column in tokens.nonzero().tolist():
            axes.add_patch(Rectangle((column, row), 1, 1, facecolor=color, edgecolor="white", lw=0.4))
    axes.set(xlim=(0, GRID), ylim=(GRID, 0), aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set(color=GRAY, linewidth=0.8)


def draw_ijepa() -> None:
    """Draw ijepa.png: one step of I-JEPA, with the masks of the last row of masks.png and its first target."""
    image, masks = photo(), sample_masks(2, 1)
    context = token_map(masks.context[0], masks.context_valid[0])
    target = token_map(masks.targets[0, 0], masks.targets_valid[0, 0])
    figure, axes = canvas(20, 9.8)
    top, bottom, side = 7.6, 2.4, 2.5
    picture, encoder, tokens, head, result = 1.6, 5.1, 8.6, 12.4, 17.3

    show_photo(inset(axes, picture, top, side, above="context"), image, context)
    show_photo(inset(axes, picture, bottom, side, "whole image"), image)
    box(axes, (encoder, top), (2.5, 1.5), "context\nencoder", BLUE)
    box(axes, (encoder, bottom), (2.5, 1.5), "target\nencoder", ORANGE)
    inputs = [(context, BLUE), (target, MASK)]
    show_tokens(inset(axes, tokens, top, side, "blue: context tokens\ngreen: mask tokens"), inputs)
    show_tokens(inset(axes, tokens, bottom, side, "all tokens"), [(torch.ones_like(target), ORANGE)])
    box(axes, (head, top), (2.5, 1.5), "predictor", GREEN)
    box(axes, (head, bottom), (3.1, 1.5), "LayerNorm,\nselect target", GRAY)
    show_tokens(inset(axes, result, top, side, above="predicted"), [(target, GREEN)])
    show_tokens(inset(axes, result, bottom, side, "target"), [(target, ORANGE)])
    box(axes, (result, 5.0), (4.6, 1.1), "loss: distance,\nmean over the 4 targets", GRAY)
    label(axes, head, top - 1.2, "once for each target", size=9)

    half = side / 2 + 0.08
    for lane, width in ((top, 1.25), (bottom, 1.55)):
        arrow(axes, (picture + half, lane), (encoder - 1.28, lane))
        arrow(axes, (encoder + 1.28, lane), (tokens - half, lane))
        arrow(axes, (tokens + half, lane), (head - width - 0.03, lane))
        arrow(axes, (head + width + 0.03, lane), (result - half, lane))
    arrow(axes, (result, top - half), (result, 5.58))
    arrow(axes, (result, bottom + half), (result, 4.42))
    arrow(axes, (picture, bottom + half), (picture, top - half))
    label(axes, picture + 0.2, 5.0, "mask", size=9, ha="left")
    arrow(axes, (encoder, top - 0.78), (encoder, bottom + 0.78), BLUE, dashed=True)
    label(axes, encoder + 0.2, 5.0, "EMA of\nthe weights", color=BLUE, size=9, ha="left")
    middle = (head + 1.55 + result - half) / 2 - 0.1
    for shift in (-0.08, 0.08):  # the symbol of a stopped gradient
        axes.plot([middle + shift - 0.1, middle + shift + 0.1], [bottom - 0.3, bottom + 0.3], color=RED, lw=1.8)
    label(axes, middle, bottom + 0.8, "stop-\ngradient", color=RED, size=9)
    save(figure, "ijepa")


# A toy example of collapse


REMEDIES = {  # title and color
    "none": ("no regularization", RED),
    "variance": ("variance and\ncovariance terms", BLUE),
    "teacher": ("EMA teacher and\nstop-gradient", GREEN),
}


class ToyRun(NamedTuple):
    """Losses and embeddings of a toy run."""

    loss: list[float]  # prediction loss of every step
    std: list[float]  # standard deviation of the embeddings of test points at every step, averaged over dimensions
    embeddings: Tensor  # (P, 2), of the test points at the end


def noisy_points(angle: Tensor, generator: torch.Generator) -> Tensor:
    """Return noisy points (B, 3) on a closed curve in space, at the angles (B,)."""
    clean = torch.stack([angle.cos(), angle.sin(), (3 * angle).cos()], -1)
    return clean + 0.1 * torch.randn(clean.shape, generator=generator)


def mlp(inputs: int, outputs: int, width: int = 64) -> nn.Sequential:
    """Build a small MLP."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, outputs)
    )


def sample_angles(count: int, generator: torch.Generator) -> Tensor:
    """Sample angles uniformly from the circle."""
    return 2 * math.pi * torch.rand(count, generator=generator)


def train_toy(remedy: str, test_angle: Tensor, steps: int = 1000) -> ToyRun:
    """Train a toy JEPA that predicts the embedding of a point from another point and the angle between them.

    `remedy` is "none", "variance" (variance and covariance terms) or "teacher" (EMA teacher and stop-gradient).
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    encoder, predictor = mlp(3, 2), mlp(4, 2)
    teacher = copy.deepcopy(encoder).requires_grad_(False)
    optimizer = torch.optim.Adam([*encoder.parameters(), *predictor.parameters()], lr=1e-3)
    test_points = noisy_points(test_angle, generator)
    run = ToyRun([], [], torch.empty(0))
    for _ in range(steps):
        start, change = sample_angles(256, generator), sample_angles(256, generator)
        x, y = noisy_points(start, generator), noisy_points(start + change, generator)
        embedding = encoder(x)
        target = teacher(y) if remedy == "teacher" else encoder(y)
        predicted = predictor(torch.cat([embedding, torch.stack([change.cos(), change.sin()], -1)], -1))
        prediction = F.mse_loss(predicted, target)
        terms = sum(variance_covariance(embedding)) if remedy == "variance" else 0.0
        optimizer.zero_grad()
        (prediction + terms).backward()
        optimizer.step()
        if remedy == "teacher":
            ema_update(teacher, encoder, momentum=0.986)  # a half-life of 50 steps
        with torch.no_grad():
            run.loss.append(prediction.item())
            run.std.append(encoder(test_points).std(0).mean().item())
    with torch.no_grad():
        return run._replace(embeddings=encoder(test_points))


def remove_spines(axes: Axes) -> None:
    """Hide the upper and the right border of a plot."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=INK)


def draw_curves(axes: Axes, title: str, curves: dict[str, list[float]]) -> None:
    """Draw a value of every run against the step."""
    for remedy, values in curves.items():
        axes.plot(values, color=REMEDIES[remedy][1], lw=1.2)
    axes.set_yscale("log")
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xlabel("step", fontsize=9, color=INK)
    axes.set_xticks([0, 250, 500, 750, 1000])
    remove_spines(axes)


def draw_collapse() -> None:
    """Draw collapse.png: loss, standard deviation and embeddings of the toy example with each remedy."""
    test_angle = sample_angles(1000, torch.Generator().manual_seed(1))
    runs = {remedy: train_toy(remedy, test_angle) for remedy in REMEDIES}
    figure = Figure((WIDTH, 5.8), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.06, rect=(0, 0.01, 0.985, 0.985)))
    grid = figure.add_gridspec(2, 6, height_ratios=(1, 1.15))
    loss, std = figure.add_subplot(grid[0, :3]), figure.add_subplot(grid[0, 3:])
    draw_curves(loss, "prediction loss", {remedy: run.loss for remedy, run in runs.items()})
    draw_curves(std, "standard deviation of the embeddings", {remedy: run.std for remedy, run in runs.items()})
    loss.set_ylim(3e-8, 20)
    for remedy, height in (("none", 3e-6), ("variance", 7e-3), ("teacher", 1.0)):
        loss.text(330, height, REMEDIES[remedy][0].replace("\n", " "), color=REMEDIES[remedy][1], fontsize=9)

    palette = np.array([BLUE, ORANGE, GREEN, RED, PINK, SKY])
    colors = palette[(test_angle / (math.pi / 3)).long().numpy()]  # one color for each sixth of the curve
    for column, (remedy, run) in enumerate(runs.items()):
        axes = figure.add_subplot(grid[1, 2 * column : 2 * column + 2])
        axes.scatter(run.embeddings[:, 0].numpy(), run.embeddings[:, 1].numpy(), c=colors, s=4, linewidths=0)
        limit = 9 if remedy == "teacher" else 2.2  # with a teacher, the scale is not constrained
        ticks = (-8, -4, 0, 4, 8) if remedy == "teacher" else (-2, -1, 0, 1, 2)
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=ticks, yticks=ticks, aspect="equal")
        axes.set_title(REMEDIES[remedy][0], fontsize=10, color=REMEDIES[remedy][1])
        remove_spines(axes)
        if remedy == "none":
            style = {"arrowstyle": "-", "color": GRAY, "lw": 0.8, "shrinkB": 4}
            point = tuple(run.embeddings.mean(0).tolist())
            axes.annotate("all 1000 points", point, (0, 1.1), ha="center", fontsize=9, color=INK, arrowprops=style)
    save(figure, "collapse")


def main() -> None:
    """Draw every figure."""
    FOLDER.mkdir(exist_ok=True)
    draw_masks()
    draw_architectures()
    draw_ijepa()
    draw_collapse()


if __name__ == "__main__":
    main()
