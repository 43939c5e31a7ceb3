"""Crops, flips and resizing: geometry, agreement with Pillow, empty borders, and independence of the batch."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image

from jepa.config import CropConfig, InputError
from jepa.rng import Rng
from jepa.transforms.crop import _crop_batch, _crop_one_by_one, _draw_boxes, content_fraction, crop, resize


def rng(count: int) -> Rng:
    return Rng(0, 0, torch.arange(count))


def ramp(height: int, width: int) -> torch.Tensor:
    """Return an image with two channels, the row and column of each pixel, scaled to [0, 1]."""
    y = (torch.arange(height) + 0.5) / height
    x = (torch.arange(width) + 0.5) / width
    return torch.stack([y[:, None].expand(-1, width), x.expand(height, -1)])


def test_random_crops_have_the_given_areas_and_aspect_ratios():
    images = ramp(64, 48).expand(2000, -1, -1, -1)
    views = crop(images, CropConfig(scale=(0.3, 1.0)), (32, 32), rng(2000))
    height = (views[:, 0, -1, 0] - views[:, 0, 0, 0]) * 32 / 31
    width = (views[:, 1, 0, -1] - views[:, 1, 0, 0]) * 32 / 31
    area = height * width
    assert area.min() > 0.28
    assert area.max() <= 1.01
    assert abs(float(area.mean()) - 0.65) < 0.02
    fits = (height < 0.98) & (width < 0.98)  # crops as wide or high as the image have a different aspect ratio
    aspect = (width * 48 / (height * 64))[fits]
    assert aspect.min() > 0.72
    assert aspect.max() < 1.38
    center = views.mean((2, 3))
    assert (center.mean(0) - 0.5).abs().max() < 0.01  # positions are unbiased


def test_half_of_the_images_are_flipped_horizontally():
    images = ramp(8, 8).expand(1000, -1, -1, -1)
    for kind in ("full", "random"):
        views = crop(images, CropConfig(kind=kind, flip=True), (8, 8), rng(1000))
        flipped = views[:, 1, 0, 0] > views[:, 1, 0, -1]
        assert 0.45 < flipped.float().mean() < 0.55
        assert (views[:, 0, 0] < views[:, 0, -1]).all()  # never flipped vertically


def test_full_and_centre_do_not_resample_images_of_the_output_size():
    images = torch.randint(0, 256, (4, 3, 20, 16), dtype=torch.uint8)
    assert torch.equal(crop(images, CropConfig(kind="full"), (20, 16), rng(4)), images / 255)
    center = crop(images, CropConfig(kind="centre"), (16, 16), rng(4))
    assert torch.equal(center, images[:, :, 2:18] / 255)


def test_resize_center_crops_to_the_aspect_ratio():
    view = resize(ramp(60, 90)[None], (30, 30))[0]
    assert torch.allclose(view[0, :, 3], (torch.arange(30) + 0.5) / 30, atol=0.02)
    assert torch.allclose(view[1, 3], 1 / 6 + (torch.arange(30) + 0.5) / 30 * 2 / 3, atol=0.02)
    tall = resize(ramp(60, 90)[None], (60, 30))
    assert tall.shape == (1, 2, 60, 30)
    assert tall[0, 1].min() > 0.3  # the left and right are cropped


@pytest.mark.parametrize("kind", ["full", "centre", "random"])
def test_views_depend_only_on_the_position_in_the_batch(kind):
    images = torch.rand(10, 3, 12, 12)
    config = CropConfig(kind=kind, flip=True)
    whole = crop(images, config, (8, 8), rng(10))
    part = crop(images[4:], config, (8, 8), Rng(0, 0, torch.arange(4, 10)))
    assert torch.equal(whole[4:], part)


# Resampling


@pytest.mark.parametrize("size", [(7, 9), (20, 20), (64, 50)])
def test_crops_match_pillow(size):
    images = noise(8, (60, 80))
    boxes = torch.tensor([[5 * k, 3 * k, 60 - 6 * k, 80 - 9 * k] for k in range(8)])
    boxes[:, 2:] = torch.minimum(boxes[:, 2:], torch.tensor([60, 80]) - boxes[:, :2])
    views = _crop_batch(images, boxes, size)
    assert torch.allclose(views, _crop_one_by_one(images, boxes, size), atol=1e-5)
    for image, (top, left, height, width), view in zip(images, boxes.tolist(), views, strict=True):
        cropped = Image.fromarray(image[:, top : top + height, left : left + width].permute(1, 2, 0).numpy())
        expected = np.asarray(cropped.resize(size[::-1], Image.Resampling.BILINEAR)).transpose(2, 0, 1) / 255
        assert np.abs(view.numpy() - expected).max() < 1.6 / 255  # Pillow rounds after each of its two passes


def test_large_and_small_images_are_cropped_at_the_same_boxes():
    config = CropConfig(flip=True)
    small = torch.rand(6, 1, 40, 40)
    large = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    difference = crop(small, config, (8, 8), rng(6)) - crop(large, config, (8, 8), rng(6))
    assert difference.abs().mean() < 0.05  # boxes are rounded to multiples of 1/40 and 1/160


def with_border(border: float, inside: torch.Tensor, pad: int = 40) -> torch.Tensor:
    return torch.nn.functional.pad(inside, (pad, pad, pad, pad), value=border)


@pytest.mark.parametrize("border", [0.0, 1.0, 0.4])
def test_crops_of_an_empty_border_are_redrawn(border):
    images = with_border(border, torch.rand(200, 1, 40, 40))
    config = CropConfig(scale=(0.05, 0.1), min_content=0.5)
    first_draws = crop(images, CropConfig(scale=(0.05, 0.1)), (16, 16), rng(200))
    views = crop(images, config, (16, 16), rng(200))

    def filled(views: torch.Tensor) -> torch.Tensor:
        return (views - border).abs().flatten(1).gt(0.05).float().mean(1)

    assert (filled(first_draws) > 0.4).float().mean() < 0.25
    assert (filled(views) > 0.4).float().mean() > 0.5
    accepted = filled(first_draws) > 0.7
    assert torch.equal(views[accepted], first_draws[accepted])


def test_min_content_changes_neither_filled_nor_flat_images():
    filled, flat = torch.rand(20, 3, 32, 32), torch.full((20, 3, 32, 32), 0.5)
    config = CropConfig(min_content=0.5)
    assert torch.equal(crop(filled, config, (16, 16), rng(20)), crop(filled, CropConfig(), (16, 16), rng(20)))
    assert torch.allclose(crop(flat, config, (16, 16), rng(20)), torch.tensor(0.5))


def test_content_fraction_of_boxes_by_hand():
    image = with_border(0.0, torch.rand(1, 1, 40, 40))
    boxes = torch.tensor([[[0, 0, 30, 30], [45, 45, 30, 30], [30, 45, 20, 30]]])
    assert content_fraction(image, boxes)[0] == pytest.approx([0.0, 1.0, 0.6], abs=0.11)
    wide = torch.nn.functional.pad(torch.rand(1, 1, 256, 256), (0, 256))
    halves = torch.tensor([[[0, 0, 256, 512], [0, 0, 256, 256], [0, 256, 256, 256]]])
    assert content_fraction(wide, halves)[0] == pytest.approx([0.5, 1.0, 0.0], abs=0.02)


def test_crops_with_min_content_depend_only_on_the_position_in_the_batch():
    images = with_border(0.0, torch.rand(10, 1, 30, 30))
    config = CropConfig(scale=(0.1, 0.3), min_content=0.5, flip=True)
    whole = crop(images, config, (16, 16), rng(10))
    assert torch.equal(whole[4:], crop(images[4:], config, (16, 16), Rng(0, 0, torch.arange(4, 10))))


SMALL, LARGE = (50, 40), (300, 200)  # cropped as a batch and one at a time on the CPU
SHAPES = pytest.mark.parametrize(
    ("size", "view"),
    [(SMALL, (32, 32)), (SMALL, (5, 4)), (SMALL, (70, 90)), (LARGE, (64, 48)), (LARGE, (9, 12)), (LARGE, (400, 224))],
)


def noise(count: int, size: tuple[int, int], low: int = 0, high: int = 256, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (count, 3, *size), dtype=torch.uint8, generator=generator)


def levels(images: torch.Tensor) -> np.ndarray:
    """Convert floats (…, C, H, W) in [0, 1] to uint8 (…, H, W, C)."""
    return (images * 255).round().to(torch.uint8).movedim(-3, -1).numpy()


def first_boxes(config: CropConfig, size: tuple[int, int], rng: Rng) -> tuple[list[list[int]], torch.Tensor]:
    """Return the first box of each image, and whether the view is flipped."""
    boxes, flipped = _draw_boxes(rng.uniform("crop", 1, 5), config, *size)
    return boxes[:, 0].tolist(), flipped[:, 0]


def noise_in_a_corner(count: int, size: int, color: int, seed: int = 0) -> torch.Tensor:
    """Return images of a single color with noise of different levels in the lower right quarter."""
    images = torch.full((count, 3, size, size), color, dtype=torch.uint8)
    images[..., size // 2 :, size // 2 :] = noise(count, (size // 2, size // 2), 90, 160, seed)
    return images


@SHAPES
def test_random_crops_match_pillow(size, view):
    images = noise(12, size)
    config = CropConfig(scale=(0.05, 1.0))
    boxes, _ = first_boxes(config, size, rng(12))
    views = crop(images, config, view, rng(12))
    for image, result, (top, left, height, width) in zip(images, levels(views), boxes, strict=True):
        cropped = Image.fromarray(levels(image / 255)).crop((left, top, left + width, top + height))
        expected = np.asarray(cropped.resize(view[::-1], Image.Resampling.BILINEAR))
        assert np.abs(result.astype(int) - expected).max() <= 2


@SHAPES
def test_inner_pixels_match_pillow_with_surrounding_pixels(size, view):
    images = noise(12, size)
    config = CropConfig(scale=(0.05, 1.0))
    boxes, _ = first_boxes(config, size, rng(12))
    views = crop(images, config, view, rng(12))
    for image, result, (top, left, height, width) in zip(images, levels(views), boxes, strict=True):
        whole, box = Image.fromarray(levels(image / 255)), (left, top, left + width, top + height)
        expected = np.asarray(whole.resize(view[::-1], Image.Resampling.BILINEAR, box))
        # width of the border affected by pixels outside the box
        y, x = math.ceil(view[0] / height), math.ceil(view[1] / width)
        assert np.abs(result.astype(int) - expected)[y:-y, x:-x].max() <= 2


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_crops_neither_alias_nor_change_the_brightness(size):
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    checkerboard = ((x + y) % 2 * 255).to(torch.uint8).expand(8, 3, -1, -1)
    views = crop(checkerboard, CropConfig(scale=(0.9, 1.0)), (8, 8), rng(8))
    assert (views - 0.5).abs().max() < 0.05
    for level in (0, 77, 255):
        flat = crop(torch.full((8, 3, *size), level, dtype=torch.uint8), CropConfig(), (24, 24), rng(8))
        assert torch.allclose(flat, torch.tensor(level / 255), atol=1e-6)


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("min_content", [0.0, 0.5])
def test_flipped_views_are_mirror_images(size, min_content):
    images = noise(40, size)
    config = CropConfig(min_content=min_content)
    plain = crop(images, config, (16, 12), rng(40))
    views = crop(images, dataclasses.replace(config, flip=True), (16, 12), rng(40))
    flipped = first_boxes(config, size, rng(40))[1]
    assert 10 < flipped.sum() < 30
    assert torch.allclose(views[flipped], plain[flipped].flip(-1), atol=1e-6)
    assert torch.equal(views[~flipped], plain[~flipped])


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (3, 2), (37, 64), (1000, 1001)])
@pytest.mark.parametrize("largest", [0.0, 1 - 2**-24])
def test_boxes_lie_within_the_image_for_extreme_random_numbers(size, largest):
    u = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, largest])] * 5)[:, None]
    boxes, _ = _draw_boxes(u, CropConfig(scale=(1e-6, 1.0), aspect=(0.01, 100.0)), *size)
    top, left, height, width = boxes[:, 0].unbind(-1)
    assert torch.stack([top, left]).min() >= 0
    assert torch.stack([height, width]).min() >= 1
    assert (top + height).max() <= size[0]
    assert (left + width).max() <= size[1]


def test_positions_are_uniform_up_to_both_borders():
    boxes, _ = first_boxes(CropConfig(scale=(0.25, 0.25), aspect=(1.0, 1.0)), (8, 8), rng(5000))
    tops = torch.bincount(torch.tensor(boxes)[:, 0], minlength=5)
    assert len(tops) == 5  # a 4-pixel box has 5 positions in 8 pixels
    assert (tops - 1000).abs().max() < 120  # four standard deviations


def test_an_image_of_one_pixel_has_views():
    image = torch.tensor([30, 60, 90], dtype=torch.uint8)[None, :, None, None]
    for min_content in (0.0, 0.5):
        view = crop(image, CropConfig(min_content=min_content), (7, 9), rng(1))
        assert torch.allclose(view, (image / 255).expand(-1, -1, 7, 9))


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_floats_and_uint8_have_the_same_views(size):
    images = noise(6, size)
    for min_content in (0.0, 0.5):
        config = CropConfig(min_content=min_content)
        views = crop(images, config, (16, 16), rng(6))
        assert torch.allclose(views, crop(images / 255, config, (16, 16), rng(6)), atol=1e-6)


def test_content_fraction_is_the_fraction_of_a_box_that_is_not_flat():
    images = torch.full((1, 3, 40, 40), 200, dtype=torch.uint8)
    images[..., 20:] = noise(1, (40, 20), 0, 100)
    boxes = torch.tensor([[[0, 0, 40, 18], [0, 22, 40, 18], [0, 0, 40, 40], [10, 10, 20, 20]]])
    empty, full, whole, middle = content_fraction(images, boxes)[0].tolist()
    assert empty == 0
    assert full == 1
    assert whole == pytest.approx(22 / 40)  # the 5x5 windows of two more columns include noise
    assert middle == pytest.approx(12 / 20)


@pytest.mark.parametrize(("step", "fraction"), [(0, 0.0), (4, 0.0), (5, 1.0)])
def test_four_levels_are_flat_and_five_are_not(step, fraction):
    stripes = torch.full((1, 3, 30, 30), 100, dtype=torch.uint8)
    stripes[..., ::2] += step
    box = torch.tensor([[[5, 5, 10, 10]]])
    assert float(content_fraction(stripes, box)) == fraction
    assert float(content_fraction(stripes / 255, box)) == fraction


@pytest.mark.parametrize("size", [48, 128])
def test_a_first_draw_with_enough_content_is_kept(size):
    images = torch.cat([noise_in_a_corner(60, size, 0), noise(20, (size, size))])
    config = CropConfig(scale=(0.1, 0.4), flip=True)
    boxes, _ = first_boxes(config, (size, size), rng(80))
    accepted = content_fraction(images, torch.tensor(boxes)[:, None])[:, 0] >= 0.3
    assert accepted[60:].all()
    assert 10 < accepted[:60].sum() < 50
    first_draws = crop(images, config, (16, 16), rng(80))
    views = crop(images, dataclasses.replace(config, min_content=0.3), (16, 16), rng(80))
    same = (first_draws - views).flatten(1).abs().amax(1) < 1e-6
    assert same[accepted].all()
    assert not same[~accepted].all()


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_images_without_any_content_have_views(size):
    images = torch.full((4, 3, *size), 255, dtype=torch.uint8)
    images[1] = 0
    views = crop(images, CropConfig(min_content=1.0), (16, 16), rng(4))
    assert torch.allclose(views, images[..., :16, :16] / 255, atol=1e-6)


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("min_content", [0.0, 0.5])
def test_random_crops_depend_only_on_step_and_position(size, min_content):
    images = noise(10, size)
    images[::2, :, : size[0] // 2] = 0
    config = CropConfig(scale=(0.1, 0.5), flip=True, min_content=min_content)
    whole = crop(images, config, (16, 16), rng(10))
    order = torch.tensor([7, 2, 9])
    assert torch.equal(crop(images[order], config, (16, 16), Rng(0, 0, order)), whole[order])
    assert torch.equal(crop(images, config, (16, 16), rng(10)), whole)
    assert not torch.equal(crop(images, config, (16, 16), Rng(0, 1, torch.arange(10))), whole)


@pytest.mark.parametrize(
    "settings", [{"kind": "centre", "min_content": 0.5}, {"min_content": 1.5}, {"min_content": -1}]
)
def test_invalid_min_content_is_rejected(settings):
    with pytest.raises(InputError, match=r"crop\.min_content "):
        CropConfig(**settings)
