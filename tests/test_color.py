"""Random changes of color."""

from __future__ import annotations

import pytest
import torch

from jepa.config import ColorConfig, InputError
from jepa.rng import Rng
from jepa.transforms.color import change_colors


def rng(count: int) -> Rng:
    return Rng(seed=0, step=0, positions=torch.arange(count))


def views(count: int = 400, channels: int = 3) -> torch.Tensor:
    """Return views with values in [0.3, 0.5], which no factor moves out of [0, 1]."""
    return 0.3 + 0.2 * torch.rand(count, channels, 6, 5, generator=torch.Generator().manual_seed(0))


def test_without_settings_views_are_returned_as_they_are() -> None:
    given = views(4)
    assert change_colors(given, ColorConfig(), rng(4)) is given


def test_each_view_has_factors_of_its_own_within_the_strength() -> None:
    given = views()
    changed = change_colors(given, ColorConfig(strength=0.2), rng(400))
    ratio = changed.mean((2, 3)) / given.mean((2, 3))
    assert len(ratio.mean(1).unique()) == 400
    assert 0.8 * 0.9 * 0.97 < ratio.min() < 0.85
    assert 1.15 < ratio.max() < 1.2 * 1.1 * 1.03
    assert ratio.mean() == pytest.approx(1, abs=0.02)
    spread = changed.std((2, 3)) / given.std((2, 3)) / ratio  # contrast, relative to brightness
    assert spread.std() > 0.05


def test_channels_of_constant_views_change_by_half_of_the_strength() -> None:
    given = torch.full((500, 3, 2, 2), 0.4)  # contrast and saturation have no effect
    changed = change_colors(given, ColorConfig(strength=0.4), rng(500))[..., 0, 0]
    hue = changed / changed.mean(1, keepdim=True)
    assert 1.2 < hue.max() < 1.2 / 0.8
    brightness = changed.mean(1) / 0.4
    assert 0.6 * 0.8 < brightness.min() < 0.65
    assert 1.35 < brightness.max() < 1.4 * 1.2


def test_gray_views_lose_their_colors_and_keep_their_shapes() -> None:
    given = views()
    changed = change_colors(given, ColorConfig(gray=0.25), rng(400))
    is_gray = (changed - changed.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-6
    assert is_gray.float().mean() == pytest.approx(0.25, abs=0.07)
    torch.testing.assert_close(changed[~is_gray], given[~is_gray])
    torch.testing.assert_close(changed[is_gray], given[is_gray].mean(1, keepdim=True).expand(-1, 3, -1, -1))


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels(channels: int) -> None:
    given = 5 * views(50, channels) - 1.2  # most of the views reach the limits
    changed = change_colors(given.clamp(0, 1), ColorConfig(strength=1, gray=0.5), rng(50))
    assert changed.shape == given.shape
    assert changed.min() >= 0
    assert changed.max() <= 1


def test_the_same_numbers_give_the_same_colors() -> None:
    config = ColorConfig(strength=0.4, gray=0.2)
    first, again = (change_colors(views(), config, rng(400)) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, change_colors(views(), config, Rng(0, 1, torch.arange(400))))


@pytest.mark.parametrize("settings", [{"strength": -0.1}, {"strength": 1.5}, {"gray": 2.0}, {"gray": float("nan")}])
def test_invalid_settings(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"objective.color.{next(iter(settings))} must be between 0 and 1, got"):
        ColorConfig(**settings)
