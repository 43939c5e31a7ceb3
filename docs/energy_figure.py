"""Draw docs/figures/descent.png from a trained run: `python docs/energy_figure.py runs/energy-demo`, some minutes.

Left: the energy of test images along the steps, also beyond the number of steps T of training. Right: the total energy
for several step sizes α.
"""

from __future__ import annotations

import math
import sys

import torch
from figures import BLUE, GRAY, GREEN, ORANGE, RED, SKY, WIDTH, remove_spines, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from jepa.backbones import Encoder
from jepa.backbones.energy_transformer import Energies, EnergyTransformer, EnergyTrunk
from jepa.data import open_dataset
from jepa.runs import Run, load_encoder

NUM_IMAGES, NUM_STEPS = 200, 50
ALPHAS = (0.03, 0.1, 0.3, 1.0, 1e6)


def trunk_and_tokens(encoder: Encoder, run: Run) -> tuple[EnergyTrunk, list[Tensor]]:
    """Return the trunk, and batches of the tokens of test images that enter it, in float64."""
    backbone = encoder.double().backbone
    assert isinstance(backbone, EnergyTransformer)
    dataset = open_dataset(run.config.data, "test")
    assert dataset is not None
    pixels = dataset.read(torch.arange(0, len(dataset), len(dataset) // NUM_IMAGES)[:NUM_IMAGES]).pixels
    batches = [encoder.prepare(batch.double() / 255) for batch in pixels.split(50)]
    return backbone.trunk, [backbone.embed_patches(batch)[0] for batch in batches]


def energies(trunk: EnergyTrunk, tokens: list[Tensor], num_steps: int, alpha: float) -> Energies:
    """Return the energies (num_steps + 1, images) with this number of steps and step size."""
    trunk.num_steps = num_steps
    trunk.alpha.log.data.fill_(math.log(alpha))
    batches = [trunk.energies(batch) for batch in tokens]
    return Energies(*(torch.cat(values, 1) for values in zip(*batches, strict=True)))


def draw_trace(axes: Axes, trace: Energies, num_steps: int) -> None:
    """Draw the change of the energies since the start: means, and the middle 80% of the total."""
    steps = range(len(trace.total))
    for name, values, color in (
        ("total", trace.total, BLUE),
        ("attention", trace.attention, ORANGE),
        ("Hopfield", trace.hopfield, GREEN),
    ):
        change = (values - values[0]) / 1000
        axes.plot(steps, change.mean(1), color=color, marker="o", markersize=3, label=name)
        if name == "total":
            low, high = change.quantile(0.1, 1), change.quantile(0.9, 1)
            axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
    axes.axvline(num_steps, color=GRAY, linestyle=":", linewidth=1)
    axes.text(num_steps + 0.15, axes.get_ylim()[1], "T", color=GRAY, va="top")
    axes.set(xlabel="step", ylabel="change of energy, thousands")
    axes.legend(frameon=False)
    remove_spines(axes)


def draw_alphas(axes: Axes, trunk: EnergyTrunk, tokens: list[Tensor]) -> None:
    """Draw the mean total for several step sizes, with the share of images whose energy falls at every step."""
    for alpha, color in zip(ALPHAS, (SKY, GREEN, BLUE, ORANGE, RED), strict=True):
        total = energies(trunk, tokens, NUM_STEPS, alpha).total
        falling = 100 * float((total[1:] < total[:-1]).all(0).double().mean())
        label = f"α = {alpha:g}" if alpha < 1000 else f"α = $10^{math.log10(alpha):.0f}$"
        axes.plot(range(NUM_STEPS + 1), total.mean(1) / 1000, color=color, label=f"{label}: {falling:.0f}%")
    axes.set(xlabel="step", ylabel="energy, thousands")
    axes.legend(frameon=False, title="images whose energy falls at every step")
    remove_spines(axes)


@torch.no_grad()
def main() -> None:
    """Draw both plots."""
    run = Run.open(sys.argv[1])
    trunk, tokens = trunk_and_tokens(load_encoder(run.path), run)
    num_steps, alpha = trunk.num_steps, float(trunk.alpha())
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_trace(left, energies(trunk, tokens, 2 * num_steps, alpha), num_steps)
    draw_alphas(right, trunk, tokens)
    save(figure, "descent")


if __name__ == "__main__":
    main()
