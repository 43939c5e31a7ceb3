import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jepa.backbones import fit_layers
from jepa.config import InputError, SaccadeConfig
from jepa.objectives.patch_codes import NUM_PATCHES, PatchCodes
from jepa.runs import Run, fresh_objective
from jepa.train import train
from tests.conftest import override, write_parquet


def textured_images(count=400, channels=3, size=(32, 32), seed=0):
    """Draw images of smoothed noise, between 0.25 and 0.75."""
    noise = torch.rand(count, channels, size[0] + 4, size[1] + 4, generator=torch.Generator().manual_seed(seed))
    smooth = F.avg_pool2d(noise, 5, 1)
    return 0.25 + 0.5 * (smooth - smooth.min()) / (smooth.max() - smooth.min())


@pytest.fixture(scope="module")
def fitted():
    codes = PatchCodes(3)
    codes.fit(textured_images())
    return codes


def test_codes_are_white_on_the_images_they_were_fitted_to(fitted):
    codes = fitted(textured_images())
    assert codes.shape == (400, 256)
    torch.testing.assert_close(codes.mean(0), torch.zeros(256), atol=1e-3, rtol=0)
    torch.testing.assert_close(codes.T.cov(), torch.eye(256), atol=0.1, rtol=0)


def test_codes_ignore_brightness_and_nearly_ignore_contrast(fitted):
    images = textured_images(20, seed=1)
    codes = fitted(images)
    assert F.cosine_similarity(codes, fitted(images + 0.2)).min() > 0.999
    assert F.cosine_similarity(codes, fitted(0.8 * images + 0.1)).min() > 0.95
    assert F.cosine_similarity(codes, fitted(images.flip(0))).mean() < 0.5  # other images have other codes


@pytest.mark.parametrize("size", [(8, 8), (32, 48), (100, 75)])
def test_views_of_any_size(size):
    codes = PatchCodes(3)
    codes.fit(textured_images(60, size=size))
    assert codes(textured_images(3, size=size)).shape == (3, 256)
    assert codes(textured_images(3, size=size)).isfinite().all()


def test_flat_images_give_finite_codes():
    codes = PatchCodes(3)
    codes.fit(torch.full((50, 3, 32, 32), 0.5))
    assert codes(torch.full((2, 3, 32, 32), 0.5)).isfinite().all()


def test_dictionary_is_made_of_patches_of_the_images(fitted):
    """A patch of the dictionary responds most to itself."""
    assert fitted.filters.shape == (NUM_PATCHES, 3, 6, 6)
    other = PatchCodes(3)
    other.fit(textured_images())
    assert torch.equal(other.filters, fitted.filters)  # no randomness but that of the images


@pytest.fixture
def stripes(tmp_path):
    """A parquet file of 64 images with stripes of any direction: each part of an image predicts the others."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:16, :16]
    images = []
    for angle, phase in rng.uniform(0, np.pi, (64, 2)):
        wave = np.sin(1.5 * (rows * np.cos(angle) + columns * np.sin(angle)) + 2 * phase)
        images.append(np.repeat((127 + 100 * wave).astype(np.uint8)[..., None], 3, 2))
    return str(write_parquet(tmp_path / "stripes" / "train-00000-of-00001.parquet", images).parent)


def test_saccade_learns_to_predict_codes(tiny, tmp_path, stripes):
    objective = SaccadeConfig(patch_codes=1, prediction=0, cycle=0, variance=0, covariance=0, hidden=32)
    config = override(tiny, objective=objective, data__source=stripes, steps=100, save_every=100, optim__lr=3e-3)
    run = train(config, tmp_path / "run")
    losses = [record["patch_codes"] for record in Run.open(run.path).metrics() if "patch_codes" in record]
    assert len(losses) == 100
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert run.load()[0]["model.code_teacher.codes.filters"].abs().sum() > 0


def test_codes_of_an_objective_are_fitted_to_pixels(tiny):
    objective = SaccadeConfig(patch_codes=1)
    config = override(tiny, objective=objective, data__mean=(0.1,) * 3, data__std=(0.3,) * 3)
    model, alone = fresh_objective(config), PatchCodes(3)
    images = textured_images(50, size=(16, 16))
    fit_layers(model, images)
    alone.fit(images)
    assert torch.equal(model.code_teacher.codes.axes, alone.axes)


def test_few_images():
    for count in (1, 3):
        codes = PatchCodes(3)
        codes.fit(textured_images(count))
        assert codes(textured_images(2, seed=1)).isfinite().all()


def test_views_that_are_too_small_and_single_images_are_refused(tiny):
    with pytest.raises(InputError, match=r"needs views of at least 8x8 pixels, got 4x4; set it to 0"):
        override(tiny, data__image_size=4, objective__patch_codes=0.5)
    codes_only = override(tiny, objective__variance=0, objective__covariance=0, objective__patch_codes=1)
    with pytest.raises(InputError, match=r"needs at least 2; give --batch-size 2 or more"):
        override(codes_only, batch_size=1)
    with pytest.raises(InputError, match=r"objective\.patch_codes must be at least 0, got -1"):
        override(tiny, objective__patch_codes=-1)


def test_codes_are_computed_in_fp32_under_autocast(fitted):
    images = textured_images(4, seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fitted(images), fitted(images.clone()))
        codes = fitted(images)
    assert torch.equal(codes, fitted(images))
