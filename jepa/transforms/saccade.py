"""Eye movements: two fixations per image, and the saccade from one to the other.

A fixation is a `Pose`: the position, rotation and zoom of a view in the image. Coordinates are relative to the center,
with x to the right and y down, in units of *view sides* (the shorter side of a view at zoom 1). The saccade between two
fixations is the pose of the second relative to the first, pose1⁻¹ ∘ pose2. Its inverse leads back.

Shapes: B images, C channels, H, W height and width of an image, h, w height and width of a view, in pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.config import FixationConfig
from jepa.rng import Rng
from jepa.transforms.crop import as_float

__all__ = ["Geometry", "Pose", "rotate"]

ROTATION_OCTAVES = 10  # number of sin-cos frequencies for the rotation; more than below, because rotations are small
OTHER_OCTAVES = 4  # number of sin-cos frequencies for each of the other components


class Pose(NamedTuple):
    """A map of points for each image, u -> shift + zoom · R(angle) u."""

    shift: Tensor  # (B, 2): x, y
    angle: Tensor  # (B,): radians, clockwise on the screen, since y points down
    zoom: Tensor  # (B,): relative size of the view; smaller values cover less of the image

    def __call__(self, points: Tensor) -> Tensor:
        """Map points (B, 2)."""
        return self.shift + self.zoom[:, None] * rotate(points, self.angle)

    def of(self, other: Pose) -> Pose:
        """Return the composition self ∘ other, which applies `other` first."""
        return Pose(self(other.shift), self.angle + other.angle, self.zoom * other.zoom)

    def inverse(self) -> Pose:
        """Return the inverse map, (-R(-θ) t / z, -θ, 1 / z). Note that its shift is not the negated shift."""
        return Pose(-rotate(self.shift, -self.angle) / self.zoom[:, None], -self.angle, 1 / self.zoom)

    def where(self, condition: Tensor, other: Pose) -> Pose:
        """Return this pose where `condition` (B,) is True, and `other` elsewhere."""
        shift = torch.where(condition[:, None], self.shift, other.shift)
        angle, zoom = torch.where(condition, self.angle, other.angle), torch.where(condition, self.zoom, other.zoom)
        return Pose(shift, angle, zoom)

    def repeat(self, count: int) -> Pose:
        """Repeat each pose `count` times in a row, (B · count,)."""
        return Pose(*(field.repeat_interleave(count, 0) for field in self))


def rotate(points: Tensor, angle: Tensor) -> Tensor:
    """Rotate points (B, 2) by angles (B,)."""
    cos, sin = angle.cos(), angle.sin()
    x, y = points.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], -1)


class Geometry:
    """Samples fixations in images of size `canvas` and renders their views at size `size`.

    Views never extend beyond the image.
    """

    def __init__(self, config: FixationConfig, canvas: tuple[int, int], size: tuple[int, int]) -> None:
        self.config, self.size, shorter = config, size, min(size)
        side = config.view_side(canvas, size)
        # half of the width and height, in view sides
        self.half_view = (size[1] / shorter / 2, size[0] / shorter / 2)
        self.half_image = (canvas[1] / side / 2, canvas[0] / side / 2)
        self.max_angle = math.radians(config.rotation)
        # maximum component of the shift of a saccade or its inverse, in view sides at the smallest zoom
        worst_angle = min(self.max_angle, math.pi / 4)  # angle at which a component of a rotated shift is largest
        self.max_shift = config.shift * config.zoom * (math.cos(worst_angle) + math.sin(worst_angle))

    def for_images(self, images: Tensor) -> Geometry:
        """Return the same geometry for images (B, C, H, W) of a different size or aspect ratio."""
        return Geometry(self.config, (images.shape[-2], images.shape[-1]), self.size)

    def sample(self, rng: Rng) -> tuple[Pose, Pose]:
        """Sample two fixations per image in random order, one of them upright.

        Rotation, log-zoom and shift are uniform within their limits (shift: what the image allows), and the position is
        uniform over all that keep both views inside.
        """
        u = rng.uniform("fixations", 8)
        angle = (2 * u[:, 0] - 1) * self.max_angle
        upright = torch.zeros_like(angle)
        zooms = self.zoom(upright, u[:, 1]), self.zoom(angle, u[:, 2])
        first, second = self.max_offset(upright, zooms[0]), self.max_offset(angle, zooms[1])
        shift = (2 * u[:, 3:5] - 1) * (first + second).clamp(max=self.config.shift)
        low, high = torch.maximum(-first, -second - shift), torch.minimum(first, second - shift)
        position = low + u[:, 5:7] * (high - low)
        before, after = Pose(position, upright, zooms[0]), Pose(position + shift, angle, zooms[1])
        swapped = u[:, 7] < 0.5
        return after.where(swapped, before), before.where(swapped, after)

    def sample_many(self, rng: Rng, count: int) -> tuple[Pose, Pose]:
        """Sample one upright fixation per image (B,) and `count` possible next fixations (B · count,)."""
        u = rng.uniform("first fixation", 3)
        upright = torch.zeros(len(u), device=u.device)
        zoom = self.zoom(upright, u[:, 2])
        limit = torch.minimum(self.max_offset(upright, zoom), self.max_offset_of_any(u.device) + self.config.shift)
        first = Pose((2 * u[:, :2] - 1) * limit, upright, zoom)
        v = rng.uniform("next fixations", count, 4).flatten(0, 1)
        angle = (2 * v[:, 0] - 1) * self.max_angle
        zoom = self.zoom(angle, v[:, 1])
        start, limit = first.shift.repeat_interleave(count, 0), self.max_offset(angle, zoom)
        low, high = (-limit - start).clamp(min=-self.config.shift), (limit - start).clamp(max=self.config.shift)
        shift = low + v[:, 2:] * (high - low)
        return first, Pose(start + shift, angle, zoom)

    def zoom(self, angle: Tensor, u: Tensor) -> Tensor:
        """Map `u` (B,) in [0, 1) to zooms (B,), from the largest for which the rotated view fits to the smallest."""
        largest = (torch.tensor(self.half_image, device=angle.device) / self.half_extent(angle)).amin(-1).clamp(max=1)
        return largest ** (1 - u) * self.config.zoom**-u

    def max_offset(self, angle: Tensor, zoom: Tensor) -> Tensor:
        """Return the maximum offset (B, 2) from the image center in x and y for which a view fits."""
        return torch.tensor(self.half_image, device=angle.device) - zoom[:, None] * self.half_extent(angle)

    def max_offset_of_any(self, device: torch.device) -> Tensor:
        """Return the maximum offset (2,) for which a view fits at any rotation and zoom."""
        x, y = self.half_view
        worst = [min(self.max_angle, math.atan2(y, x)), min(self.max_angle, math.atan2(x, y))]
        extent = self.half_extent(torch.tensor(worst, device=device)).diagonal()
        return (torch.tensor(self.half_image, device=device) - extent).clamp(min=0)

    def half_extent(self, angle: Tensor) -> Tensor:
        """Return half of the width and height (B, 2) of the bounding box of a rotated view at zoom 1."""
        cos, sin = angle.cos().abs(), angle.sin().abs()
        x, y = self.half_view
        return torch.stack([cos * x + sin * y, cos * y + sin * x], -1)

    def normalized(self, saccade: Pose) -> Tensor:
        """Return the rotation, x, y and zoom of a saccade, each scaled to [-1, 1], as a tensor (B, 1 to 4).

        Components that are constant in the config are omitted.
        """
        components = []
        if self.max_angle:
            components += [saccade.angle[:, None] / self.max_angle]
        if self.config.shift:
            components += [saccade.shift / self.max_shift]
        if self.config.zoom > 1:
            components += [saccade.zoom.log()[:, None] / math.log(self.config.zoom)]
        return torch.cat(components, 1)

    def component_names(self) -> list[str]:
        """Return the names of the components of `normalized`."""
        names = ["rotation"] * bool(self.max_angle) + ["shift x", "shift y"] * bool(self.config.shift)
        return names + ["zoom"] * (self.config.zoom > 1)

    def num_octaves(self) -> list[int]:
        """Return the number of frequencies with which to encode each component of `normalized`."""
        shift, zoom = bool(self.config.shift), self.config.zoom > 1
        return [ROTATION_OCTAVES] * bool(self.max_angle) + [OTHER_OCTAVES] * (2 * shift + zoom)

    def render(self, images: Tensor, *poses: Pose) -> list[Tensor]:
        """Return the views of images (B, C, H, W) at each pose, as floats (B, C, h, w) in [0, 1].

        All views are sampled bilinearly in one call. Higher-resolution images are first downsampled with antialiasing
        to suit a view of medium zoom.
        """
        images = as_float(images)
        height, width = images.shape[-2:]
        factor = min(self.size) / self.config.view_side((height, width), self.size) * self.config.zoom**0.5
        if factor < 1:
            smaller = [round(height * factor), round(width * factor)]
            images = F.interpolate(images, smaller, mode="bilinear", antialias=True, align_corners=False)
        grids = torch.cat([self.sampling_grid(pose) for pose in poses], 1)
        views = F.grid_sample(images, grids, mode="bilinear", padding_mode="border", align_corners=False)
        return list(views.split(self.size[0], 2))

    def sampling_grid(self, pose: Pose) -> Tensor:
        """Return the image position in [-1, 1] of each pixel of a view, (B, h, w, 2), for `grid_sample`."""
        cos, sin = pose.zoom * pose.angle.cos(), pose.zoom * pose.angle.sin()
        (x, y), (half_width, half_height) = self.half_view, self.half_image
        rows = [
            torch.stack([cos * x / half_width, -sin * y / half_width, pose.shift[:, 0] / half_width], -1),
            torch.stack([sin * x / half_height, cos * y / half_height, pose.shift[:, 1] / half_height], -1),
        ]
        return F.affine_grid(torch.stack(rows, 1), [len(cos), 1, *self.size], align_corners=False)

    def describe(self) -> str:
        """Describe the views and saccades in one line."""
        config, (height, width) = self.config, self.size
        zoom = f", zoomed in up to {config.zoom:g} times" if config.zoom > 1 else ""
        return (
            f"{height}x{width}-pixel fixations covering {100 * config.view_fraction:.0f}% of the image side; "
            f"saccades of up to {config.shift:g} view sides and {config.rotation:g}°{zoom}"
        )
