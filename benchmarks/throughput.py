"""Training speed: images/s, FLOP/s as a fraction of the matmul rate measured in the same run, and peak memory.

    python benchmarks/throughput.py                    # ViT 192x6 at 32 px, batch 128
    python benchmarks/throughput.py --reference PATH   # also time a checkout of facebookresearch/ijepa
    python benchmarks/throughput.py --size base --patch 16 --image-size 224 --predictor 384x6x12 --compile  # on a GPU
    python benchmarks/throughput.py --recipe saccade-convnext-cifar10 --convnets convnext_atto resnet18  # views

A step consists of crops, masks, forward pass, backward pass, AdamW and EMA. The reference step has masks but no crops.
Both are timed alternately in one process, so that any other load affects both. FLOPs (matrix products and convolutions,
forward and backward) are counted for each, because the reference truncates all contexts to the shortest in the batch
and thus does less work per image. With 128 images of 8x8 tokens, --context-limit 0.15 equalizes the work.
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
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from jepa.config import Config, CropConfig, DataConfig, IJepaConfig, MaskConfig, OptimConfig, ViTConfig, parse_width
from jepa.config.recipes import recipe
from jepa.data import Batch
from jepa.distributed import keep_freed_memory, pick_device
from jepa.optim import build_optimizer
from jepa.rng import Rng
from jepa.runs import fresh_objective
from jepa.transforms.masks import MaskSampler

WARMUP_STEPS = 3
MATMUL_REPEATS = 10
Step = Callable[[], None]


def our_step(config: Config, device: torch.device, bf16: bool, compiled: bool) -> tuple[Step, Step]:
    """Return a full training step of this project, and a function that only samples views and masks."""
    objective = fresh_objective(config).to(device)
    optimizer = build_optimizer(objective, config.optim)
    model = torch.compile(objective) if compiled else objective
    positions = torch.arange(config.batch_size, device=device)
    shape = (config.batch_size, config.data.channels, *config.data.canvas_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    batch, count = Batch(images, None, positions), 0

    def step() -> None:
        nonlocal count
        inputs = objective.sample(batch, Rng(0, count, positions))
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            losses = model(inputs)
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(0.5)
        count += 1

    return step, lambda: objective.sample(batch, Rng(0, count, positions))


def reference_step(path: Path, config: Config, device: torch.device, bf16: bool) -> Step:
    """Return the same step with the modules and mask collator of a checkout of facebookresearch/ijepa."""
    sys.path.insert(0, str(path))
    from src.masks.multiblock import MaskCollator  # type: ignore[import-not-found]
    from src.masks.utils import apply_masks  # type: ignore[import-not-found]
    from src.models.vision_transformer import VisionTransformer, VisionTransformerPredictor  # type: ignore
    from src.utils.tensors import repeat_interleave_batch  # type: ignore[import-not-found]

    dim, depth, num_heads, mlp_ratio = config.backbone.dimensions
    predictor_shape = parse_width(config.objective.predictor, "objective.predictor")
    side, patch = config.data.size[0], config.backbone.patch
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    shared = {"norm_layer": norm, "qkv_bias": True, "mlp_ratio": mlp_ratio}
    encoder = VisionTransformer([side], patch, embed_dim=dim, depth=depth, num_heads=num_heads, **shared).to(device)
    shared |= dict(zip(("predictor_embed_dim", "depth", "num_heads"), predictor_shape, strict=True))
    predictor = VisionTransformerPredictor((side // patch) ** 2, dim, **shared).to(device)
    target = copy.deepcopy(encoder).requires_grad_(False)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *predictor.parameters()], lr=1e-3)
    masks = config.objective.masks
    scales = (masks.context_scale, masks.target_scale, masks.target_aspect)  # the defaults differ from the paper
    collate = MaskCollator((side, side), patch, *scales, nenc=1, npred=masks.targets, min_keep=4, allow_overlap=False)
    images = [torch.rand(3, side, side) for _ in range(config.batch_size)]

    def step() -> None:
        batch, context_masks, target_masks = collate(images)
        batch = batch.to(device)
        context_masks, target_masks = ([mask.to(device) for mask in group] for group in (context_masks, target_masks))
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            with torch.no_grad():
                targets = F.layer_norm(target(batch), (dim,))
                targets = apply_masks(targets, target_masks)
                targets = repeat_interleave_batch(targets, len(batch), repeat=len(context_masks))
            loss = F.smooth_l1_loss(predictor(encoder(batch, context_masks), context_masks, target_masks), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for target_weight, weight in zip(target.parameters(), encoder.parameters(), strict=True):
                target_weight.mul_(0.996).add_(weight, alpha=0.004)

    return step


def median_seconds(steps: dict[str, Step], repeats: int, device: torch.device) -> dict[str, float]:
    """Return the median time of each step in seconds. Steps are timed alternately."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + WARMUP_STEPS):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat >= WARMUP_STEPS:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def count_flops(step: Step) -> int:
    """Return the FLOPs of matrix products and convolutions per step, averaged over three steps."""
    with FlopCounterMode(display=False) as counter:
        for _ in range(3):
            step()
    return int(counter.get_total_flops()) // 3


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the best FLOP/s of a large square matrix product over ten repeats."""
    size = 2048 if device.type == "cpu" else 8192
    a, b = torch.randn(2, size, size, device=device, dtype=dtype).unbind()
    best = float("inf")
    for _ in range(MATMUL_REPEATS):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def print_recipe_table(arguments: argparse.Namespace, device: torch.device, bf16: bool) -> None:
    """Print the images/s of a recipe with each ConvNet in `--convnets`, and the cost of its views and masks."""
    config = recipe(arguments.recipe)
    mean, std = (0.5,) * config.data.channels, (0.25,) * config.data.channels
    config = replace(config, data=replace(config.data, mean=mean, std=std))
    backbones = {name: replace(config.backbone, name=name) for name in arguments.convnets} or {
        "its backbone": config.backbone
    }
    print(f"{arguments.recipe}, batch {config.batch_size}, {device}, torch {torch.__version__}")
    print(f"{'':<24}{'parameters':>12}{'MFLOP/image':>13}{'images/s':>10}{'views, % of step':>20}")
    for name, backbone in backbones.items():
        changed = replace(config, backbone=backbone)
        step, views = our_step(changed, device, bf16, arguments.compile)
        encoder = fresh_objective(changed).main_encoder
        parameters = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
        mflops = count_flops(step) / config.batch_size / 1e6
        seconds = median_seconds({"step": step, "views": views}, arguments.steps, device)
        rate, percentage = config.batch_size / seconds["step"], 100 * seconds["views"] / seconds["step"]
        print(f"{name:<24}{parameters:>10.1f} M{mflops:>13,.0f}{rate:>10.0f}{percentage:>20.1f}")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
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
    parser.add_argument("--recipe", help="recipe to time instead of I-JEPA with the settings above")
    parser.add_argument("--convnets", nargs="*", default=[], help="timm models to use as its backbone")
    parser.add_argument("--reference", type=Path, help="a checkout of facebookresearch/ijepa")
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    arguments = parse_arguments()
    keep_freed_memory()  # as in `jepa train`; this speeds up the reference, too
    device = pick_device(arguments.device)
    bf16 = device.type == "cuda"
    if arguments.recipe:
        print_recipe_table(arguments, device, bf16)
        return
    config = Config(
        batch_size=arguments.batch_size,
        data=DataConfig(image_size=arguments.image_size, mean=(0.5,) * 3, std=(0.25,) * 3),
        backbone=ViTConfig(size=arguments.size, patch=arguments.patch),
        objective=IJepaConfig(
            predictor=arguments.predictor, crop=CropConfig(), masks=MaskConfig(context_limit=arguments.context_limit)
        ),
        optim=OptimConfig(),
    )
    steps = {"eager": our_step(config, device, bf16, compiled=False)[0]}
    if arguments.reference is not None:
        steps["reference"] = reference_step(arguments.reference, config, device, bf16)
    flops = {name: count_flops(step) for name, step in steps.items()}
    if arguments.compile:
        steps["compiled"], flops["compiled"] = our_step(config, device, bf16, compiled=True)[0], flops["eager"]
    before = matmul_rate(device, torch.bfloat16 if bf16 else torch.float32)
    seconds = median_seconds(steps, arguments.steps, device)
    peak = max(before, matmul_rate(device, torch.bfloat16 if bf16 else torch.float32))
    grid = (arguments.image_size // arguments.patch,) * 2
    sampler = MaskSampler(config.objective.masks, grid)
    print(
        f"ViT {arguments.size}/{arguments.patch} at {arguments.image_size} px, predictor {arguments.predictor}, batch "
        f"{arguments.batch_size}, {sampler.num_context} of {sampler.num_tokens} tokens as context, "
        f"{sampler.num_targets} targets of {sampler.target_size}, {device}, torch {torch.__version__}"
    )
    print(f"matmul {peak / 1e9:,.0f} GFLOP/s")
    print(f"{'':<12}{'images/s':>10}{'MFLOP/image':>13}{'GFLOP/s':>10}{'of peak':>8}{'ratio':>8}")
    baseline = seconds.get("reference", seconds["eager"])
    for name, time_per_step in seconds.items():
        flop_rate, flops_per_image = flops[name] / time_per_step, flops[name] / config.batch_size
        print(
            f"{name:<12}{config.batch_size / time_per_step:>10.0f}{flops_per_image / 1e6:>13,.0f}"
            f"{flop_rate / 1e9:>10,.0f}{100 * flop_rate / peak:>7.0f}%{baseline / time_per_step:>8.2f}"
        )
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated() / 1e9:.2f} GB on the device")
    else:
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
