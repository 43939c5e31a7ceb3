"""Draw docs/figures/descent.png from a trained run: `python docs/energy_figure.py runs/energy-demo`, minutes.

Left: the energy of test images along the steps, also past the T that it was trained with. Right: the same total for
steps of several sizes α.
"""

from __future__ import annotations

import math
import sys

import torch
from figures import BLUE, GREEN, GREY, ORANGE, RED, SKY, WIDTH, plain, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from jepa.backbones import Encoder, Energies, EnergyTransformer, EnergyTrunk
from jepa.data import open_dataset
from jepa.runs import Run, load_encoder

IMAGES, STEPS = 200, 50
ALPHAS = (0.03, 0.1, 0.3, 1.0, 1e6)


def tokens_of(encoder: Encoder, run: Run) -> tuple[EnergyTrunk, list[Tensor]]:
    """Return the trunk and the tokens of test images that enter it, in float64."""
    backbone = encoder.double().backbone
    assert isinstance(backbone, EnergyTransformer)
    images = open_dataset(run.config.data, "test")
    assert images is not None
    pixels = images.read(torch.arange(0, len(images), len(images) // IMAGES)[:IMAGES]).pixels
    return backbone.trunk, [backbone.embed(encoder.prepare(part.double() / 255))[0] for part in pixels.split(50)]


def energies(trunk: EnergyTrunk, tokens: list[Tensor], steps: int, alpha: float) -> Energies:
    """Return the energies (steps + 1, images) with so many steps of that size."""
    trunk.steps = steps
    trunk.alpha.log.data.fill_(math.log(alpha))
    return Energies(*(torch.cat(part, 1) for part in zip(*(trunk.energies(part) for part in tokens), strict=True)))


def draw_descent(axes: Axes, found: Energies, steps: int) -> None:
    """Draw mean and middle 80 % of the total, and the means of its parts, as changes from the first step."""
    time = range(len(found.total))
    for name, values, color in (
        ("total", found.total, BLUE),
        ("attention", found.attention, ORANGE),
        ("Hopfield", found.hopfield, GREEN),
    ):
        change = (values - values[0]) / 1000
        axes.plot(time, change.mean(1), color=color, marker="o", markersize=3, label=name)
        if name == "total":
            low, high = change.quantile(0.1, 1), change.quantile(0.9, 1)
            axes.fill_between(time, low, high, color=color, alpha=0.15, linewidth=0)
    axes.axvline(steps, color=GREY, linestyle=":", linewidth=1)
    axes.text(steps + 0.15, axes.get_ylim()[1], "T", color=GREY, va="top")
    axes.set(xlabel="step", ylabel="change of energy, thousands")
    axes.legend(frameon=False)
    plain(axes)


def draw_alphas(axes: Axes, trunk: EnergyTrunk, tokens: list[Tensor]) -> None:
    """Draw the mean total for steps of several sizes, and say for how many images it falls at every one."""
    for alpha, color in zip(ALPHAS, (SKY, GREEN, BLUE, ORANGE, RED), strict=True):
        total = energies(trunk, tokens, STEPS, alpha).total
        falling = 100 * float((total[1:] < total[:-1]).all(0).double().mean())
        label = f"α = {alpha:g}" if alpha < 1000 else f"α = $10^{math.log10(alpha):.0f}$"
        axes.plot(range(STEPS + 1), total.mean(1) / 1000, color=color, label=f"{label}: {falling:.0f} %")
    axes.set(xlabel="step", ylabel="energy, thousands")
    axes.legend(frameon=False, title="images that fall at every step")
    plain(axes)


@torch.no_grad()
def main() -> None:
    """Draw both."""
    run = Run.open(sys.argv[1])
    trunk, tokens = tokens_of(load_encoder(run.path), run)
    steps, alpha = trunk.steps, float(trunk.alpha())
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_descent(left, energies(trunk, tokens, 2 * steps, alpha), steps)
    draw_alphas(right, trunk, tokens)
    save(figure, "descent")


if __name__ == "__main__":
    main()
