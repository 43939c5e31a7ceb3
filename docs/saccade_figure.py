"""Draw docs/figures/fixations.png, the eye movements of docs/saccade-jepa.md: `python docs/saccade_figure.py`, seconds.

Requires scikit-image, which has the photo of a cat.
"""

from __future__ import annotations

import torch
from figures import BLUE, INK, RED, SIZE, WIDTH, photo, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from jepa.config import SaccadeConfig
from jepa.config.recipes import recipe
from jepa.rng import Rng
from jepa.transforms.saccade import Geometry, Pose

CORNERS = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5]])
NUM_SAMPLES = 3


def draw_outline(axes: Axes, pose: Pose, index: int, side: float, color: str) -> Tensor:
    """Draw the outline of a view with a triangle at its top; return its center in pixels of the photo."""
    pose = Pose(*(part[index : index + 1].expand(len(CORNERS), *part.shape[1:]) for part in pose))
    points = pose(CORNERS) * side + SIZE / 2
    axes.plot(points[:, 0], points[:, 1], color=color, linewidth=2)
    axes.plot(*points[:2].mean(0, keepdim=True).T, marker="^", color=color, markersize=7)
    return points[:4].mean(0)


def format_saccade(saccade: Pose, index: int) -> str:
    """Return the shift, rotation and zoom of a saccade as text."""
    x, y = (round(component, 2) + 0.0 for component in saccade.shift[index].tolist())  # + 0.0 turns -0.0 into 0.0
    rotation, zoom = torch.rad2deg(saccade.angle[index]).item(), saccade.zoom[index].item()
    return f"shift ({x:+.2f}, {y:+.2f}), rotation {rotation:+.0f}°, zoom {zoom:.2f}"


def draw_fixations() -> None:
    """Draw the photo with the outlines of two fixations, and their views, for several samples."""
    config, image = recipe("saccade-cifar10").objective, photo()
    assert isinstance(config, SaccadeConfig)
    geometry = Geometry(config.fixations, (SIZE, SIZE), (SIZE // 2, SIZE // 2))
    before, after = geometry.sample(Rng(1, 0, torch.arange(NUM_SAMPLES)))
    views = geometry.render(image.expand(NUM_SAMPLES, -1, -1, -1), before, after)
    saccade, side = before.inverse().of(after), config.fixations.view_fraction * SIZE
    gap, title = 0.12, 0.24  # inches
    panel = (WIDTH - gap * (NUM_SAMPLES - 1)) / NUM_SAMPLES
    small = (panel - gap / 2) / 2
    height = 2 * title + panel + small + 0.06
    figure = Figure((WIDTH, height))

    def add_axes(left: float, bottom: float, size: float) -> Axes:
        axes = figure.add_axes((left / WIDTH, bottom / height, size / WIDTH, size / height))
        axes.set_axis_off()
        return axes

    for index in range(NUM_SAMPLES):
        left = index * (panel + gap)
        axes = add_axes(left, small + title + 0.04, panel)
        axes.imshow(image[0].permute(1, 2, 0).numpy(), extent=(0, SIZE, SIZE, 0))
        outlines = ((before, BLUE), (after, RED))
        start, end = (draw_outline(axes, pose, index, side, color) for pose, color in outlines)
        arrow = {"arrowstyle": "-|>", "color": "white", "linewidth": 2, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", tuple(end.tolist()), tuple(start.tolist()), arrowprops=arrow)
        axes.set_title(format_saccade(saccade, index), fontsize=7.5, color=INK, pad=4)
        names = (("input of the student", BLUE), ("input of the teacher", RED))
        for column, (view, (name, color)) in enumerate(zip(views, names, strict=True)):
            view_axes = add_axes(left + column * (small + gap / 2), 0.02, small)
            view_axes.imshow(view[index].permute(1, 2, 0).numpy())
            view_axes.set_title(name, fontsize=8, color=color, pad=3)
    save(figure, "fixations")


if __name__ == "__main__":
    draw_fixations()
