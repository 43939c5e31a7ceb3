"""Draw docs/figures/descent.png from a trained run: `python docs/energy_figure.py runs/energy-demo`, about a minute.

Left: the energy of test images along the steps, trained and untrained, also past the T that it was trained with. Right:
the share of images whose energy falls at every step, over the size α of a step.
"""

from __future__ import annotations

import math
import sys

import torch
from figures import BLUE, GREEN, GREY, ORANGE, RED, WIDTH, plain, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from jepa.backbones import Encoder, Energies, EnergyTransformer, EnergyTrunk
from jepa.data import open_dataset
from jepa.runs import Run, fresh_objective, load_encoder

IMAGES = 500


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
    axes.set(xlabel="step", ylabel="energy above that of step 0, thousands")
    axes.legend(frameon=False)
    plain(axes)


def draw_alphas(axes: Axes, trunks: dict[str, tuple[EnergyTrunk, list[Tensor]]], steps: int, own: float) -> None:
    """Draw the share of images whose energy falls at every step."""
    alphas = [0.1 * 2 ** (exponent / 2) for exponent in range(13)]
    for (name, (trunk, tokens)), color in zip(trunks.items(), (BLUE, RED), strict=True):
        for count, style in ((steps, "-"), (50, "--")):
            shares = []
            for alpha in alphas:
                total = energies(trunk, tokens, count, alpha).total
                shares.append(100 * float((total[1:] < total[:-1]).all(0).double().mean()))
            axes.plot(alphas, shares, style, color=color, marker="o", markersize=3, label=f"{name}, {count} steps")
    axes.axvline(own, color=GREY, linestyle=":", linewidth=1)
    axes.text(own * 1.05, 50, "α", color=GREY)
    axes.set(xscale="log", xlabel="size of a step, α", ylabel="images that fall at every step, %", ylim=(-3, 103))
    axes.set_xticks([0.1, 0.3, 1, 3], ["0.1", "0.3", "1", "3"])
    axes.minorticks_off()
    axes.legend(frameon=False)
    plain(axes)


@torch.no_grad()
def main() -> None:
    """Draw both."""
    run = Run.open(sys.argv[1])
    untrained = next(iter(fresh_objective(run.config).encoders().values()))
    trunks = {
        "trained": tokens_of(load_encoder(run.path), run),
        "untrained": tokens_of(untrained, run),
    }
    trunk, tokens = trunks["trained"]
    steps, alpha = trunk.steps, float(trunk.alpha())
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_descent(left, energies(trunk, tokens, 2 * steps, alpha), steps)
    draw_alphas(right, trunks, steps, alpha)
    save(figure, "descent")


if __name__ == "__main__":
    main()
