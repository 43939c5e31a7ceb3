import pytest
import torch

from jepa.config import CropConfig
from jepa.rng import Rng
from jepa.views import crop, resize


def rng(count: int, step: int = 0) -> Rng:
    return Rng(0, step, torch.arange(count))


def ramp(height: int, width: int) -> torch.Tensor:
    """An image whose two channels are the row and the column of a pixel, in [0, 1]."""
    y = (torch.arange(height) + 0.5) / height
    x = (torch.arange(width) + 0.5) / width
    return torch.stack([y[:, None].expand(-1, width), x.expand(height, -1)])


def test_a_random_crop_shows_a_rectangle_of_the_asked_area_and_aspect():
    images = ramp(64, 48).expand(2000, -1, -1, -1)
    views = crop(images, CropConfig(scale=(0.3, 1.0)), (32, 32), rng(2000))
    height = (views[:, 0, -1, 0] - views[:, 0, 0, 0]) * 32 / 31
    width = (views[:, 1, 0, -1] - views[:, 1, 0, 0]) * 32 / 31
    area = height * width
    assert area.min() > 0.28
    assert area.max() <= 1.01
    assert abs(float(area.mean()) - 0.65) < 0.02
    fits = (height < 0.98) & (width < 0.98)  # a crop that touches both sides gives up its aspect
    aspect = (width * 48 / (height * 64))[fits]
    assert aspect.min() > 0.72
    assert aspect.max() < 1.38
    centre = views.mean((2, 3))
    assert (centre.mean(0) - 0.5).abs().max() < 0.01  # no side is preferred


def test_flips_mirror_half_of_the_images():
    images = ramp(8, 8).expand(1000, -1, -1, -1)
    for kind in ("full", "random"):
        views = crop(images, CropConfig(kind=kind, flip=True), (8, 8), rng(1000))
        mirrored = views[:, 1, 0, 0] > views[:, 1, 0, -1]
        assert 0.45 < mirrored.float().mean() < 0.55
        assert (views[:, 0, 0] < views[:, 0, -1]).all()  # never upside down


def test_full_and_centre_keep_pixels_that_have_the_size():
    images = torch.randint(0, 256, (4, 3, 20, 16), dtype=torch.uint8)
    assert torch.equal(crop(images, CropConfig(kind="full"), (20, 16), rng(4)), images / 255)
    centre = crop(images, CropConfig(kind="centre"), (16, 16), rng(4))
    assert torch.equal(centre, images[:, :, 2:18] / 255)


def test_resize_cuts_the_centre_to_the_aspect_and_does_not_shear():
    view = resize(ramp(60, 90)[None], (30, 30))[0]
    assert torch.allclose(view[0, :, 3], (torch.arange(30) + 0.5) / 30, atol=0.02)
    assert torch.allclose(view[1, 3], 1 / 6 + (torch.arange(30) + 0.5) / 30 * 2 / 3, atol=0.02)
    tall = resize(ramp(60, 90)[None], (60, 30))
    assert tall.shape == (1, 2, 60, 30)
    assert tall[0, 1].min() > 0.3  # the sides are cut off


@pytest.mark.parametrize("kind", ["full", "centre", "random"])
def test_views_are_a_function_of_the_row(kind):
    images = torch.rand(10, 3, 12, 12)
    config = CropConfig(kind=kind, flip=True)
    whole = crop(images, config, (8, 8), rng(10))
    part = crop(images[4:], config, (8, 8), Rng(0, 0, torch.arange(4, 10)))
    assert torch.equal(whole[4:], part)
