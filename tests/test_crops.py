import numpy as np
import pytest
import torch
from PIL import Image

from jepa.config import CropConfig
from jepa.rng import Rng
from jepa.views import _cut_all, _cut_each, content, crop


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
