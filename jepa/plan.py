"""Settings for images of which nothing is known but what a look at them shows: what `ijepa-folder` takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jepa.config import (
    Config,
    CropConfig,
    DataConfig,
    IJepaConfig,
    MaskConfig,
    OptimConfig,
    ViTConfig,
    parse_width,
    require,
)

__all__ = ["Choice", "Situation", "plan"]

LEAST_CROP = 0.35
WIDEST = 2.0  # the longest canvas: crops of longer ones would be squeezed
CPU_SIZES, GPU_SIZES = (32, 64), (32, 64, 96, 128, 160, 192, 224)
BYTES_A_TOKEN = 34 * 2  # activations a layer and unit of width in bf16 (Korthikanti et al. 2022), twice for room


@dataclass(frozen=True)
class Situation:
    """What a plan depends on."""

    count: int
    """Images to train on."""
    height: int
    width: int
    """Size of the image in the middle, in pixels."""
    one_aspect: bool = False
    """Nearly all have that aspect."""
    grey: bool = False
    """All are grey."""
    device: str = "cpu"
    memory_gb: float = 16.0
    """Memory of the device."""


@dataclass(frozen=True)
class Choice:
    """A setting that was chosen, as it would be given on the command line, and why."""

    flag: str
    value: str
    reason: str


def plan(source: str, now: Situation, given: tuple[int, int] | None = None) -> tuple[Config, list[Choice]]:
    """Choose an I-JEPA for a pile of images; `given` are height and width of the view where they are fixed already."""
    require(now.count >= 2, f"{source} has {now.count} image to train on; training takes two at least")
    on_gpu = now.device == "cuda"
    (height, width), why_size = (given, "given") if given else _size(now, on_gpu)
    patch = _patch(height, width, 16 if on_gpu else 8)
    canvas, why_canvas = _canvas(now, height, width)
    size, predictor, why_model = _model(now.count, on_gpu)
    tokens = (height // patch) * (width // patch)
    batch, why_batch = _batch(now, on_gpu, tokens, size, predictor)
    seen, why_steps = _seen(now.count, on_gpu)
    steps = max(500, seen // batch)
    view = height if height == width else (height, width)
    config = Config(
        name="ijepa-folder",
        steps=steps,
        batch_size=batch,
        save_every=max(100, min(1000, steps // 10)),
        eval_every=max(100, steps // 4),
        data=DataConfig(source=source, image_size=view, canvas=canvas, channels=1 if now.grey else 3),
        backbone=ViTConfig(size=size, patch=patch, stem="conv" if is_power(patch) else "linear"),
        objective=IJepaConfig(
            predictor=predictor,
            loss="smooth_l1",
            variance=0.01,
            covariance=0.01,
            ema_half_life=max(20.0, min(173.0, round(steps / 26))),
            ema_half_life_end=float(round(steps / 2.6)),
            crop=CropConfig(kind="random", scale=(LEAST_CROP, 1.0), flip=True),
            masks=MaskConfig(context_limit=1.0 if on_gpu else 0.35),
        ),
        optim=OptimConfig(lr_start=1e-5, warmup=max(50, steps // 20), weight_decay=0.05, weight_decay_end=0.05),
    )
    settings = [
        ("--data.image-size", view, why_size),
        ("--data.canvas", canvas, why_canvas),
        ("--data.channels", config.data.channels, "all are grey" if now.grey else "some are in colour"),
        ("--backbone.patch", patch, f"{height // patch}x{width // patch} tokens"),
        ("--backbone.size", size, why_model),
        ("--batch-size", batch, why_batch),
        ("--steps", steps, f"every image about {steps * batch / now.count:,.0f} times: {why_steps}"),
    ]
    return config, [Choice(flag, _spelled(value), reason) for flag, value, reason in settings]


def _spelled(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _size(now: Situation, on_gpu: bool) -> tuple[tuple[int, int], str]:
    """Choose the view: a square no larger than the image in the middle."""
    side = min(now.height, now.width)
    known = GPU_SIZES if on_gpu else CPU_SIZES
    size = max((size for size in known if size <= side), default=known[0])
    if size == known[-1]:
        return (size, size), f"as large as a {'GPU trains in hours' if on_gpu else 'CPU trains in minutes'}"
    return (size, size), f"the shorter side in the middle is {side} pixels"


def _patch(height: int, width: int, side: int) -> int:
    """Choose the smallest patch that leaves no more than `side` x `side` tokens: a power of two if there is one.

    Raises `InputError` where none leaves four tokens a side, or only one with too many.
    """
    fitting = [patch for patch in range(1, min(height, width) // 4 + 1) if height % patch == 0 and width % patch == 0]
    few = [patch for patch in fitting if height * width <= (side * patch) ** 2]
    if not few and fitting and height * width <= (3 * side * fitting[-1]) ** 2:
        few = [fitting[-1]]
    nearest = [max(32, round(length / 8) * 8) for length in (height, width)]
    require(
        bool(few),
        f"data.image_size is {height}x{width}, which no patch cuts into 4 to {side} tokens a side; choose "
        f"--data.image-size {nearest[0]}{f' {nearest[1]}' if height != width else ''}",
    )
    return min([patch for patch in few if is_power(patch)] or few)


def is_power(patch: int) -> bool:
    """Say whether a patch is a power of 2, as a convolutional stem needs it."""
    return patch >= 2 and patch & (patch - 1) == 0


def _canvas(now: Situation, height: int, width: int) -> tuple[int | tuple[int, int], str]:
    """Choose what is decoded: large enough that the smallest crop is not enlarged, no larger than the images."""
    needed = [math.ceil(length / math.sqrt(LEAST_CROP) / 8) * 8 for length in (height, width)]
    fitting = min(1.0, now.height / needed[0], now.width / needed[1])
    down, across = max(height, int(needed[0] * fitting)), max(width, int(needed[1] * fitting))
    enough = f"crops of {LEAST_CROP:.0%} of it need not be enlarged" if fitting == 1 else "no larger than they are"
    if height != width:
        return (down, across), f"the centre; {enough}"
    if now.one_aspect and 1 < max(now.height, now.width) / min(now.height, now.width) <= WIDEST:
        factor = down / min(now.height, now.width)
        shape = (max(down, round(now.height * factor)), max(across, round(now.width * factor)))
        return shape, f"nearly all have that aspect; {enough}"
    return down, f"the centre square; {enough}"


def _model(count: int, on_gpu: bool) -> tuple[str, str, str]:
    if not on_gpu:
        return "128x4x4", "64x2x4", "learned most in ten minutes of two cores on CIFAR-10"
    if count < 50_000:
        return "tiny", "96x4x3", "few images: a small model with a shallow predictor"
    if count < 1_000_000:
        return "small", "192x6x6", "fewer than a million images"
    return "base", "384x6x12", "a million images and more"


def _batch(now: Situation, on_gpu: bool, tokens: int, width: str, predictor: str) -> tuple[int, str]:
    """Choose a power of two that the memory holds, of which the images make four at least."""
    dim, depth = ViTConfig(size=width, patch=16).dimensions[:2]
    narrow, layers, _ = parse_width(predictor, "objective.predictor")
    image = BYTES_A_TOKEN * tokens * (dim * depth + 4 * narrow * layers)  # four targets, each with the context
    largest = min(1024 if on_gpu else 128, 0.8 * now.memory_gb * 1e9 / image)
    by_count = now.count / 4
    batch = 2 ** max(1, int(math.log2(max(2.0, min(largest, by_count)))))
    if by_count < largest:
        return batch, f"an epoch of {now.count:,} images has four at least"
    return batch, f"fits {now.memory_gb:.0f} GB" if on_gpu else "what the CPU recipes were tuned at"


def _seen(count: int, on_gpu: bool) -> tuple[int, str]:
    """Choose how many images are seen, with repetitions."""
    if not on_gpu:
        seen = min(230_000, 400 * count)
        return seen, "ten minutes of two cores or so" if seen == 230_000 else "more would only repeat so few"
    seen = min(300_000_000, max(300 * count, 5_000_000), 800 * count)
    return seen, "300 epochs, fewer of millions and more of thousands"
