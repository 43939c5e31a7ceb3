"""The images that an encoder accepts: uint8, or floats in [0, 1], channels first."""

import pytest
import torch

from jepa.backbones import Encoder
from jepa.config import EnergyConfig, InputError
from jepa.runs import fresh_objective
from tests.conftest import override

UINT8 = torch.randint(0, 256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.fixture(params=["vit", "energy"])
def encoder(request, tiny) -> Encoder:
    config = override(tiny, data__mean=(0.4,) * 3, data__std=(0.2,) * 3)
    if request.param == "energy":
        config = override(config, backbone=EnergyConfig(size="32x4x2", patch=4))
    return fresh_objective(config).main_encoder.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_uint8_and_floats_have_the_same_tokens(encoder, dtype):
    floats = (UINT8.double() / 255).to(dtype)
    tolerance = 1e-2 if dtype == torch.float16 else 1e-5
    with torch.no_grad():
        for forward in (lambda images: encoder(images).x, encoder.embed, encoder.prepare):
            assert torch.allclose(forward(UINT8), forward(floats), atol=tolerance)
        assert torch.allclose(encoder.embed(UINT8), encoder(UINT8).x.mean(1), atol=1e-5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (UINT8.float(), "got floats between 0 and 255; divide values of 0 to 255 by 255"),
        ((UINT8.float() / 255 - 0.45) / 0.22, "do not normalize images, because the encoder does so"),
        (UINT8.float() / 255 * 2 - 1, "got floats between -1 and 1"),
        (UINT8.float() / 255 + 0.5, "got floats between 0.5 and 1.5"),
        (torch.where(UINT8 == 7, torch.nan, UINT8.float() / 255), "between nan and nan"),
        (torch.where(UINT8 == 7, torch.inf, UINT8.float() / 255), "and inf"),
        (UINT8.long(), "got torch.int64; convert them to floats and divide by their largest possible value"),
        (UINT8.to(torch.int32).mul(257).to(torch.uint16), "got torch.uint16"),
        (UINT8.to(torch.int8), "got torch.int8"),
        (UINT8 > 100, "got torch.bool"),
        (UINT8.permute(0, 2, 3, 1), r"must have the shape \(B, 3, H, W\), got \(4, 16, 16, 3\)"),
        (UINT8[0], r"got \(3, 16, 16\)"),
        (UINT8[:, :1], r"got \(4, 1, 16, 16\)"),
    ],
)
def test_other_images_are_refused(encoder, images, message):
    for method in (encoder.embed, encoder.prepare):
        with pytest.raises(InputError, match=message):
            method(images)


def test_forward_refuses_values_that_no_view_has(encoder):
    floats = UINT8.float() / 255
    for images in (UINT8.float(), UINT8.long(), 2 * floats - 1, (floats - 0.45) / 0.22, UINT8.permute(0, 2, 3, 1)):
        with pytest.raises(InputError, match="images must"):
            encoder(images)
    for images in (UINT8.numpy(), UINT8.tolist()):
        for method in (encoder, encoder.embed, encoder.prepare):
            with pytest.raises(InputError, match=r"images must be a tensor, got (ndarray|list)"):
                method(images)
    noisy = UINT8.float() / 255 + 0.2 * torch.randn(UINT8.shape, generator=torch.Generator().manual_seed(0))
    assert encoder.train()(noisy).x.isfinite().all()


def test_values_slightly_outside_of_the_range_are_those_of_a_resampled_image(encoder):
    assert torch.isfinite(encoder.embed(torch.linspace(-0.08, 1.08, 768).view(1, 3, 16, 16))).all()
