"""Speed and memory of the Energy Transformer, and the step sizes at which its energy decreases at every step.

    python benchmarks/energy.py speed              # closed-form gradient, autograd in the forward pass, and a ViT
    python benchmarks/energy.py speed --steps 30 --device cuda --bf16
    python benchmarks/energy.py descent RUN        # largest α at which the energy decreases at every step

`speed` times the forward and backward pass of the trunk alone on a batch of tokens. All variants except the ViT have
the same weights. The time of the ViT is scaled to equal FLOPs (matrix products of the forward and backward pass,
counted by torch, excluding recomputation). Variants are timed alternately in one process. Peak memory is the increase
during a step, measured in a separate process per variant.
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

from jepa.backbones.energy_step import EnergyMask
from jepa.backbones.energy_transformer import EnergyTransformer, EnergyTrunk
from jepa.backbones.vit import ViTTrunk
from jepa.config import EnergyConfig
from jepa.data import open_dataset
from jepa.distributed import keep_freed_memory
from jepa.runs import Run, load_encoder

NUM_HEADS, BATCH_TOKENS = 4, 4096
NUM_IMAGES = 500  # number of images to trace energies of
WARMUP_STEPS = 2
ALPHAS = [0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1e4, 1e6]
VARIANTS = ("written out", "jacrev", "func.grad", "ViT")


class AutogradTrunk(EnergyTrunk):
    """The same trunk, with ∂E/∂g computed by automatic differentiation inside the forward pass."""

    differentiate: Callable[..., Callable[[Tensor], Tensor]]

    def descend(self, x: Tensor, mask: EnergyMask) -> Iterator[Tensor]:
        """Yield the tokens before the first step and after each step."""

        def total_energy(g: Tensor) -> Tensor:
            attention, hopfield = self.energy(g, mask)
            return (attention + hopfield).sum()

        yield x
        for _ in range(self.num_steps):
            x = x - self.alpha() * self.differentiate(total_energy)(self.norm(x))
            yield x


def build(variant: str, dim: int, depth: int, device: torch.device) -> nn.Module:
    """Build the trunk of a variant with seed 0."""
    torch.manual_seed(0)
    if variant == "ViT":
        return ViTTrunk(dim, depth, NUM_HEADS).to(device)
    if variant == "written out":
        return EnergyTrunk(EnergyConfig(), dim, depth, NUM_HEADS).to(device)
    trunk = AutogradTrunk(EnergyConfig(), dim, depth, NUM_HEADS).to(device)
    trunk.differentiate = torch.func.jacrev if variant == "jacrev" else torch.func.grad
    return trunk


def make_step(
    variant: str, num_tokens: int, arguments: argparse.Namespace, batch_size: int | None = None
) -> Callable[[], None]:
    """Return a function that runs a forward and backward pass on images of `num_tokens` tokens each.

    By default, the batch has BATCH_TOKENS tokens.
    """
    device = torch.device(arguments.device)
    trunk = build(variant, arguments.dim, arguments.depth, device)
    x = torch.randn(batch_size or BATCH_TOKENS // num_tokens, num_tokens, arguments.dim, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments.bf16):
            loss = trunk(x).square().mean()
        loss.backward()
        trunk.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def measure_peak(variant: str, num_tokens: int, arguments: argparse.Namespace) -> float:
    """Return the peak memory of a step in MB, measured in a separate process."""
    flags = [
        "memory",
        variant,
        "--tokens",
        str(num_tokens),
        "--dim",
        str(arguments.dim),
        "--depth",
        str(arguments.depth),
    ]
    flags += ["--device", arguments.device, *(["--bf16"] if arguments.bf16 else [])]
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536"
    }  # makes glibc return large blocks as soon as they are freed
    command = [sys.executable, __file__, *flags]
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(json.loads(result.stdout))


def memory(arguments: argparse.Namespace) -> None:
    """Print the peak memory of a step of one variant, in MB."""
    step = make_step(arguments.variant, arguments.tokens, arguments)
    make_step(arguments.variant, arguments.tokens, arguments, batch_size=1)()  # load the libraries first
    if arguments.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        print((torch.cuda.max_memory_allocated() - before) / 1e6)
        return
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = resident_memory("VmRSS")
    step()
    print(resident_memory("VmHWM") - before)


def resident_memory(name: str) -> float:
    """Return the memory of this process in MB, current (VmRSS) or peak (VmHWM). Linux only."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1e3


def speed(arguments: argparse.Namespace) -> None:
    """Print a table of time and peak memory."""
    keep_freed_memory()
    print(
        f"width {arguments.dim}, {NUM_HEADS} heads, T = {arguments.depth}, {BATCH_TOKENS} tokens per batch, "
        f"{arguments.device}{' bf16' if arguments.bf16 else ''}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"{'tokens':>6}  {'':<12}{'ms':>8}{'GFLOP':>8}{'at equal FLOPs':>16}{'ratio':>7}{'peak MB':>9}{'ratio':>7}")
    for num_tokens in arguments.tokens_list:
        steps = {variant: make_step(variant, num_tokens, arguments) for variant in VARIANTS}
        flops = {"ViT": count_flops(steps["ViT"])}
        flops |= dict.fromkeys(VARIANTS[:3], count_flops(steps["func.grad"]))  # equal for all, excluding recomputation
        times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for repeat in range(arguments.steps + WARMUP_STEPS):
            for variant, step in steps.items():
                start = time.perf_counter()
                step()
                if repeat >= WARMUP_STEPS:
                    times[variant].append(1000 * (time.perf_counter() - start))
        peaks = {variant: measure_peak(variant, num_tokens, arguments) for variant in VARIANTS}
        reference = statistics.median(times["written out"])
        for variant in VARIANTS:
            median = statistics.median(times[variant])
            scaled = median * flops["written out"] / flops[variant] if variant == "ViT" else median
            print(
                f"{num_tokens:>6}  {variant:<12}{median:>8.1f}{flops[variant] / 1e9:>8.1f}{scaled:>16.1f}"
                f"{scaled / reference:>7.2f}{peaks[variant]:>9.0f}{peaks[variant] / peaks['written out']:>7.2f}"
            )


@torch.no_grad()
def energy_trace(arguments: argparse.Namespace) -> None:
    """Print the largest α at which the energy of 500 test images decreases at every step, in float64."""
    run = Run.open(arguments.run)
    encoder = load_encoder(arguments.run).double()
    dataset = open_dataset(run.config.data, "test")
    assert dataset is not None
    pixels = dataset.read(torch.arange(0, len(dataset), len(dataset) // NUM_IMAGES)[:NUM_IMAGES]).pixels
    backbone = encoder.backbone
    assert isinstance(backbone, EnergyTransformer)
    trunk = backbone.trunk
    tokens = [backbone.embed_patches(encoder.prepare(batch.double() / 255))[0] for batch in pixels.split(50)]
    gamma = float(trunk.norm.gamma())
    print(f"{arguments.run}: trained with α = {float(trunk.alpha()):.3g}, T = {trunk.num_steps}; γ = {gamma:.3g}")
    for num_steps in (trunk.num_steps, 50):
        trunk.num_steps = num_steps
        largest = 0.0
        for alpha in ALPHAS:
            trunk.alpha.log.fill_(math.log(alpha))
            energy = torch.cat([trunk.energies(batch).total for batch in tokens], 1)
            falling = 100 * float((energy[1:] < energy[:-1]).all(0).double().mean())
            fraction = f"{falling:.1f}% of {len(pixels)} images"
            print(f"    T {num_steps:>2}, α {alpha:<6.3g} decreases at every step for {fraction}")
            if falling < 100:
                break
            largest = alpha
        note = ", the largest value tried" if largest == ALPHAS[-1] else ""
        print(f"T {num_steps}: decreases at every step up to α = {largest:.3g}{note}")


def count_flops(step: Callable[[], None]) -> int:
    """Return the FLOPs of the matrix products in a step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(required=True)
    sub = commands.add_parser("descent")
    sub.set_defaults(command=energy_trace)
    sub.add_argument("run", help="run folder with an Energy Transformer")
    for name, command in (("speed", speed), ("memory", memory)):
        sub = commands.add_parser(name)
        sub.set_defaults(command=command)
        sub.add_argument("--dim", type=int, default=256)
        sub.add_argument("--depth", type=int, default=6, help="number of Energy Transformer steps T and of ViT blocks")
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
    arguments = parse_arguments()
    arguments.command(arguments)
