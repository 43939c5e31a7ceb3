import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image

from jepa.config import CropConfig, InputError
from jepa.rng import Rng
from jepa.views import _cut_all, _cut_each, _draw_boxes, content, crop


def rng(count: int) -> Rng:
    return Rng(0, 0, torch.arange(count))


@pytest.mark.parametrize("size", [(7, 9), (20, 20), (64, 50)])
def test_a_cut_is_what_pillow_makes_of_it(size):
    noise = torch.randint(0, 256, (8, 3, 60, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[5 * k, 3 * k, 60 - 6 * k, 80 - 9 * k] for k in range(8)])
    boxes[:, 2:] = torch.minimum(boxes[:, 2:], torch.tensor([60, 80]) - boxes[:, :2])
    ours = _cut_all(noise, boxes, size)
    assert torch.allclose(ours, _cut_each(noise, boxes, size), atol=1e-5)
    for image, (top, left, height, width), view in zip(noise, boxes.tolist(), ours, strict=True):
        cut = Image.fromarray(image[:, top : top + height, left : left + width].permute(1, 2, 0).numpy())
        pillow = np.asarray(cut.resize(size[::-1], Image.Resampling.BILINEAR)).transpose(2, 0, 1) / 255
        assert np.abs(view.numpy() - pillow).max() < 1.6 / 255  # Pillow rounds between and after its two passes


def test_large_and_small_images_are_cropped_alike():
    config = CropConfig(flip=True)
    small = torch.rand(6, 1, 40, 40)
    large = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    difference = crop(small, config, (8, 8), rng(6)) - crop(large, config, (8, 8), rng(6))
    assert difference.abs().mean() < 0.05  # whole pixels of 40 against whole pixels of 160


def framed(border: float, inside: torch.Tensor, pad: int = 40) -> torch.Tensor:
    return torch.nn.functional.pad(inside, (pad, pad, pad, pad), value=border)


@pytest.mark.parametrize("border", [0.0, 1.0, 0.4])
def test_crops_in_an_empty_border_are_drawn_again(border):
    images = framed(border, torch.rand(200, 1, 40, 40))
    config = CropConfig(scale=(0.05, 0.1), min_content=0.5)
    blind = crop(images, CropConfig(scale=(0.05, 0.1)), (16, 16), rng(200))
    views = crop(images, config, (16, 16), rng(200))

    def filled(views: torch.Tensor) -> torch.Tensor:
        return (views - border).abs().flatten(1).gt(0.05).float().mean(1)

    assert (filled(blind) > 0.4).float().mean() < 0.25
    assert (filled(views) > 0.4).float().mean() > 0.5
    enough = filled(blind) > 0.7
    assert torch.equal(views[enough], blind[enough])  # a first draw that shows enough stays


def test_full_images_lose_nothing_and_flat_ones_still_give_a_view():
    noise, flat = torch.rand(20, 3, 32, 32), torch.full((20, 3, 32, 32), 0.5)
    config = CropConfig(min_content=0.5)
    assert torch.equal(crop(noise, config, (16, 16), rng(20)), crop(noise, CropConfig(), (16, 16), rng(20)))
    assert torch.allclose(crop(flat, config, (16, 16), rng(20)), torch.tensor(0.5))


def test_the_share_of_content():
    image = framed(0.0, torch.rand(1, 1, 40, 40))
    boxes = torch.tensor([[[0, 0, 30, 30], [45, 45, 30, 30], [30, 45, 20, 30]]])
    assert content(image, boxes)[0] == pytest.approx([0.0, 1.0, 0.6], abs=0.11)
    wide = torch.nn.functional.pad(torch.rand(1, 1, 256, 256), (0, 256))
    halves = torch.tensor([[[0, 0, 256, 512], [0, 0, 256, 256], [0, 256, 256, 256]]])
    assert content(wide, halves)[0] == pytest.approx([0.5, 1.0, 0.0], abs=0.02)


def test_min_content_is_a_function_of_the_row():
    images = framed(0.0, torch.rand(10, 1, 30, 30))
    config = CropConfig(scale=(0.1, 0.3), min_content=0.5, flip=True)
    whole = crop(images, config, (16, 16), rng(10))
    assert torch.equal(whole[4:], crop(images[4:], config, (16, 16), Rng(0, 0, torch.arange(4, 10))))


SMALL, LARGE = (50, 40), (300, 200)  # on the CPU these are cut in two different ways
SHAPES = pytest.mark.parametrize(
    ("size", "view"),
    [(SMALL, (32, 32)), (SMALL, (5, 4)), (SMALL, (70, 90)), (LARGE, (64, 48)), (LARGE, (9, 12)), (LARGE, (400, 224))],
)


def noise(count: int, size: tuple[int, int], low: int = 0, high: int = 256, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (count, 3, *size), dtype=torch.uint8, generator=generator)


def levels(images: torch.Tensor) -> np.ndarray:
    """Floats (..., C, H, W) in [0, 1] as 8 bits, channels last."""
    return (images * 255).round().to(torch.uint8).movedim(-3, -1).numpy()


def boxes_of(config: CropConfig, size: tuple[int, int], draw: Rng) -> tuple[list[list[int]], torch.Tensor]:
    boxes, mirrored = _draw_boxes(draw.uniform("crop", 1, 5), config, *size)
    return boxes[:, 0].tolist(), mirrored[:, 0]


def in_border(count: int, size: int, colour: int, seed: int = 0) -> torch.Tensor:
    """Noise in the lower right quarter, of levels that no border has, and one colour around it."""
    images = torch.full((count, 3, size, size), colour, dtype=torch.uint8)
    images[..., size // 2 :, size // 2 :] = noise(count, (size // 2, size // 2), 90, 160, seed)
    return images


@SHAPES
def test_a_random_crop_is_what_pillow_makes_of_the_box(size, view):
    images = noise(12, size)
    config = CropConfig(scale=(0.05, 1.0))
    boxes, _ = boxes_of(config, size, rng(12))
    views = crop(images, config, view, rng(12))
    for image, made, (top, left, height, width) in zip(images, levels(views), boxes, strict=True):
        cut = Image.fromarray(levels(image / 255)).crop((left, top, left + width, top + height))
        wanted = np.asarray(cut.resize(view[::-1], Image.Resampling.BILINEAR))
        assert np.abs(made.astype(int) - wanted).max() <= 2


@SHAPES
def test_off_the_rim_it_is_what_pillow_makes_of_the_box_in_its_surroundings(size, view):
    images = noise(12, size)
    config = CropConfig(scale=(0.05, 1.0))
    boxes, _ = boxes_of(config, size, rng(12))
    views = crop(images, config, view, rng(12))
    for image, made, (top, left, height, width) in zip(images, levels(views), boxes, strict=True):
        picture, box = Image.fromarray(levels(image / 255)), (left, top, left + width, top + height)
        wanted = np.asarray(picture.resize(view[::-1], Image.Resampling.BILINEAR, box))
        y, x = math.ceil(view[0] / height), math.ceil(view[1] / width)  # as far as the nearest pixel outside has weight
        assert np.abs(made.astype(int) - wanted)[y:-y, x:-x].max() <= 2


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_crop_neither_aliases_nor_changes_the_brightness(size):
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    chessboard = ((x + y) % 2 * 255).to(torch.uint8).expand(8, 3, -1, -1)
    views = crop(chessboard, CropConfig(scale=(0.9, 1.0)), (8, 8), rng(8))
    assert (views - 0.5).abs().max() < 0.05
    for level in (0, 77, 255):
        flat = crop(torch.full((8, 3, *size), level, dtype=torch.uint8), CropConfig(), (24, 24), rng(8))
        assert torch.allclose(flat, torch.tensor(level / 255), atol=1e-6)


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("least", [0.0, 0.5])
def test_a_flipped_view_is_the_mirror_of_the_other(size, least):
    images = noise(40, size)
    config = CropConfig(min_content=least)
    plain = crop(images, config, (16, 12), rng(40))
    flipped = crop(images, dataclasses.replace(config, flip=True), (16, 12), rng(40))
    mirrored = boxes_of(config, size, rng(40))[1]
    assert 10 < mirrored.sum() < 30
    assert torch.allclose(flipped[mirrored], plain[mirrored].flip(-1), atol=1e-6)
    assert torch.equal(flipped[~mirrored], plain[~mirrored])


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (3, 2), (37, 64), (1000, 1001)])
@pytest.mark.parametrize("last", [0.0, 1 - 2**-24])
def test_boxes_lie_in_the_image_at_both_ends_of_the_draw(size, last):
    u = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, last])] * 5)[:, None]
    boxes, _ = _draw_boxes(u, CropConfig(scale=(1e-6, 1.0), aspect=(0.01, 100.0)), *size)
    top, left, height, width = boxes[:, 0].unbind(-1)
    assert torch.stack([top, left]).min() >= 0
    assert torch.stack([height, width]).min() >= 1
    assert (top + height).max() <= size[0]
    assert (left + width).max() <= size[1]


def test_places_reach_both_ends_evenly():
    boxes, _ = boxes_of(CropConfig(scale=(0.25, 0.25), aspect=(1.0, 1.0)), (8, 8), rng(5000))
    tops = torch.bincount(torch.tensor(boxes)[:, 0], minlength=5)
    assert len(tops) == 5  # a box of 4 in 8 pixels has 5 places
    assert (tops - 1000).abs().max() < 120  # four standard deviations


def test_a_tiny_image_gives_a_view():
    image = torch.tensor([30, 60, 90], dtype=torch.uint8)[None, :, None, None]
    for least in (0.0, 0.5):
        view = crop(image, CropConfig(min_content=least), (7, 9), rng(1))
        assert torch.allclose(view, (image / 255).expand(-1, -1, 7, 9))


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_floats_and_bytes_give_the_same_views(size):
    images = noise(6, size)
    for least in (0.0, 0.5):
        config = CropConfig(min_content=least)
        views = crop(images, config, (16, 16), rng(6))
        assert torch.allclose(views, crop(images / 255, config, (16, 16), rng(6)), atol=1e-6)


def test_content_is_the_share_of_a_box_that_is_not_flat():
    images = torch.full((1, 3, 40, 40), 200, dtype=torch.uint8)
    images[..., 20:] = noise(1, (40, 20), 0, 100)
    boxes = torch.tensor([[[0, 0, 40, 18], [0, 22, 40, 18], [0, 0, 40, 40], [10, 10, 20, 20]]])
    empty, full, whole, middle = content(images, boxes)[0].tolist()
    assert empty == 0
    assert full == 1
    assert whole == pytest.approx(22 / 40)  # two more columns have noise within their 5x5
    assert middle == pytest.approx(12 / 20)


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (4, 0.0), (5, 1.0)])
def test_four_levels_are_flat_and_five_are_not(step, share):
    stripes = torch.full((1, 3, 30, 30), 100, dtype=torch.uint8)
    stripes[..., ::2] += step
    box = torch.tensor([[[5, 5, 10, 10]]])
    assert float(content(stripes, box)) == share
    assert float(content(stripes / 255, box)) == share


@pytest.mark.parametrize("size", [48, 128])
def test_a_first_draw_with_enough_in_it_is_kept(size):
    images = torch.cat([in_border(60, size, 0), noise(20, (size, size))])
    config = CropConfig(scale=(0.1, 0.4), flip=True)
    first, _ = boxes_of(config, (size, size), rng(80))
    enough = content(images, torch.tensor(first)[:, None])[:, 0] >= 0.3
    assert enough[60:].all()
    assert 10 < enough[:60].sum() < 50
    plain = crop(images, config, (16, 16), rng(80))
    looking = crop(images, dataclasses.replace(config, min_content=0.3), (16, 16), rng(80))
    same = (plain - looking).flatten(1).abs().amax(1) < 1e-6
    assert same[enough].all()
    assert not same[~enough].all()


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_an_image_without_any_content_still_gives_a_view(size):
    images = torch.full((4, 3, *size), 255, dtype=torch.uint8)
    images[1] = 0
    views = crop(images, CropConfig(min_content=1.0), (16, 16), rng(4))
    assert torch.allclose(views, images[..., :16, :16] / 255, atol=1e-6)


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("least", [0.0, 0.5])
def test_a_view_depends_on_its_row_alone(size, least):
    images = noise(10, size)
    images[::2, :, : size[0] // 2] = 0
    config = CropConfig(scale=(0.1, 0.5), flip=True, min_content=least)
    whole = crop(images, config, (16, 16), rng(10))
    order = torch.tensor([7, 2, 9])
    assert torch.equal(crop(images[order], config, (16, 16), Rng(0, 0, order)), whole[order])
    assert torch.equal(crop(images, config, (16, 16), rng(10)), whole)
    assert not torch.equal(crop(images, config, (16, 16), Rng(0, 1, torch.arange(10))), whole)


@pytest.mark.parametrize(
    "settings", [{"kind": "centre", "min_content": 0.5}, {"min_content": 1.5}, {"min_content": -1}]
)
def test_min_content_that_makes_no_sense_is_refused(settings):
    with pytest.raises(InputError, match=r"crop\.min_content is"):
        CropConfig(**settings)
