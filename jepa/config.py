"""The page of knobs: every setting of every part, as frozen dataclasses.

The docstring under a field is its help on the command line. Nothing here imports torch, so `--help` is quick.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Literal

__all__ = [
    "KINDS",
    "BackboneConfig",
    "Config",
    "ConvNetConfig",
    "CropConfig",
    "DataConfig",
    "EnergyConfig",
    "FixationConfig",
    "IJepaConfig",
    "InputError",
    "MaskConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "SaccadeConfig",
    "VICRegConfig",
    "ViTConfig",
    "parse_width",
    "require",
    "suggest",
    "with_backbone",
]


class InputError(Exception):
    """Something the user gave cannot be used; the message is one sentence that says what, and how to mend it.

    Not a `ValueError`, which tyro would print in a box of its own.
    """


def require(condition: bool, message: str) -> None:
    """Raise `InputError(message)` unless the condition holds."""
    if not condition:
        raise InputError(message)


def suggest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` for a mistyped word, or nothing where no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


@dataclass(frozen=True)
class DataConfig:
    """Which images, and the form in which the encoder gets them."""

    source: str = "sample"
    """--data for short: 'sample', a folder of images, a table of paths, parquet files, hf:OWNER/NAME, cifar10, …"""
    image_size: int | tuple[int, int] = 32
    """Side of the images that the encoder sees in pixels, or height and width."""
    canvas: int | tuple[int, int] | None = None
    """Cut every image to its centre of this side, or height and width, on decoding; needed where sizes differ."""
    channels: Literal[1, 3] = 3
    """Grey (1) or RGB (3)."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, of values in 0 to 1; measured on the training images where not given."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel; measured where not given."""
    holdout: float = 0.02
    """Share of the training images kept out of training, for the online evaluation."""
    cache_gb: float = 8.0
    """Keep decoded images in a file beside the run if they take no more than this; else decode them in every epoch."""
    workers: int | None = None
    """Processes that decode ahead; by default one a core for a GPU, and none for the CPU, which works in turn."""
    max_broken: float = 0.01
    """Stop where more than this share of the images cannot be read; fewer are skipped and listed in the run."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def canvas_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that views are cut from, where they are brought to one size."""
        canvas = self.size if self.canvas is None else self.canvas
        return (canvas, canvas) if isinstance(canvas, int) else canvas

    def __post_init__(self) -> None:
        require(min(self.size) >= 1, f"data.image_size is {self.image_size}; it takes a number of pixels from 1")
        require(0 <= self.holdout < 0.5, f"data.holdout is {self.holdout}; it takes a share from 0 to below 0.5")
        require(min(self.canvas_size) >= 1, f"data.canvas is {self.canvas}; it takes a number of pixels from 1")
        require(self.cache_gb >= 0, f"data.cache_gb is {self.cache_gb}; it takes a number of GB, or 0 for none")
        workers = self.workers is None or self.workers >= 0
        require(workers, f"data.workers is {self.workers}; it takes a number of processes, or 0 for none")
        require(0 <= self.max_broken <= 1, f"data.max_broken is {self.max_broken}; it takes a share from 0 to 1")
        require(self.std is None or min(self.std, default=1) > 0, f"data.std is {self.std}; it takes numbers above 0")
        for name, values in (("mean", self.mean), ("std", self.std)):
            given = values is None or len(values) == self.channels
            require(
                given, f"data.{name} has {len(values or ())} values; it takes {self.channels}, one for each channel"
            )


VIT_SIZES: dict[str, tuple[int, int, int, float]] = {
    "tiny": (192, 12, 3, 4.0),
    "small": (384, 12, 6, 4.0),
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "huge": (1280, 32, 16, 4.0),
    "giant": (1408, 40, 16, 48 / 11),
}
"""Named sizes: width, depth, heads, MLP ratio (Dosovitskiy et al. 2021; giant: Zhai et al. 2022)."""


def parse_width(text: str, where: str) -> tuple[int, int, int]:
    """Read `DIMxDEPTHxHEADS`, or `DIMxDEPTH` with heads of 64 (of 32 where 64 does not divide DIM)."""
    parts = text.lower().split("x")
    accepted = "it takes DIMxDEPTH or DIMxDEPTHxHEADS, whole numbers from 1, such as 192x6 or 192x6x3"
    is_shape = len(parts) in (2, 3) and all(part.isdigit() and int(part) > 0 for part in parts)
    require(is_shape, f"{where} is '{text}'; {accepted}")
    dim, depth = int(parts[0]), int(parts[1])
    heads = int(parts[2]) if len(parts) == 3 else max(1, dim // (64 if dim % 64 == 0 else 32))
    require(dim % heads == 0, f"{where} is '{text}', but {heads} heads do not divide {dim}; choose another HEADS")
    require(dim % 4 == 0, f"{where} is '{text}'; DIM must be a multiple of 4 for sin-cos positions")
    return dim, depth, heads


def check_patches(size: str, patch: int, stem: str) -> None:
    """Refuse a size, patch or stem that a backbone over patches cannot have."""
    require(patch >= 1, f"backbone.patch is {patch}; it takes a number of pixels from 1")
    if size not in VIT_SIZES:
        hint = suggest(size, VIT_SIZES)
        require(not size.isalpha(), f"backbone.size is '{size}', which is none of {', '.join(VIT_SIZES)}{hint}")
        parse_width(size, "backbone.size")
    powers = patch & (patch - 1) == 0 and patch >= 2
    fits = stem == "linear" or powers
    require(fits, f"backbone.stem '{stem}' needs a patch that is a power of 2; backbone.patch is {patch}")


def check_grid(patch: int, data: DataConfig) -> None:
    """Refuse images that patches do not divide."""
    height, width = data.size
    nearest = max(patch, round(height / patch) * patch)
    require(
        height % patch == 0 and width % patch == 0,
        f"backbone.patch is {patch}, which does not divide the image of {height}x{width} pixels; "
        f"choose another patch, or --data.image-size {nearest}",
    )


@dataclass(frozen=True)
class ViTConfig:
    """A Vision Transformer (Dosovitskiy et al. 2021) with fixed sin-cos positions and no class token."""

    kind: ClassVar[str] = "vit"
    maskable: ClassVar[bool] = True

    size: str = "small"
    """tiny, small, base, large, huge, giant, or free dimensions DIMxDEPTH[xHEADS], such as 192x6x3."""
    patch: int = 16
    """Side of a patch in pixels."""
    stem: Literal["linear", "conv", "patch-conv"] = "linear"
    """Patch to token: linear (the paper), conv (3x3, looks across patch borders) or patch-conv (stays inside)."""

    def __post_init__(self) -> None:
        check_patches(self.size, self.patch, self.stem)

    def fits(self, data: DataConfig) -> None:
        """Refuse images that the patches do not divide."""
        check_grid(self.patch, data)

    @property
    def dimensions(self) -> tuple[int, int, int, float]:
        """Width, depth, heads, MLP ratio."""
        return VIT_SIZES[self.size] if self.size in VIT_SIZES else (*parse_width(self.size, "backbone.size"), 4.0)


TINY, HUGE = 1e-6, 1e6


@dataclass(frozen=True)
class EnergyConfig:
    """An Energy Transformer (Hoover et al. 2023): one block, applied again and again, that descends an energy."""

    kind: ClassVar[str] = "energy"
    maskable: ClassVar[bool] = True

    size: str = "small"
    """As a ViT's, with steps T for its depth: tiny, small, …, or DIMxSTEPS[xHEADS], such as 192x12x3."""
    patch: int = 16
    """Side of a patch in pixels."""
    stem: Literal["linear", "conv", "patch-conv"] = "linear"
    """Patch to token: linear (the paper), conv (3x3, looks across patch borders) or patch-conv (stays inside)."""
    positions: Literal["sincos", "learned"] = "sincos"
    """Fixed sin-cos positions, or learned ones (the paper)."""
    memory: Literal["relu", "softmax"] = "relu"
    """Energy of the Hopfield memories."""
    memories: int = 4
    """Hopfield memories for each dimension."""
    alpha: float = 0.1
    """Size of a step down the energy."""
    learn_alpha: bool = False
    """Learn the size of a step, starting from alpha."""
    beta: float | None = None
    """Inverse temperature; by default 1 / sqrt(width) of a head, or of a token where softmax memories use it."""
    learn_beta: bool = False
    """Learn the inverse temperatures, one a head, starting from beta."""
    self_interaction: bool = False
    """Let a token attend to itself, as the published code does and the paper does not."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise added to the tokens at every step of training."""
    init: Literal["scaled", "paper"] = "scaled"
    """Weights from N(0, 1 / sqrt(DIM)), or the paper's, which were made for a width of 768 and long runs."""

    def __post_init__(self) -> None:
        check_patches(self.size, self.patch, self.stem)
        require(self.memories >= 1, f"backbone.memories is {self.memories}; it takes a whole number from 1")
        usable = f"it takes a number above 0, from {TINY:g} to {HUGE:g}"  # beyond, float32 has nothing left of it
        require(TINY <= self.alpha <= HUGE, f"backbone.alpha is {self.alpha}, the size of a step; {usable}")
        positive = self.beta is None or TINY <= self.beta <= HUGE
        require(positive, f"backbone.beta is {self.beta}, an inverse temperature; {usable}")
        require(0 <= self.noise < math.inf, f"backbone.noise is {self.noise}; it takes a standard deviation from 0")

    def fits(self, data: DataConfig) -> None:
        """Refuse images that the patches do not divide."""
        check_grid(self.patch, data)

    @property
    def dimensions(self) -> tuple[int, int, int]:
        """Width, steps, heads."""
        return VIT_SIZES[self.size][:3] if self.size in VIT_SIZES else parse_width(self.size, "backbone.size")


@dataclass(frozen=True)
class ConvNetConfig:
    """Any ConvNet of timm, by its name; its last map is the grid of tokens."""

    kind: ClassVar[str] = "convnet"
    maskable: ClassVar[bool] = False

    name: str = "convnext_tiny"
    """A model of timm: convnext_atto, resnet18, efficientnet_b0, …"""
    small_stem: bool = False
    """Halve the stride of the first layer and leave out a pooling behind it, for images of 32 pixels or so."""

    def fits(self, data: DataConfig) -> None:
        """Take images of any size."""


@dataclass(frozen=True)
class CropConfig:
    """What part of an image the objective sees."""

    kind: Literal["full", "centre", "random"] = "random"
    """The full image, its centre square, or a random-resized crop."""
    scale: tuple[float, float] = (0.3, 1.0)
    """Share of the image's area that a random crop takes."""
    aspect: tuple[float, float] = (0.75, 4 / 3)
    """Width over height of a random crop."""
    flip: bool = False
    """Mirror half of the images."""
    min_content: float = 0.0
    """Draw a random crop again, up to 8 times, until this share of it is not empty (flat, of whatever colour)."""

    def __post_init__(self) -> None:
        low, high = self.scale
        require(0 < low <= high <= 1, f"crop.scale is {self.scale}; it takes two shares, 0 < low <= high <= 1")
        require(0 < self.aspect[0] <= self.aspect[1], f"crop.aspect is {self.aspect}; it takes two ratios, low <= high")
        share = 0 <= self.min_content <= 1
        require(share, f"crop.min_content is {self.min_content}; it takes a share from 0 to 1")
        fits = self.min_content == 0 or self.kind == "random"
        require(fits, f"crop.min_content is {self.min_content}, which only crops of kind 'random' can look for")


@dataclass(frozen=True)
class MaskConfig:
    """Which tokens are context and which are targets."""

    strategy: Literal["multiblock", "block", "random", "rasterized"] = "multiblock"
    """Targets: several blocks (the paper), one block, random tokens, or the three quadrants that are not context."""
    targets: int = 4
    """Number of target blocks of an image (multiblock)."""
    target_scale: tuple[float, float] = (0.15, 0.2)
    """Share of the tokens that a target takes."""
    target_aspect: tuple[float, float] = (0.75, 1.5)
    """Height over width of a target block."""
    context_scale: tuple[float, float] = (0.85, 1.0)
    """Share of the tokens that the context block takes, before the targets are cut out (multiblock)."""
    context_limit: float = 1.0
    """Keep at most this share of all tokens as context, thinned at random; less is faster."""
    min_context: int = 4
    """Tokens that are left to the context whatever the targets are; a target that would take them is dropped."""
    shared: bool = False
    """One mask for the whole batch instead of one for every image."""

    def __post_init__(self) -> None:
        for name in ("target_scale", "context_scale"):
            low, high = getattr(self, name)
            require(0 < low <= high <= 1, f"masks.{name} is ({low}, {high}); it takes shares with 0 < low <= high <= 1")
        low, high = self.target_aspect
        require(0 < low <= high, f"masks.target_aspect is ({low}, {high}); it takes two ratios with 0 < low <= high")
        require(self.targets >= 1, f"masks.targets is {self.targets}; it takes a number from 1")
        require(self.min_context >= 1, f"masks.min_context is {self.min_context}; it takes a number from 1")
        require(0 < self.context_limit <= 1, f"masks.context_limit is {self.context_limit}; it takes a share above 0")


@dataclass(frozen=True)
class IJepaConfig:
    """I-JEPA (Assran et al. 2023): predict the representations of target blocks from one context block."""

    kind: ClassVar[str] = "ijepa"

    predictor: str = "384x6"
    """Width, depth and heads of the predictor: DIMxDEPTH[xHEADS]."""
    loss: Literal["smooth_l1", "l2"] = "l2"
    """Distance between predicted and target tokens: l2 (the paper) or smooth_l1 (its published code)."""
    variance: float = 0.0
    """Weight of the variance term on the averaged context tokens; keeps small runs from collapsing."""
    covariance: float = 0.0
    """Weight of the covariance term on the averaged context tokens."""
    ema_half_life: float = 173.0
    """Steps in which the target encoder moves half way to the context encoder, at first; 173 is a momentum of 0.996."""
    ema_half_life_end: float = 1e9
    """The same at the end of the run; 1e9 is a momentum of 1. The momentum goes from one to the other linearly."""
    crop: CropConfig = field(default_factory=CropConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)

    def __post_init__(self) -> None:
        parse_width(self.predictor, "objective.predictor")
        for name in ("variance", "covariance"):
            value = getattr(self, name)
            require(value >= 0, f"objective.{name} is {value}; a weight is 0 or more")
        for name in ("ema_half_life", "ema_half_life_end"):
            value = getattr(self, name)
            require(value > 0, f"objective.{name} is {value}; it takes a number of steps above 0")

    def fits(self, config: Config) -> None:
        """Refuse what does not go together with the rest of the experiment."""
        require(
            config.backbone.maskable,
            f"objective ijepa hides tokens from its encoder, which a {config.backbone.kind} cannot do; "
            "choose --backbone vit or energy, or a saccade recipe",
        )
        needs_two(config, self.variance + self.covariance)


@dataclass(frozen=True)
class FixationConfig:
    """Two fixations of one image, a small eye movement apart."""

    field: float = 0.64
    """Share of the image's side that a view covers (128 of 200 pixels)."""
    shift: float = 0.28
    """Largest shift from one fixation to the next, down and across each, in sides of a view."""
    rotation: float = 2.0
    """Largest rotation from one fixation to the next, in degrees."""
    zoom: float = 1.0
    """Each fixation is up to this many times nearer."""

    def __post_init__(self) -> None:
        require(0 < self.field <= 1, f"fixations.field is {self.field}; it takes a share of the image above 0, up to 1")
        require(0 <= self.shift < math.inf, f"fixations.shift is {self.shift}; it takes a number of sides from 0")
        require(0 <= self.rotation <= 90, f"fixations.rotation is {self.rotation}; it takes degrees from 0 to 90")
        require(1 <= self.zoom < math.inf, f"fixations.zoom is {self.zoom}; it takes a factor from 1")
        moves = self.shift > 0 or self.rotation > 0 or self.zoom > 1
        require(moves, "fixations.shift and .rotation are 0 and .zoom is 1: there is no movement to learn from")

    def side(self, canvas: tuple[int, int], size: tuple[int, int]) -> float:
        """Return how many pixels of the canvas the shorter side of a view of `size` takes."""
        return self.field * min(canvas[0] / size[0], canvas[1] / size[1]) * min(size)

    def fits(self, canvas: tuple[int, int], size: tuple[int, int]) -> None:
        """Refuse movements that would show what lies outside of the image, naming the largest that does not."""
        smaller = canvas[0] < size[0] or canvas[1] < size[1]
        require(
            not smaller,
            f"data.canvas is {canvas[0]}x{canvas[1]}, smaller than the view of {size[0]}x{size[1]}; give a larger "
            "--data.canvas or a smaller --data.image-size",
        )
        side, turn = self.side(canvas, size), math.radians(self.rotation)
        shorter, largest = min(size), math.inf
        for along, across, room in ((size[1], size[0], canvas[1]), (size[0], size[1], canvas[0])):
            worst = min(turn, math.atan2(across, along))  # the turn at which a view reaches farthest
            turned = (along * math.cos(worst) + across * math.sin(worst)) / shorter / 2
            margins = [room / side / 2 - along / shorter / 2, room / side / 2 - turned]
            require(
                margins[1] >= -1e-9,
                f"fixations.rotation is {self.rotation}, and a view over {self.field} of the image does not fit into "
                "it when turned so far; choose a smaller rotation, or a smaller field",
            )
            largest = min(largest, sum(margins))
        require(
            self.shift <= largest + 1e-9,
            f"fixations.shift is {self.shift}, but with field {self.field} and rotation {self.rotation} a view stays "
            f"within the image up to {math.floor(1000 * max(largest, 0)) / 1000:g}; choose that, or a smaller field",
        )


def needs_two(config: Config, statistics: float) -> None:
    """Refuse a batch of one where statistics over the batch are asked for."""
    require(
        config.batch_size // config.accumulate >= 2 or not statistics,
        f"batch_size is {config.batch_size} in {config.accumulate} parts; its variance needs 2 a part",
    )


def check_weights(config: object, names: tuple[str, ...]) -> None:
    """Refuse weights of losses below 0, or all 0."""
    weights = {name: getattr(config, name) for name in names}
    for name, value in weights.items():
        require(0 <= value < math.inf, f"objective.{name} is {value}; a weight is 0 or more")
    require(any(weights.values()), f"all of {', '.join(names)} of the objective are 0: there is nothing to learn from")


@dataclass(frozen=True)
class SaccadeConfig:
    """Saccade JEPA: foresee what the teacher sees after an eye movement, from what the student saw before it."""

    kind: ClassVar[str] = "saccade"

    predictor: str = "mlp"
    """mlp (three layers, on the averaged tokens), or DIMxDEPTH[xHEADS]: a transformer over the grid of tokens."""
    hidden: int = 1024
    """Width of the hidden layers of the MLPs."""
    prediction: float = 1.0
    """Weight of the Huber loss between the predicted and the teacher's embedding."""
    cycle: float = 0.25
    """Weight of the same loss between the student's embedding and the one predicted back from the prediction."""
    invariance: float = 0.0
    """Weight of the squared distance between the student's and the teacher's embedding, whatever the movement."""
    variance: float = 25.0
    """Weight of the variance term on the student's embeddings."""
    covariance: float = 1.0
    """Weight of the covariance term on the student's embeddings."""
    inverse: float = 0.0
    """Weight of the loss of a head that tells the movement from both embeddings."""
    hinge: float = 1.0
    """Standard deviation that the variance term asks of every dimension."""
    ema_half_life: float = 69.0
    """Steps in which the teacher moves half way to the student, at first."""
    ema_half_life_end: float = 693.0
    """The same at the end of the run. The momentum goes from one to the other linearly."""
    fixations: FixationConfig = field(default_factory=FixationConfig)

    def __post_init__(self) -> None:
        if self.predictor != "mlp":
            parse_width(self.predictor, "objective.predictor")
        require(self.hidden >= 1, f"objective.hidden is {self.hidden}; it takes a whole number from 1")
        check_weights(self, ("prediction", "cycle", "invariance", "variance", "covariance", "inverse"))
        require(self.hinge > 0, f"objective.hinge is {self.hinge}; it takes a standard deviation above 0")
        for name in ("ema_half_life", "ema_half_life_end"):
            require(getattr(self, name) > 0, f"objective.{name} is {getattr(self, name)}; it takes steps above 0")

    def fits(self, config: Config) -> None:
        """Refuse what does not go together with the rest of the experiment."""
        self.fixations.fits(config.data.canvas_size, config.data.size)
        needs_two(config, self.variance + self.covariance)


@dataclass(frozen=True)
class VICRegConfig:
    """VICReg (Bardes et al. 2022) on two fixations: no predictor, no teacher, no word about the movement."""

    kind: ClassVar[str] = "vicreg"

    expander: int = 1024
    """Width of the three layers of the expander, on whose output the losses are taken."""
    invariance: float = 25.0
    """Weight of the squared distance between the two."""
    variance: float = 25.0
    """Weight of the variance term of each."""
    covariance: float = 1.0
    """Weight of the covariance term of each."""
    fixations: FixationConfig = field(default_factory=FixationConfig)

    def __post_init__(self) -> None:
        require(self.expander >= 1, f"objective.expander is {self.expander}; it takes a whole number from 1")
        check_weights(self, ("invariance", "variance", "covariance"))

    def fits(self, config: Config) -> None:
        """Refuse what does not go together with the rest of the experiment."""
        self.fixations.fits(config.data.canvas_size, config.data.size)
        needs_two(config, 1.0)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, and its schedules in steps."""

    lr: float = 1e-3
    """Highest learning rate, reached at the end of the warm-up."""
    lr_start: float = 1e-4
    """Learning rate at the first step."""
    lr_end: float = 1e-6
    """Learning rate at the last step (cosine)."""
    warmup: int = 100
    """Steps of linear warm-up; at most a quarter of the run."""
    weight_decay: float = 0.04
    """Weight decay at the first step; biases, norms and the mask token have none."""
    weight_decay_end: float = 0.4
    """Weight decay at the last step (cosine)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    clip: float | None = None
    """Largest gradient norm; None does not clip."""

    def __post_init__(self) -> None:
        for name in ("lr", "lr_start", "lr_end", "warmup", "weight_decay", "weight_decay_end"):
            value = getattr(self, name)
            require(value >= 0 and math.isfinite(value), f"optim.{name} is {value}; it takes a number from 0")
        require(
            all(0 <= beta < 1 for beta in self.betas), f"optim.betas is {self.betas}; it takes rates from 0 to below 1"
        )
        require(self.clip is None or self.clip > 0, f"optim.clip is {self.clip}; it takes a norm above 0, or none")


BackboneConfig = ViTConfig | EnergyConfig | ConvNetConfig
ObjectiveConfig = IJepaConfig | SaccadeConfig | VICRegConfig
KINDS: dict[str, dict[str, type]] = {
    "backbone": {"vit": ViTConfig, "energy": EnergyConfig, "convnet": ConvNetConfig},
    "objective": {"ijepa": IJepaConfig, "saccade": SaccadeConfig, "vicreg": VICRegConfig},
}
"""What the `kind` of a part may be: add a backbone's or an objective's config here."""


@dataclass(frozen=True)
class Config:
    """One experiment."""

    name: str = "demo"
    """Name of the experiment; the run lies in runs/NAME unless --run says otherwise."""
    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 128
    """Images in a step, over all processes and accumulated parts."""
    accumulate: int = 1
    """Parts that a process cuts its share of the batch into, one after the other, to save memory."""
    seed: int = 0
    """Everything random follows from it."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto is fp32 on the CPU and bf16 on CUDA."""
    compile: bool = False
    """Compile the objective with torch.compile: slower to start, faster to run."""
    log_every: int = 20
    """Steps between two lines of metrics.jsonl."""
    eval_every: int = 500
    """Steps between two online evaluations; 0 makes none."""
    save_every: int = 500
    """Steps between two checkpoints; the last step is always saved."""
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=ViTConfig)
    objective: ObjectiveConfig = field(default_factory=IJepaConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "save_every"):
            value = getattr(self, name)
            require(value >= 1, f"{name} is {value}; it takes a whole number from 1")
        require(0 <= self.seed < 2**31, f"seed is {self.seed}; it takes a whole number from 0 to below {2**31}")
        require(self.eval_every >= 0, f"eval_every is {self.eval_every}; it takes a whole number from 0")
        divides = self.batch_size % self.accumulate == 0
        require(divides, f"accumulate is {self.accumulate}, which does not divide the batch_size {self.batch_size}")
        self.backbone.fits(self.data)
        self.objective.fits(self)


def with_backbone(config: Config, kind: str) -> Config:
    """Exchange the backbone for one of another kind, which keeps the settings that both have."""
    known = KINDS["backbone"]
    require(kind in known, f"--backbone is '{kind}'; it takes {', '.join(known)}{suggest(kind, known)}")
    names = {f.name for f in fields(known[kind])} & {f.name for f in fields(config.backbone)}
    return replace(config, backbone=known[kind](**{name: getattr(config.backbone, name) for name in names}))
