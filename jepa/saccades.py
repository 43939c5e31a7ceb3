"""Eye movements: two fixations of every image, and the saccade that leads from one to the other.

A fixation is a `Pose`: where in the image the eye looks, how it is turned, and how near it is. Points are in *sides* of
a view (its shorter one, in the image and before any zoom), from the middle, x to the right and y down. The saccade from
one fixation to another is a pose too, as seen from the first: pose1⁻¹ ∘ pose2. Its inverse leads back.

Shapes: B images, C channels, H, W pixels of the image that is looked at, h, w pixels of a view.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.config import FixationConfig
from jepa.rng import Rng
from jepa.views import as_float

__all__ = ["Geometry", "Pose", "rotate"]

TURN_OCTAVES, OTHER_OCTAVES = 10, 4


class Pose(NamedTuple):
    """The map u -> shift + zoom · R(angle) u of points, one for every image."""

    shift: Tensor  # (B, 2): x, y
    angle: Tensor  # (B,): radians, clockwise on the screen, since y points down
    zoom: Tensor  # (B,): below 1 is nearer

    def __call__(self, points: Tensor) -> Tensor:
        """Map points (B, 2)."""
        return self.shift + self.zoom[:, None] * rotate(points, self.angle)

    def of(self, other: Pose) -> Pose:
        """Return self ∘ other: first `other`, then this."""
        return Pose(self(other.shift), self.angle + other.angle, self.zoom * other.zoom)

    def inverse(self) -> Pose:
        """Return the map back: (-θ, -R(-θ) t / z, 1 / z), which is not the negated movement."""
        return Pose(-rotate(self.shift, -self.angle) / self.zoom[:, None], -self.angle, 1 / self.zoom)

    def where(self, chosen: Tensor, other: Pose) -> Pose:
        """Take this pose for the `chosen` (B,) images, and the other for the rest."""
        shift = torch.where(chosen[:, None], self.shift, other.shift)
        return Pose(shift, torch.where(chosen, self.angle, other.angle), torch.where(chosen, self.zoom, other.zoom))

    def repeat(self, count: int) -> Pose:
        """Return every pose `count` times in a row."""
        return Pose(*(part.repeat_interleave(count, 0) for part in self))


def rotate(points: Tensor, angle: Tensor) -> Tensor:
    """Turn points (B, 2) by angles (B,)."""
    cos, sin = angle.cos(), angle.sin()
    x, y = points.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], -1)


class Geometry:
    """How far fixations of `size` can move in an image of `canvas` pixels with nothing outside of it in sight."""

    def __init__(self, config: FixationConfig, canvas: tuple[int, int], size: tuple[int, int]) -> None:
        self.config, self.size, shorter = config, size, min(size)
        self.half = (size[1] / shorter / 2, size[0] / shorter / 2)  # of a view: x, y
        side = config.side(canvas, size)
        self.bounds = (canvas[1] / side / 2, canvas[0] / side / 2)  # of the image: x, y
        self.turn = math.radians(config.rotation)
        # what a saccade can be, its inverse included: components of a shift that is turned, in sides of a near view
        most = min(self.turn, math.pi / 4)  # the turn at which they are largest
        self.reach = config.shift * config.zoom * (math.cos(most) + math.sin(most))

    def on(self, images: Tensor) -> Geometry:
        """Return the same for images (B, C, H, W) of any other size and aspect."""
        return Geometry(self.config, (images.shape[-2], images.shape[-1]), self.size)

    def sample(self, rng: Rng) -> tuple[Pose, Pose]:
        """Draw two fixations of every image: the first upright, the second after a saccade; in random order.

        The rotation is uniform within ±`rotation`, zooms are uniform on a log scale, the shift within ±`shift` or what
        the image has room for, and the place over all where both views lie within the image.
        """
        u = rng.uniform("fixations", 8)
        angle = (2 * u[:, 0] - 1) * self.turn
        upright = torch.zeros_like(angle)
        zooms = self.zooms(upright, u[:, 1]), self.zooms(angle, u[:, 2])
        first, second = self.margins(upright, zooms[0]), self.margins(angle, zooms[1])
        shift = (2 * u[:, 3:5] - 1) * (first + second).clamp(max=self.config.shift)
        low, high = torch.maximum(-first, -second - shift), torch.minimum(first, second - shift)
        place = low + u[:, 5:7] * (high - low)
        before, after = Pose(place, upright, zooms[0]), Pose(place + shift, angle, zooms[1])
        swapped = u[:, 7] < 0.5
        return after.where(swapped, before), before.where(swapped, after)

    def sample_many(self, rng: Rng, count: int) -> tuple[Pose, Pose]:
        """Draw a first, upright fixation of every image (B,) and `count` next ones, (B · count,) image by image."""
        u = rng.uniform("first fixation", 3)
        upright = torch.zeros(len(u), device=u.device)
        zoom = self.zooms(upright, u[:, 2])
        room = torch.minimum(self.margins(upright, zoom), self.always(u.device) + self.config.shift)
        first = Pose((2 * u[:, :2] - 1) * room, upright, zoom)
        v = rng.uniform("next fixations", count, 4).flatten(0, 1)
        angle = (2 * v[:, 0] - 1) * self.turn
        zoom = self.zooms(angle, v[:, 1])
        here, room = first.shift.repeat_interleave(count, 0), self.margins(angle, zoom)
        low, high = (-room - here).clamp(min=-self.config.shift), (room - here).clamp(max=self.config.shift)
        shift = low + v[:, 2:] * (high - low)
        return first, Pose(here + shift, angle, zoom)

    def zooms(self, angle: Tensor, u: Tensor) -> Tensor:
        """Turn numbers in [0, 1) into zooms: from the farthest at which a view fits when turned (B,) to the nearest."""
        farthest = (torch.tensor(self.bounds, device=angle.device) / self.extent(angle)).amin(-1).clamp(max=1)
        return farthest ** (1 - u) * self.config.zoom**-u

    def margins(self, angle: Tensor, zoom: Tensor) -> Tensor:
        """Return how far (B, 2) from the middle of the image a view may be, so that all of it lies within."""
        return torch.tensor(self.bounds, device=angle.device) - zoom[:, None] * self.extent(angle)

    def always(self, device: torch.device) -> Tensor:
        """Return how far (2,) from the middle of the image a view may be whatever its turn and zoom."""
        x, y = self.half
        worst = torch.tensor([min(self.turn, math.atan2(y, x)), min(self.turn, math.atan2(x, y))], device=device)
        return (torch.tensor(self.bounds, device=device) - self.extent(worst).diagonal()).clamp(min=0)

    def extent(self, angle: Tensor) -> Tensor:
        """Return how far (B, 2) a turned view reaches from its middle."""
        cos, sin = angle.cos().abs(), angle.sin().abs()
        x, y = self.half
        return torch.stack([cos * x + sin * y, cos * y + sin * x], -1)

    def scaled(self, saccade: Pose) -> Tensor:
        """Scale a saccade to [-1, 1]: rotation, x, y and zoom, those that there are (B, 1 to 4)."""
        parts = []
        if self.turn:
            parts += [saccade.angle[:, None] / self.turn]
        if self.config.shift:
            parts += [saccade.shift / self.reach]
        if self.config.zoom > 1:
            parts += [saccade.zoom.log()[:, None] / math.log(self.config.zoom)]
        return torch.cat(parts, 1)

    def octaves(self) -> list[int]:
        """Say how many octaves each column of `scaled` is given."""
        shift, zoom = bool(self.config.shift), self.config.zoom > 1
        return [TURN_OCTAVES] * bool(self.turn) + [OTHER_OCTAVES] * (2 * shift + zoom)

    def features(self, saccade: Pose) -> Tensor:
        """Return sin and cos of 2^k π times each part of a saccade (B, 2 · octaves), in fp32 (NeRF, equation 4)."""
        parts = self.scaled(saccade)
        angles = [
            parts[:, column, None] * (math.pi * 2.0 ** torch.arange(count, device=parts.device))
            for column, count in enumerate(self.octaves())
        ]
        angle = torch.cat(angles, 1)
        return torch.cat([angle.sin(), angle.cos()], 1)

    def look(self, images: Tensor, *poses: Pose) -> list[Tensor]:
        """Return what is seen from each pose of images (B, C, H, W), as floats (B, C, h, w) in [0, 1].

        One bilinear resampling for all poses. Images with more pixels than the views can show are shrunk before,
        antialiased, to what suits a view in the middle of the zooms.
        """
        images = as_float(images)
        height, width = images.shape[-2:]
        factor = min(self.size) / self.config.side((height, width), self.size) * self.config.zoom**0.5
        if factor < 1:
            smaller = [round(height * factor), round(width * factor)]
            images = F.interpolate(images, smaller, mode="bilinear", antialias=True, align_corners=False)
        grids = torch.cat([self.grid(pose) for pose in poses], 1)
        seen = F.grid_sample(images, grids, mode="bilinear", padding_mode="border", align_corners=False)
        return list(seen.split(self.size[0], 2))

    def grid(self, pose: Pose) -> Tensor:
        """Return where in the image, from -1 to 1, each pixel of a view looks (B, h, w, 2)."""
        cos, sin = pose.zoom * pose.angle.cos(), pose.zoom * pose.angle.sin()
        (x, y), (right, down) = self.half, self.bounds
        rows = [
            torch.stack([cos * x / right, -sin * y / right, pose.shift[:, 0] / right], -1),
            torch.stack([sin * x / down, cos * y / down, pose.shift[:, 1] / down], -1),
        ]
        return F.affine_grid(torch.stack(rows, 1), [len(cos), 1, *self.size], align_corners=False)

    def describe(self) -> str:
        """Say in a few words how the eye moves."""
        config, (height, width) = self.config, self.size
        zoom = f", up to {config.zoom:g} times nearer" if config.zoom > 1 else ""
        return (
            f"fixations of {height}x{width} pixels over {100 * config.field:.0f} % of the image's side; saccades of up "
            f"to {config.shift:g} sides and {config.rotation:g}°{zoom}"
        )
