"""Speed of training: images/s, model FLOP/s and its share of the matmul rate measured in the same run, peak memory.

    python benchmarks/throughput.py                    # ViT 192x6 at 32 px, batch 128
    python benchmarks/throughput.py --reference PATH   # beside the modules of a checkout of facebookresearch/ijepa
    python benchmarks/throughput.py --size base --patch 16 --image-size 224 --predictor 384x6x12 --compile  # on a GPU
    python benchmarks/throughput.py --recipe saccade-cifar10 --convnets convnext_atto resnet18   # and what views cost

One step is everything: crops, masks, forward, backward, AdamW, EMA. The reference's step has its masks in it, and no
crops; the two take turns in one process, so that a noisy machine is noisy for both. FLOPs (matrix products and
convolutions, forward and backward) are counted for each, because the reference cuts all contexts to the shortest of the
batch and so does less work an image: at batch 128 on 8x8 tokens, --context-limit 0.15 makes the work equal.
"""

from __future__ import annotations

import argparse
import copy
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from jepa.allocator import keep_freed_memory
from jepa.config import Config, CropConfig, DataConfig, IJepaConfig, MaskConfig, OptimConfig, ViTConfig, parse_width
from jepa.data import Batch
from jepa.distributed import pick_device
from jepa.masking import MaskSampler
from jepa.optim import build_optimizer
from jepa.recipes import recipe
from jepa.rng import Rng
from jepa.runs import fresh_objective

Step = Callable[[], None]


def our_step(config: Config, device: torch.device, bf16: bool, compiled: bool) -> tuple[Step, Step]:
    """Build a full training step of this project, and its views and masks alone."""
    objective = fresh_objective(config).to(device)
    optimizer = build_optimizer(objective, config.optim)
    model = torch.compile(objective) if compiled else objective
    rows = torch.arange(config.batch_size, device=device)
    shape = (config.batch_size, config.data.channels, *config.data.canvas_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    batch, count = Batch(images, None, rows), 0

    def step() -> None:
        nonlocal count
        inputs = objective.sample(batch, Rng(0, count, rows))
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            losses = model(inputs)
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(0.5)
        count += 1

    return step, lambda: objective.sample(batch, Rng(0, count, rows))


def reference_step(path: Path, config: Config, device: torch.device, bf16: bool) -> Callable[[], None]:
    """Build the same step from the modules of a checkout of facebookresearch/ijepa, with its own mask collator."""
    sys.path.insert(0, str(path))
    from src.masks.multiblock import MaskCollator  # type: ignore[import-not-found]
    from src.masks.utils import apply_masks  # type: ignore[import-not-found]
    from src.models.vision_transformer import VisionTransformer, VisionTransformerPredictor  # type: ignore
    from src.utils.tensors import repeat_interleave_batch  # type: ignore[import-not-found]

    dim, depth, heads, ratio = config.backbone.dimensions
    width, layers, predictor_heads = parse_width(config.objective.predictor, "objective.predictor")
    side, patch = config.data.size[0], config.backbone.patch
    norm = lambda size: torch.nn.LayerNorm(size, eps=1e-6)  # noqa: E731
    shared = {"norm_layer": norm, "qkv_bias": True, "mlp_ratio": ratio}
    encoder = VisionTransformer([side], patch, embed_dim=dim, depth=depth, num_heads=heads, **shared).to(device)
    predictor = VisionTransformerPredictor(
        (side // patch) ** 2, dim, predictor_embed_dim=width, depth=layers, num_heads=predictor_heads, **shared
    ).to(device)
    target = copy.deepcopy(encoder).requires_grad_(False)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *predictor.parameters()], lr=1e-3)
    masks = config.objective.masks
    scales = (masks.context_scale, masks.target_scale, masks.target_aspect)  # its own defaults are not the paper's
    collate = MaskCollator((side, side), patch, *scales, nenc=1, npred=masks.targets, min_keep=4, allow_overlap=False)
    images = [torch.rand(3, side, side) for _ in range(config.batch_size)]

    def step() -> None:
        batch, context_masks, target_masks = collate(images)
        batch = batch.to(device)
        context_masks, target_masks = ([mask.to(device) for mask in group] for group in (context_masks, target_masks))
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            with torch.no_grad():
                wanted = F.layer_norm(target(batch), (dim,))
                wanted = apply_masks(wanted, target_masks)
                wanted = repeat_interleave_batch(wanted, len(batch), repeat=len(context_masks))
            loss = F.smooth_l1_loss(predictor(encoder(batch, context_masks), context_masks, target_masks), wanted)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), encoder.parameters(), strict=True):
                slow.mul_(0.996).add_(fast, alpha=0.004)

    return step


def rates(steps: dict[str, Callable[[], None]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each step, the steps taking turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(repeats + 3):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if index >= 3:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def count_flops(step: Callable[[], None]) -> int:
    """Count the FLOPs of matrix products and convolutions in one step, the mean of three."""
    with FlopCounterMode(display=False) as counter:
        for _ in range(3):
            step()
    return int(counter.get_total_flops()) // 3


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product, the best of ten."""
    size = 2048 if device.type == "cpu" else 8192
    a, b = torch.randn(2, size, size, device=device, dtype=dtype).unbind()
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def recipe_table(given: argparse.Namespace, device: torch.device, bf16: bool) -> None:
    """Print images/s of a recipe, by ConvNets where some are named, and what its views and masks cost."""
    config = recipe(given.recipe)
    mean, std = (0.5,) * config.data.channels, (0.25,) * config.data.channels
    config = replace(config, data=replace(config.data, mean=mean, std=std))
    backbones = {name: replace(config.backbone, name=name) for name in given.convnets} or {"as it is": config.backbone}
    print(f"{given.recipe}, batch {config.batch_size}, {device}, torch {torch.__version__}")
    print(f"{'':<24}{'parameters':>12}{'MFLOP/image':>13}{'images/s':>10}{'views, % of a step':>20}")
    for name, backbone in backbones.items():
        changed = replace(config, backbone=backbone)
        step, views = our_step(changed, device, bf16, given.compile)
        encoder = next(iter(fresh_objective(changed).encoders().values()))
        weights = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
        flops = count_flops(step) / config.batch_size / 1e6
        seconds = rates({"step": step, "views": views}, given.steps, device)
        share = 100 * seconds["views"] / seconds["step"]
        print(f"{name:<24}{weights:>10.1f} M{flops:>13,.0f}{config.batch_size / seconds['step']:>10.0f}{share:>20.1f}")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", default="192x6")
    parser.add_argument("--patch", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--predictor", default="96x4x3")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--context-limit", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--recipe", help="time this recipe instead")
    parser.add_argument("--convnets", nargs="*", default=[], help="models of timm to exchange its backbone for")
    parser.add_argument("--reference", type=Path, help="a checkout of facebookresearch/ijepa")
    return parser.parse_args()


def main() -> None:
    """Print one table."""
    given = arguments()
    keep_freed_memory()  # as `jepa train` does; the reference gains by it too
    device = pick_device(given.device)
    bf16 = device.type == "cuda"
    if given.recipe:
        recipe_table(given, device, bf16)
        return
    config = Config(
        batch_size=given.batch_size,
        data=DataConfig(image_size=given.image_size, mean=(0.5,) * 3, std=(0.25,) * 3),
        backbone=ViTConfig(size=given.size, patch=given.patch),
        objective=IJepaConfig(
            predictor=given.predictor, crop=CropConfig(), masks=MaskConfig(context_limit=given.context_limit)
        ),
        optim=OptimConfig(),
    )
    steps = {"eager": our_step(config, device, bf16, compiled=False)[0]}
    if given.reference is not None:
        steps["reference"] = reference_step(given.reference, config, device, bf16)
    flops = {name: count_flops(step) for name, step in steps.items()}
    if given.compile:
        steps["compiled"], flops["compiled"] = our_step(config, device, bf16, compiled=True)[0], flops["eager"]
    before = matmul_rate(device, torch.bfloat16 if bf16 else torch.float32)
    seconds = rates(steps, given.steps, device)
    peak = max(before, matmul_rate(device, torch.bfloat16 if bf16 else torch.float32))
    grid = (given.image_size // given.patch,) * 2
    sampler = MaskSampler(config.objective.masks, grid)
    print(
        f"ViT {given.size}/{given.patch} at {given.image_size} px, predictor {given.predictor}, batch "
        f"{given.batch_size}, {sampler.num_context} of {grid[0] * grid[1]} tokens as context, {sampler.num_targets} "
        f"targets of {sampler.target_size}, {device}, torch {torch.__version__}"
    )
    print(f"matmul {peak / 1e9:,.0f} GFLOP/s")
    print(f"{'':<12}{'images/s':>10}{'MFLOP/image':>13}{'GFLOP/s':>10}{'share':>8}{'ratio':>8}")
    base = seconds.get("reference", seconds["eager"])
    for name, value in seconds.items():
        rate, each = flops[name] / value, flops[name] / config.batch_size
        print(
            f"{name:<12}{config.batch_size / value:>10.0f}{each / 1e6:>13,.0f}{rate / 1e9:>10,.0f}"
            f"{100 * rate / peak:>7.0f}%{base / value:>8.2f}"
        )
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated() / 1e9:.2f} GB on the device")
    else:
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
