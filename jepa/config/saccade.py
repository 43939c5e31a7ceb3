"""Saccade JEPA, and VICReg on the same eye movements."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from jepa.config.backbones import parse_width
from jepa.config.errors import require
from jepa.config.ijepa import needs_two

if TYPE_CHECKING:
    from jepa.config import Config

__all__ = ["FixationConfig", "SaccadeConfig", "VICRegConfig"]


@dataclass(frozen=True)
class FixationConfig:
    """Two fixations of one image, a small eye movement apart."""

    field: float = 0.64
    """Share of the image's side that a view covers (128 of 200 pixels), if it is upright and not nearer."""
    shift: float = 0.28
    """Largest shift from one fixation to the next, down and across each, in sides of a view. Where the two are turned
    or far, less may be left within the image."""
    rotation: float = 2.0
    """Largest rotation from one fixation to the next, in degrees."""
    zoom: float = 1.0
    """Each fixation is up to this many times nearer; at least as near as it must be to fit into the image."""

    def __post_init__(self) -> None:
        require(
            0 < self.field <= 1,
            f"objective.fixations.field is {self.field}; it takes a share of the image above 0, up to 1",
        )
        require(
            0 <= self.shift < math.inf, f"objective.fixations.shift is {self.shift}; it takes a number of sides from 0"
        )
        require(
            0 <= self.rotation <= 90, f"objective.fixations.rotation is {self.rotation}; it takes degrees from 0 to 90"
        )
        require(1 <= self.zoom < math.inf, f"objective.fixations.zoom is {self.zoom}; it takes a factor from 1")
        moves = self.shift > 0 or self.rotation > 0 or self.zoom > 1
        require(
            moves, "objective.fixations.shift and .rotation are 0 and .zoom is 1: there is no movement to learn from"
        )

    def side(self, canvas: tuple[int, int], size: tuple[int, int]) -> float:
        """Return how many pixels of the canvas the shorter side of a view of `size` takes."""
        return self.field * min(canvas[0] / size[0], canvas[1] / size[1]) * min(size)

    def fits(self, canvas: tuple[int, int], size: tuple[int, int]) -> None:
        """Refuse movements that would show what lies outside of the image, naming the largest that does not.

        Images of another aspect than `canvas`, where none is set, have more room, not less.
        """
        smaller = canvas[0] < size[0] or canvas[1] < size[1]
        require(
            not smaller,
            f"data.canvas is {canvas[0]}x{canvas[1]}, smaller than the view of {size[0]}x{size[1]}; give a larger "
            "--data.canvas or a smaller --data.image-size",
        )
        side, turn, shorter = self.side(canvas, size), math.radians(self.rotation), min(size)
        require(
            side / self.zoom >= 1,
            f"objective.fixations.field is {self.field} and .zoom {self.zoom}, so that the nearest view of an image of "
            f"{canvas[0]}x{canvas[1]} is less than a pixel; choose a larger field or a smaller zoom",
        )
        margins = []
        for along, across, room in ((size[1], size[0], canvas[1]), (size[0], size[1], canvas[0])):
            worst = min(turn, math.atan2(across, along))  # the turn at which a view reaches farthest
            turned = (along * math.cos(worst) + across * math.sin(worst)) / shorter / self.zoom
            require(
                turned <= room / side + 1e-9,
                f"objective.fixations.rotation is {self.rotation}, and a view over {self.field} of the image does not "
                "fit into it when turned so far; choose a smaller rotation, a smaller field, or a larger zoom",
            )
            margins.append(room / side - along / shorter / self.zoom)
        largest = math.floor(1000 * min(margins)) / 1000
        require(
            self.shift <= min(margins) + 1e-9,
            f"objective.fixations.shift is {self.shift}, but with field {self.field} and zoom {self.zoom} a view stays "
            f"within the image up to {largest:g}; choose that, a smaller field or a larger zoom",
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
            parse_width(self.predictor, "objective.predictor", "mlp, ")
        require(self.hidden >= 1, f"objective.hidden is {self.hidden}; it takes a whole number from 1")
        check_weights(self, ("prediction", "cycle", "invariance", "variance", "covariance", "inverse"))
        finite = 0 < self.hinge < math.inf
        require(finite, f"objective.hinge is {self.hinge}; it takes a standard deviation above 0")
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
    """Weight of the variance term, the mean of both."""
    covariance: float = 1.0
    """Weight of the covariance term, the sum of both."""
    fixations: FixationConfig = field(default_factory=FixationConfig)

    def __post_init__(self) -> None:
        require(self.expander >= 1, f"objective.expander is {self.expander}; it takes a whole number from 1")
        check_weights(self, ("invariance", "variance", "covariance"))

    def fits(self, config: Config) -> None:
        """Refuse what does not go together with the rest of the experiment."""
        self.fixations.fits(config.data.canvas_size, config.data.size)
        needs_two(config, 1.0)
