"""Fixations and saccades: composition and inversion of poses, sampling within the image, and rendering."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.config import FixationConfig, InputError
from jepa.objectives.saccade import SaccadeCode
from jepa.rng import Rng
from jepa.transforms.saccade import Geometry, Pose, rotate

WIDE = FixationConfig(view_fraction=0.5, shift=0.6, rotation=20, zoom=1.5)


def sample_fixations(config, canvas, size, count=256, step=0):
    geometry = Geometry(config, canvas, size)
    return geometry, *geometry.sample(Rng(0, step, torch.arange(count)))


def smooth(canvas, count):
    """Return images (count, 1, H, W) of a wave with a wavelength of many pixels."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in canvas), indexing="ij")
    return (0.5 + 0.2 * torch.sin(3 * x + 1) + 0.2 * torch.cos(2 * y + x))[None, None].expand(count, 1, -1, -1)


def test_a_saccade_and_its_inverse_are_the_identity():
    _, before, after = sample_fixations(WIDE, (64, 64), (32, 32))
    saccade = before.inverse().of(after)
    points = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
    for pose, inverse in ((saccade, saccade.inverse()), (saccade.inverse(), saccade)):
        assert torch.allclose(inverse(pose(points)), points, atol=1e-6)
        identity = inverse.of(pose)
        assert identity.shift.abs().max() < 1e-6
        assert identity.angle.abs().max() < 1e-6
        assert (identity.zoom - 1).abs().max() < 1e-6
    negated = Pose(-saccade.shift, -saccade.angle, 1 / saccade.zoom)  # not the inverse
    assert (negated(saccade(points)) - points).abs().max() > 0.1


def test_the_saccade_leads_from_the_first_fixation_to_the_second():
    _, before, after = sample_fixations(WIDE, (64, 64), (32, 32))
    composed = before.of(before.inverse().of(after))
    for component, expected in zip(composed, after, strict=True):
        assert torch.allclose(component, expected, atol=1e-6)


def test_rotation_by_90_degrees_by_hand():
    pose = Pose(torch.tensor([[1.0, 0.0]]), torch.tensor([math.pi / 2]), torch.tensor([2.0]))
    point, expected = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 2.0]])  # x to the right, y down
    assert torch.allclose(pose(point), expected, atol=1e-6)
    assert torch.allclose(pose.inverse()(expected), point, atol=1e-6)


def test_the_inverse_saccade_renders_the_first_view_from_the_second():
    size = (48, 64)
    geometry, before, after = sample_fixations(WIDE, (96, 128), size)
    first, second = geometry.render(smooth((96, 128), 256), before, after)
    # the second view serves as the image
    in_view = Geometry(FixationConfig(view_fraction=1.0, shift=1, rotation=20), size, size)
    inverse = before.inverse().of(after).inverse()
    (rendered,) = in_view.render(second, inverse)
    visible = in_view.sampling_grid(inverse).abs().amax(-1) < 0.95
    assert visible.float().mean() > 0.3
    assert (rendered - first).abs()[:, 0][visible].max() < 5e-3


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([((64, 64), (32, 32)), ((60, 100), (32, 32)), ((64, 96), (24, 48)), ((200, 200), (128, 128))]),
    st.floats(0.3, 1),
    st.floats(0, 60),
    st.floats(1, 3),
    st.integers(0, 1000),
)
def test_views_lie_within_the_image(shapes, view_fraction, rotation, zoom, step):
    canvas, size = shapes
    for shift in (0.5, 0.2, 0.0):
        config = FixationConfig(view_fraction=view_fraction, shift=shift, rotation=rotation + 0.1, zoom=zoom)
        try:
            config.check_canvas(canvas, size)
        except InputError:
            continue
        geometry, before, after = sample_fixations(config, canvas, size, 64, step)
        for pose in (before, after):
            assert geometry.sampling_grid(pose).abs().amax() < 1  # pixel centers
            assert 1 / zoom - 1e-6 <= pose.zoom.amin()
            assert pose.zoom.amax() <= 1 + 1e-6
        assert (after.shift - before.shift).abs().max() <= shift + 1e-6
        first, after = geometry.sample_many(Rng(0, step, torch.arange(8)), 8)
        for pose in (first, after):
            assert geometry.sampling_grid(pose).abs().amax() < 1
        assert (after.shift - first.repeat(8).shift).abs().max() <= shift + 1e-6


def test_the_largest_shift_in_the_message_fits_and_is_reached():
    config = FixationConfig(view_fraction=0.5, shift=5, rotation=10)
    with pytest.raises(InputError, match="the largest shift that fits into the image is") as caught:
        config.check_canvas((64, 64), (32, 32))
    largest = float(str(caught.value).split("fits into the image is ")[1].split(";")[0])
    assert largest == 1
    config = FixationConfig(view_fraction=0.5, shift=largest, rotation=10)
    config.check_canvas((64, 64), (32, 32))
    _, before, after = sample_fixations(config, (64, 64), (32, 32), 4000)
    assert (after.shift - before.shift).abs().max() > 0.95 * largest


def test_zooms_are_log_uniform_up_to_the_largest_at_which_a_rotated_view_fits():
    config = FixationConfig(view_fraction=1, shift=0.3, rotation=15, zoom=2)
    _, before, after = sample_fixations(config, (32, 32), (32, 32), 20_000)
    is_rotated = before.angle != 0
    upright, rotated = before.zoom[~is_rotated], before.zoom[is_rotated]
    quantiles = upright.log2().quantile(torch.tensor([0.1, 0.5, 0.9]))
    assert torch.allclose(quantiles, torch.tensor([-0.9, -0.5, -0.1]), atol=0.02)
    angle = before.angle[is_rotated].abs()
    largest = 1 / (angle.cos() + angle.sin())  # for a rotated square in an upright square of the same size
    assert (rotated <= largest + 1e-6).all()
    assert (rotated / largest).max() > 0.99
    assert ((before.shift - after.shift).abs().amax() - 0.3).abs() < 0.01


def test_shifts_and_rotations_are_uniform_and_either_fixation_is_the_context():
    config = FixationConfig(view_fraction=0.5, shift=0.6, rotation=10)
    _, before, after = sample_fixations(config, (64, 64), (32, 32), 20_000)
    shift, angle = (after.shift - before.shift), after.angle - before.angle
    for values, limit in ((shift[:, 0], 0.6), (shift[:, 1], 0.6), (angle, math.radians(10))):
        assert values.abs().max() <= limit
        quantiles = torch.quantile(values / limit, torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]))
        assert torch.allclose(quantiles, torch.tensor([-0.8, -0.5, 0.0, 0.5, 0.8]), atol=0.03)
    rotated = (before.angle != 0).float().mean()
    assert 0.48 < rotated < 0.52


def test_swapping_the_fixations_inverts_the_saccade(monkeypatch):
    geometry = Geometry(WIDE, (64, 64), (32, 32))
    u = torch.rand(16, 8, generator=torch.Generator().manual_seed(0))
    saccades = []
    for order in (0.1, 0.9):
        u[:, 7] = order
        monkeypatch.setattr(Rng, "uniform", lambda *_: u)
        before, after = geometry.sample(Rng(0, 0, torch.arange(16)))
        saccades.append(before.inverse().of(after))
    for one, other in zip(saccades[0], saccades[1].inverse(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(("canvas", "size"), [((96, 160), (48, 48)), ((80, 60), (32, 64)), ((64, 64), (32, 32))])
def test_rotated_views_are_not_sheared(canvas, size):
    geometry, _, after = sample_fixations(WIDE, canvas, size)
    positions = geometry.sampling_grid(after) * torch.tensor([canvas[1] / 2, canvas[0] / 2])  # in image pixels
    right = positions[:, 0, 1] - positions[:, 0, 0]
    down = positions[:, 1, 0] - positions[:, 0, 0]
    assert (right * down).sum(-1).abs().max() < 1e-3  # right angles
    assert torch.allclose(right.norm(dim=-1), down.norm(dim=-1), rtol=1e-3)  # square pixels
    assert torch.allclose(torch.atan2(right[:, 1], right[:, 0]), after.angle, atol=1e-3)


def test_the_identity_renders_the_center_of_the_image():
    geometry = Geometry(FixationConfig(view_fraction=0.5, shift=0.1, rotation=0), (32, 32), (16, 16))
    identity = Pose(torch.zeros(2, 2), torch.zeros(2), torch.ones(2))
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    (view,) = geometry.render(images, identity)
    assert torch.allclose(view, images[..., 8:24, 8:24].float() / 255, atol=1e-5)


def test_shifts_are_in_view_sides():
    geometry = Geometry(FixationConfig(view_fraction=0.5, shift=0.5, rotation=0), (32, 32), (16, 16))
    shifted = Pose(torch.tensor([[0.25, -0.5]]), torch.zeros(1), torch.ones(1))
    images = torch.randint(0, 256, (1, 1, 32, 32), dtype=torch.uint8)
    (view,) = geometry.render(images, shifted)
    assert torch.allclose(view, images[..., 0:16, 12:28].float() / 255, atol=1e-5)


def test_large_images_are_antialiased():
    stripes = (torch.arange(256) % 2 * 255).to(torch.uint8).expand(1, 1, 256, 256)
    config = FixationConfig(view_fraction=0.5, shift=0.5, rotation=5)
    geometry, before, after = sample_fixations(config, (256, 256), (32, 32), 1)
    for view in geometry.render(stripes, before, after):
        assert (view - 0.5).abs().max() < 0.05


def test_number_of_octaves():
    assert Geometry(WIDE, (64, 64), (32, 32)).num_octaves() == [10, 4, 4, 4]
    upright = Geometry(FixationConfig(view_fraction=0.5, shift=0.5, rotation=0), (64, 64), (32, 32))
    assert upright.num_octaves() == [4, 4]


def test_the_code_of_a_saccade_is_sin_and_cos_of_its_components():
    geometry, before, after = sample_fixations(WIDE, (64, 64), (32, 32))
    saccade = before.inverse().of(after)
    normalized = geometry.normalized(saccade)
    assert normalized.abs().max() <= 1
    assert geometry.normalized(saccade.inverse()).abs().max() <= 1
    code = SaccadeCode(geometry.num_octaves())(normalized)
    assert code.shape == (256, 44)
    assert torch.allclose(code[:, 2], torch.sin(2 * math.pi * normalized[:, 0]), atol=1e-5)
    assert torch.allclose(code[:, 22 + 11], torch.cos(math.pi * normalized[:, 1]), atol=1e-5)


@pytest.mark.parametrize("num_octaves", [[10, 4, 4, 4], [4, 4], [10]])
def test_different_saccades_have_different_codes(num_octaves):
    grid = torch.linspace(-1, 1, 9)
    saccades = torch.cartesian_prod(*[grid] * len(num_octaves)).reshape(-1, len(num_octaves))
    codes = SaccadeCode(num_octaves)(saccades)
    for saccade in saccades[:: len(saccades) // 7]:
        distance = (SaccadeCode(num_octaves)(saccade[None]) - codes).norm(dim=1)
        change = (saccade - saccades).norm(dim=1)
        assert (distance[change > 0] > 0.3).all()  # the codes of -1 and 1 are not the same


@pytest.mark.parametrize("rotation", [20, 60, 90])
def test_normalized_saccades_and_their_inverses_cover_minus_1_to_1(rotation):
    geometry, before, after = sample_fixations(FixationConfig(0.4, 0.6, rotation, 1.5), (64, 64), (32, 32), 5000)
    saccade = before.inverse().of(after)
    for pose in (saccade, saccade.inverse()):
        normalized = geometry.normalized(pose).abs()
        assert normalized.max() <= 1
        assert (normalized.amax(0) > 0.8).all()


def test_rotation_is_clockwise_on_the_screen():
    assert torch.allclose(
        rotate(torch.tensor([[1.0, 0.0]]), torch.tensor([math.pi / 2])), torch.tensor([[0.0, 1.0]]), atol=1e-6
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shift": 0.7}, "the largest shift that fits into the image is 0.562"),
        (
            {"view_fraction": 0.9, "rotation": 80, "shift": 0.0},
            "fixations.rotation is 80, but a rotated view with view_fraction 0.9 does not fit into the image",
        ),
        ({"view_fraction": 0.0}, "fixations.view_fraction must be above 0 and at most 1, got 0.0"),
        ({"view_fraction": 1.2}, "fixations.view_fraction must be above 0 and at most 1, got 1.2"),
        ({"shift": -0.1}, "fixations.shift must be at least 0, got -0.1"),
        ({"zoom": 1e30}, "so a view covers less than a pixel"),
        ({"rotation": 100}, "fixations.rotation must be between 0 and 90 degrees, got 100"),
        ({"zoom": 0.5}, "fixations.zoom must be at least 1, got 0.5"),
        ({"shift": 0, "rotation": 0}, "set at least one of them to allow a movement"),
    ],
)
def test_messages_about_invalid_settings_are_one_sentence(settings, message):
    with pytest.raises(InputError) as caught:
        FixationConfig(**settings).check_canvas((200, 200), (128, 128))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_smaller_than_the_view_are_rejected():
    with pytest.raises(InputError, match="smaller than the view of 128x128"):
        FixationConfig().check_canvas((100, 200), (128, 128))


def test_many_next_fixations_are_within_the_image_and_the_largest_shift():
    geometry = Geometry(WIDE, (64, 64), (32, 32))
    first, after = geometry.sample_many(Rng(0, 0, torch.arange(50)), 32)
    shift = after.shift - first.repeat(32).shift
    assert shift.abs().max() <= WIDE.shift + 1e-6
    for pose in (first, after):
        assert geometry.sampling_grid(pose).abs().max() < 1
    assert shift.view(50, 32, 2).std(1).min() > 0.05  # different fixations within each image
