"""Draw docs/figures/fixations.png, the eye movements of docs/saccade-jepa.md: `python docs/saccade_figure.py`, seconds.

Needs scikit-image, for its photo of a cat.
"""

from __future__ import annotations

import torch
from figures import BLUE, INK, RED, SIZE, WIDTH, photo, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from jepa.config import SaccadeConfig
from jepa.recipes import recipe
from jepa.rng import Rng
from jepa.saccades import Geometry, Pose

CORNERS = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5]])
SHOWN = (0, 1, 2)  # which draws


def outline(axes: Axes, pose: Pose, row: int, side: float, color: str) -> Tensor:
    """Draw where a fixation looks, a tick at its top; return its middle in pixels of the photo."""
    one = Pose(*(part[row : row + 1].expand(len(CORNERS), *part.shape[1:]) for part in pose))
    points = one(CORNERS) * side + SIZE / 2
    axes.plot(points[:, 0], points[:, 1], color=color, linewidth=2)
    axes.plot(*points[:2].mean(0, keepdim=True).T, marker="^", color=color, markersize=7)
    return points[:4].mean(0)


def tell(saccade: Pose, row: int) -> str:
    """Say a movement in numbers."""
    x, y = (round(part, 2) + 0.0 for part in saccade.shift[row].tolist())  # + 0.0: no -0.00
    turn = f"{torch.rad2deg(saccade.angle[row]).item():+.0f}°"
    return f"shift ({x:+.2f}, {y:+.2f}), turn {turn}, zoom {saccade.zoom[row].item():.2f}"


def draw_fixations() -> None:
    """Draw the photo with two fixations, and what is seen from each, for several draws."""
    config, image = recipe("saccade-cifar10").objective, photo()
    assert isinstance(config, SaccadeConfig)
    geometry = Geometry(config.fixations, (SIZE, SIZE), (SIZE // 2, SIZE // 2))
    rows = torch.arange(max(SHOWN) + 1)
    before, after = geometry.sample(Rng(1, 0, rows))
    views = geometry.look(image.expand(len(rows), -1, -1, -1), before, after)
    saccade, side = before.inverse().of(after), config.fixations.field * SIZE
    gap, title = 0.12, 0.24  # inches
    panel = (WIDTH - gap * (len(SHOWN) - 1)) / len(SHOWN)
    small = (panel - gap / 2) / 2
    height = 2 * title + panel + small + 0.06
    figure = Figure((WIDTH, height))

    def at(left: float, bottom: float, size: float) -> Axes:
        axes = figure.add_axes((left / WIDTH, bottom / height, size / WIDTH, size / height))
        axes.set_axis_off()
        return axes

    for column, row in enumerate(SHOWN):
        left = column * (panel + gap)
        axes = at(left, small + title + 0.04, panel)
        axes.imshow(image[0].permute(1, 2, 0).numpy(), extent=(0, SIZE, SIZE, 0))
        start, end = (outline(axes, pose, row, side, color) for pose, color in ((before, BLUE), (after, RED)))
        arrow = {"arrowstyle": "-|>", "color": "white", "linewidth": 2, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", tuple(end.tolist()), tuple(start.tolist()), arrowprops=arrow)
        axes.set_title(tell(saccade, row), fontsize=8, color=INK, pad=4)
        names = (("the student sees", BLUE), ("the teacher sees", RED))
        for place, (view, (name, color)) in enumerate(zip(views, names, strict=True)):
            inner = at(left + place * (small + gap / 2), 0.02, small)
            inner.imshow(view[row].permute(1, 2, 0).numpy())
            inner.set_title(name, fontsize=9, color=color, pad=3)
    save(figure, "fixations")


if __name__ == "__main__":
    draw_fixations()
