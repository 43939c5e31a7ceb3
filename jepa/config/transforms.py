"""Configs of crops, masks, fixations and changes of color."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from jepa.config.errors import check_limits, require

__all__ = ["ColorConfig", "CropConfig", "FixationConfig", "MaskConfig"]

MAX_TARGETS = 1_000


@dataclass(frozen=True)
class CropConfig:
    """How a view is cropped from an image."""

    kind: Literal["full", "centre", "random"] = "random"
    """The full image, its central square, or a random resized crop."""
    scale: tuple[float, float] = (0.3, 1.0)
    """Smallest and largest fraction of the image area in a random crop."""
    aspect: tuple[float, float] = (0.75, 4 / 3)
    """Smallest and largest aspect ratio of a random crop, width over height."""
    flip: bool = False
    """Flip half of the images horizontally."""
    min_content: float = 0.0
    """Resample a random crop, up to 8 times, until at least this fraction of it has content (is not a flat color)."""

    def __post_init__(self) -> None:
        low, high = self.scale
        require(0 < low <= high <= 1, f"crop.scale must be two fractions with 0 < low <= high <= 1, got {self.scale}")
        require(
            0 < self.aspect[0] <= self.aspect[1] < math.inf,
            f"crop.aspect must be two positive ratios with low <= high, got {self.aspect}",
        )
        require(0 <= self.min_content <= 1, f"crop.min_content must be between 0 and 1, got {self.min_content}")
        require(
            self.min_content == 0 or self.kind == "random",
            f"crop.min_content is {self.min_content}, but crop.kind is '{self.kind}'; min_content requires "
            "crop.kind 'random'",
        )


@dataclass(frozen=True)
class MaskConfig:
    """How tokens are divided into context and targets."""

    strategy: Literal["multiblock", "block", "random", "rasterized"] = "multiblock"
    """Targets: several blocks (the paper), one block, random tokens, or the three quadrants that are not context."""
    targets: int = 4
    """Number of target blocks of each image (multiblock)."""
    target_scale: tuple[float, float] = (0.15, 0.2)
    """Smallest and largest fraction of the tokens in one target."""
    target_aspect: tuple[float, float] = (0.75, 1.5)
    """Smallest and largest aspect ratio of a target block, height over width."""
    context_scale: tuple[float, float] = (0.85, 1.0)
    """Smallest and largest fraction of the tokens in the context block, before the targets are removed (multiblock)."""
    context_limit: float = 1.0
    """Keep at most this fraction of all tokens as context, chosen at random; smaller values are faster."""
    min_context: int = 4
    """Minimum number of context tokens; targets that would leave fewer are dropped."""
    shared: bool = False
    """Use one mask for the whole batch instead of one for each image."""

    def __post_init__(self) -> None:
        for name in ("target_scale", "context_scale"):
            low, high = getattr(self, name)
            require(
                0 < low <= high <= 1,
                f"masks.{name} must be two fractions with 0 < low <= high <= 1, got ({low}, {high})",
            )
        low, high = self.target_aspect
        require(
            0 < low <= high < math.inf,
            f"masks.target_aspect must be two ratios with 0 < low <= high, got ({low}, {high})",
        )
        require(self.targets >= 1, f"masks.targets must be an integer of at least 1, got {self.targets}")
        check_limits(self, "masks.", targets=MAX_TARGETS)
        require(self.min_context >= 1, f"masks.min_context must be an integer of at least 1, got {self.min_context}")
        require(
            0 < self.context_limit <= 1,
            f"masks.context_limit must be above 0 and at most 1, got {self.context_limit}",
        )


@dataclass(frozen=True)
class FixationConfig:
    """Two fixations of one image, a small eye movement (saccade) apart."""

    view_fraction: float = 0.64
    """Fraction of the image side that a view covers (128 of 200 pixels) when it is upright and not zoomed in."""
    shift: float = 0.28
    """Largest shift between the two fixations in each direction, in units of the view side. It is smaller if the image
    leaves no room for it, for example when the views are rotated."""
    rotation: float = 2.0
    """Largest rotation between the two fixations, in degrees."""
    zoom: float = 1.0
    """Largest zoom-in factor of a fixation. Rotated views are zoomed in at least until they fit."""

    def __post_init__(self) -> None:
        name = "objective.fixations"
        require(
            0 < self.view_fraction <= 1,
            f"{name}.view_fraction must be above 0 and at most 1, got {self.view_fraction}",
        )
        require(0 <= self.shift < math.inf, f"{name}.shift must be at least 0, got {self.shift}")
        require(0 <= self.rotation <= 90, f"{name}.rotation must be between 0 and 90 degrees, got {self.rotation}")
        require(1 <= self.zoom < math.inf, f"{name}.zoom must be at least 1, got {self.zoom}")
        require(
            self.shift > 0 or self.rotation > 0 or self.zoom > 1,
            f"{name}.shift and .rotation are 0 and .zoom is 1; set at least one of them to allow a movement",
        )

    def view_side(self, canvas: tuple[int, int], size: tuple[int, int]) -> float:
        """Return the number of canvas pixels that the shorter side of a view of `size` covers."""
        return self.view_fraction * min(canvas[0] / size[0], canvas[1] / size[1]) * min(size)

    def check_canvas(self, canvas: tuple[int, int], size: tuple[int, int]) -> None:
        """Raise `InputError` if views of `size` could reach beyond an image of `canvas` pixels, (height, width) each.

        Images whose aspect ratio differs from that of `canvas` leave at least as much room.
        """
        require(
            canvas[0] >= size[0] and canvas[1] >= size[1],
            f"data.canvas is {canvas[0]}x{canvas[1]}, smaller than the view of {size[0]}x{size[1]}; choose a larger "
            "--data.canvas or a smaller --data.image-size",
        )
        side, angle, shorter = self.view_side(canvas, size), math.radians(self.rotation), min(size)
        require(
            side / self.zoom >= 1,
            f"objective.fixations.view_fraction is {self.view_fraction} and .zoom is {self.zoom}, so a view covers "
            f"less than a pixel of the image of {canvas[0]}x{canvas[1]}; choose a larger view_fraction or less zoom",
        )
        margins = []
        for along, across, room in ((size[1], size[0], canvas[1]), (size[0], size[1], canvas[0])):
            worst = min(angle, math.atan2(across, along))  # the rotation at which a view extends farthest
            rotated = (along * math.cos(worst) + across * math.sin(worst)) / shorter / self.zoom
            require(
                rotated <= room / side + 1e-9,
                f"objective.fixations.rotation is {self.rotation}, but a rotated view with view_fraction "
                f"{self.view_fraction} does not fit into the image; choose a smaller rotation, a smaller "
                "view_fraction, or a larger zoom",
            )
            margins.append(room / side - along / shorter / self.zoom)
        largest = math.floor(1000 * min(margins)) / 1000
        require(
            self.shift <= min(margins) + 1e-9,
            f"objective.fixations.shift is {self.shift}, but with view_fraction {self.view_fraction} and zoom "
            f"{self.zoom} the largest shift that fits into the image is {largest:g}; choose that, a smaller "
            "view_fraction, or a larger zoom",
        )


@dataclass(frozen=True)
class ColorConfig:
    """How the colors of a view are changed at random. By default they are not."""

    strength: float = 0.0
    """Largest relative change of brightness, contrast and saturation; that of single channels is half of it."""
    gray: float = 0.0
    """Fraction of the views that lose their colors."""

    def __post_init__(self) -> None:
        require(0 <= self.strength <= 1, f"objective.color.strength must be between 0 and 1, got {self.strength}")
        require(0 <= self.gray <= 1, f"objective.color.gray must be between 0 and 1, got {self.gray}")
