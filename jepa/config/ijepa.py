"""I-JEPA: crops, masks, losses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from jepa.config.backbones import parse_width
from jepa.config.errors import require

if TYPE_CHECKING:
    from jepa.config import Config

__all__ = ["CropConfig", "IJepaConfig", "MaskConfig", "needs_two"]


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


def needs_two(config: Config, statistics: float) -> None:
    """Refuse a batch of one where statistics over the batch are asked for."""
    require(
        config.batch_size // config.accumulate >= 2 or not statistics,
        f"batch_size is {config.batch_size} with accumulate {config.accumulate}, but a variance needs 2 images at a "
        f"time; give --batch-size {2 * config.accumulate} or more",
    )
