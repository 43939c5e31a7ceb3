"""The Energy Transformer: speed and memory of the written-out gradient, and how far its energy falls monotonically.

    python benchmarks/energy.py speed              # a training step beside differentiating the energy inside of it
    python benchmarks/energy.py speed --steps 30 --device cuda --bf16
    python benchmarks/energy.py descent RUN        # the largest α at which the energy of a run falls at every step

`speed`: one step is forward and backward of the trunk alone, of a batch of tokens. All variants have the same weights
but the ViT, whose time is brought to the same FLOPs (matrix products, forward and backward, counted by torch, and none
that is done twice). The variants take turns in one process; their peak memory is that of a process each, above what it
holds before the step.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from jepa.allocator import keep_freed_memory
from jepa.backbones import EnergyTransformer, EnergyTrunk, ViTTrunk
from jepa.backbones.energy_step import Pairs
from jepa.config import EnergyConfig
from jepa.data import open_dataset
from jepa.runs import Run, load_encoder

HEADS, BATCH_TOKENS = 4, 4096
ALPHAS = [0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1e4, 1e6]
VARIANTS = ("written out", "jacrev", "func.grad", "ViT")


class Differentiated(EnergyTrunk):
    """The same trunk with the gradient taken of the energy inside the forward pass."""

    how: Callable[..., Callable[[Tensor], Tensor]]

    def descend(self, x: Tensor, pairs: Pairs) -> Iterator[Tensor]:
        """Take the steps with ∂E/∂g by automatic differentiation."""

        def total(g: Tensor) -> Tensor:
            attention, hopfield = self.energy(g, pairs)
            return (attention + hopfield).sum()

        yield x
        for _ in range(self.steps):
            x = x - self.alpha() * self.how(total)(self.norm(x))
            yield x


def build(variant: str, dim: int, depth: int, device: torch.device) -> nn.Module:
    """Build a trunk with the weights of seed 0."""
    torch.manual_seed(0)
    if variant == "ViT":
        return ViTTrunk(dim, depth, HEADS).to(device)
    if variant == "written out":
        return EnergyTrunk(EnergyConfig(), dim, depth, HEADS).to(device)
    trunk = Differentiated(EnergyConfig(), dim, depth, HEADS).to(device)
    trunk.how = torch.func.jacrev if variant == "jacrev" else torch.func.grad
    return trunk


def make_step(variant: str, tokens: int, given: argparse.Namespace, images: int | None = None) -> Callable[[], None]:
    """Build a training step, forward and backward, of images of `tokens` tokens, by default BATCH_TOKENS in all."""
    device = torch.device(given.device)
    trunk = build(variant, given.dim, given.depth, device)
    x = torch.randn(images or BATCH_TOKENS // tokens, tokens, given.dim, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=given.bf16):
            loss = trunk(x).square().mean()
        loss.backward()
        trunk.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def peak_of(variant: str, tokens: int, given: argparse.Namespace) -> float:
    """Measure the MB that a step needs at its peak, in a process of its own."""
    own = ["memory", variant, "--tokens", str(tokens), "--device", given.device, *(["--bf16"] if given.bf16 else [])]
    own += ["--dim", str(given.dim), "--depth", str(given.depth)]
    exact = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc hands every large block back as it is freed
    result = subprocess.run([sys.executable, __file__, *own], check=True, capture_output=True, text=True, env=exact)
    return float(json.loads(result.stdout))


def memory(given: argparse.Namespace) -> None:
    """Print the peak of one variant's step."""
    step = make_step(given.variant, given.tokens, given)
    make_step(given.variant, given.tokens, given, images=1)()  # loads the libraries
    if given.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        print((torch.cuda.max_memory_allocated() - before) / 1e6)
        return
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    step()
    print(resident("VmHWM") - before)


def resident(name: str) -> float:
    """Read how many MB of memory this process has (VmRSS), or has had at most (VmHWM); Linux only."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1e3


def speed(given: argparse.Namespace) -> None:
    """Print one table."""
    keep_freed_memory()
    print(
        f"width {given.dim}, {HEADS} heads, T = {given.depth}, {BATCH_TOKENS} tokens a batch, {given.device}"
        f"{' bf16' if given.bf16 else ''}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    print(f"{'tokens':>6}  {'':<12}{'ms':>8}{'GFLOP':>8}{'at equal FLOPs':>16}{'ratio':>7}{'peak MB':>9}{'ratio':>7}")
    for tokens in given.tokens_list:
        steps = {variant: make_step(variant, tokens, given) for variant in VARIANTS}
        flops = {"ViT": count_flops(steps["ViT"])}
        flops |= dict.fromkeys(VARIANTS[:3], count_flops(steps["func.grad"]))  # what the model needs, nothing twice
        times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for index in range(given.steps + 2):
            for variant, step in steps.items():
                began = time.perf_counter()
                step()
                if index >= 2:
                    times[variant].append(1000 * (time.perf_counter() - began))
        peaks = {variant: peak_of(variant, tokens, given) for variant in VARIANTS}
        ours = statistics.median(times["written out"])
        for variant in VARIANTS:
            median = statistics.median(times[variant])
            equal = median * flops["written out"] / flops[variant] if variant == "ViT" else median
            cells = (
                f"{median:>8.1f}{flops[variant] / 1e9:>8.1f}{equal:>16.1f}{equal / ours:>7.2f}{peaks[variant]:>9.0f}"
            )
            print(f"{tokens:>6}  {variant:<12}{cells}{peaks[variant] / peaks['written out']:>7.2f}")


@torch.no_grad()
def descent(given: argparse.Namespace) -> None:
    """Print the largest α at which the energy of every one of 500 test images falls at every step, in float64."""
    run = Run.open(given.run)
    encoder = load_encoder(given.run).double()
    images = open_dataset(run.config.data, "test")
    assert images is not None
    pixels = images.read(torch.arange(0, len(images), len(images) // 500)[:500]).pixels
    backbone = encoder.backbone
    assert isinstance(backbone, EnergyTransformer)
    trunk = backbone.trunk
    tokens = [backbone.embed(encoder.prepare(part.double() / 255))[0] for part in pixels.split(50)]
    gamma = float(trunk.norm.gamma())
    print(f"{given.run}: trained with α = {float(trunk.alpha()):.3g}, T = {trunk.steps}; γ is {gamma:.3g}")
    for steps in (trunk.steps, 50):
        trunk.steps = steps
        largest = 0.0
        for alpha in ALPHAS:
            trunk.alpha.log.fill_(math.log(alpha))
            energy = torch.cat([trunk.energies(part).total for part in tokens], 1)
            falling = 100 * float((energy[1:] < energy[:-1]).all(0).double().mean())
            print(f"    T {steps:>2}, α {alpha:<6.3g} falls at every step for {falling:.1f} % of {len(pixels)} images")
            if falling < 100:
                break
            largest = alpha
        print(f"T {steps}: monotone up to α = {largest:.3g}" + (", the largest tried" if largest == ALPHAS[-1] else ""))


def count_flops(step: Callable[[], None]) -> int:
    """Count the FLOPs of the matrix products in one step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(required=True)
    sub = commands.add_parser("descent")
    sub.set_defaults(command=descent)
    sub.add_argument("run", help="a run of an Energy Transformer")
    for name, command in (("speed", speed), ("memory", memory)):
        sub = commands.add_parser(name)
        sub.set_defaults(command=command)
        sub.add_argument("--dim", type=int, default=256)
        sub.add_argument("--depth", type=int, default=6, help="T of the Energy Transformer, blocks of the ViT")
        sub.add_argument("--device", default="cpu")
        sub.add_argument("--bf16", action="store_true")
        if name == "speed":
            sub.add_argument("--steps", type=int, default=15)
            sub.add_argument("--tokens", dest="tokens_list", type=int, nargs="+", default=[64, 196])
        else:
            sub.add_argument("variant", choices=VARIANTS)
            sub.add_argument("--tokens", type=int, default=64)
    return parser.parse_args()


if __name__ == "__main__":
    given = arguments()
    given.command(given)
