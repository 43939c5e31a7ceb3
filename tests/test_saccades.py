import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.config import FixationConfig, InputError
from jepa.rng import Rng
from jepa.saccades import Geometry, Pose, rotate

WIDE = FixationConfig(field=0.5, shift=0.6, rotation=20, zoom=1.5)


def draw(config, canvas, size, count=256, step=0):
    geometry = Geometry(config, canvas, size)
    return geometry, *geometry.sample(Rng(0, step, torch.arange(count)))


def smooth(canvas, count):
    """A wave over the canvas (count, 1, H, W), far longer than a pixel."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in canvas), indexing="ij")
    return (0.5 + 0.2 * torch.sin(3 * x + 1) + 0.2 * torch.cos(2 * y + x))[None, None].expand(count, 1, -1, -1)


def test_a_saccade_and_its_inverse_are_the_identity():
    _, before, after = draw(WIDE, (64, 64), (32, 32))
    saccade = before.inverse().of(after)
    points = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
    for there, back in ((saccade, saccade.inverse()), (saccade.inverse(), saccade)):
        assert torch.allclose(back(there(points)), points, atol=1e-6)
        nothing = back.of(there)
        assert nothing.shift.abs().max() < 1e-6
        assert nothing.angle.abs().max() < 1e-6
        assert (nothing.zoom - 1).abs().max() < 1e-6
    naive = Pose(-saccade.shift, -saccade.angle, 1 / saccade.zoom)  # the mistake to make
    assert (naive(saccade(points)) - points).abs().max() > 0.1


def test_the_saccade_leads_from_the_first_fixation_to_the_second():
    _, before, after = draw(WIDE, (64, 64), (32, 32))
    found = before.of(before.inverse().of(after))
    for part, wanted in zip(found, after, strict=True):
        assert torch.allclose(part, wanted, atol=1e-6)


def test_by_hand_a_quarter_turn():
    turn = Pose(torch.tensor([[1.0, 0.0]]), torch.tensor([math.pi / 2]), torch.tensor([2.0]))
    assert torch.allclose(
        turn(torch.tensor([[1.0, 0.0]])), torch.tensor([[1.0, 2.0]]), atol=1e-6
    )  # x to the right, y down
    assert torch.allclose(turn.inverse()(torch.tensor([[1.0, 2.0]])), torch.tensor([[1.0, 0.0]]), atol=1e-6)


def test_going_back_shows_the_first_view_again_in_pixels():
    size = (48, 64)
    geometry, before, after = draw(WIDE, (96, 128), size)
    first, second = geometry.look(smooth((96, 128), 256), before, after)
    within = Geometry(FixationConfig(field=1.0, shift=1, rotation=20), size, size)  # the second view as the image
    back = before.inverse().of(after).inverse()
    (again,) = within.look(second, back)
    visible = within.grid(back).abs().amax(-1) < 0.95
    assert visible.float().mean() > 0.3
    assert (again - first).abs()[:, 0][visible].max() < 5e-3


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([((64, 64), (32, 32)), ((60, 100), (32, 32)), ((64, 96), (24, 48)), ((200, 200), (128, 128))]),
    st.floats(0.3, 1),
    st.floats(0, 60),
    st.floats(1, 3),
    st.integers(0, 1000),
)
def test_nothing_outside_of_the_image_is_seen(shapes, field, rotation, zoom, step):
    canvas, size = shapes
    for shift in (0.5, 0.2, 0.0):
        config = FixationConfig(field=field, shift=shift, rotation=rotation + 0.1, zoom=zoom)
        try:
            config.fits(canvas, size)
        except InputError:
            continue
        geometry, before, after = draw(config, canvas, size, 64, step)
        for pose in (before, after):
            middles = geometry.grid(pose).abs().amax()
            assert middles < 1  # the middle of each pixel; its border too, as the margins are those of the border
            assert 1 / zoom - 1e-6 <= pose.zoom.amin()
            assert pose.zoom.amax() <= 1 + 1e-6
        assert (after.shift - before.shift).abs().max() <= shift + 1e-6
        first, after = geometry.sample_many(Rng(0, step, torch.arange(8)), 8)
        for pose in (first, after):
            assert geometry.grid(pose).abs().amax() < 1
        assert (after.shift - first.repeat(8).shift).abs().max() <= shift + 1e-6


def test_the_largest_shift_that_is_named_fits_and_is_reached():
    config = FixationConfig(field=0.5, shift=5, rotation=10)
    with pytest.raises(InputError, match="up to") as caught:
        config.fits((64, 64), (32, 32))
    largest = float(str(caught.value).split("up to ")[1].split(";")[0])
    FixationConfig(field=0.5, shift=largest, rotation=10).fits((64, 64), (32, 32))
    assert largest == 1
    _, before, after = draw(FixationConfig(field=0.5, shift=largest, rotation=10), (64, 64), (32, 32), 4000)
    assert (after.shift - before.shift).abs().max() > 0.95 * largest


def test_zooms_are_uniform_on_a_log_scale_and_as_far_as_a_turned_view_fits():
    _, before, after = draw(FixationConfig(field=1, shift=0.3, rotation=15, zoom=2), (32, 32), (32, 32), 20_000)
    turned = before.angle != 0
    upright, other = before.zoom[~turned], before.zoom[turned]
    quantiles = upright.log2().quantile(torch.tensor([0.1, 0.5, 0.9]))
    assert torch.allclose(quantiles, torch.tensor([-0.9, -0.5, -0.1]), atol=0.02)
    angle = before.angle[turned].abs()
    farthest = 1 / (angle.cos() + angle.sin())  # of a square that turns within a square of its own size
    assert (other <= farthest + 1e-6).all()
    assert (other / farthest).max() > 0.99
    assert ((before.shift - after.shift).abs().amax() - 0.3).abs() < 0.01


def test_shifts_and_rotations_are_uniform_and_either_fixation_is_the_context():
    _, before, after = draw(FixationConfig(field=0.5, shift=0.6, rotation=10), (64, 64), (32, 32), 20_000)
    shift, angle = (after.shift - before.shift), after.angle - before.angle
    for values, limit in ((shift[:, 0], 0.6), (shift[:, 1], 0.6), (angle, math.radians(10))):
        assert values.abs().max() <= limit
        quantiles = torch.quantile(values / limit, torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]))
        assert torch.allclose(quantiles, torch.tensor([-0.8, -0.5, 0.0, 0.5, 0.8]), atol=0.03)
    turned = (before.angle != 0).float().mean()
    assert 0.48 < turned < 0.52


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
def test_a_turned_view_is_not_sheared(canvas, size):
    geometry, _, after = draw(WIDE, canvas, size)
    place = geometry.grid(after) * torch.tensor([canvas[1] / 2, canvas[0] / 2])  # in pixels of the image
    right = place[:, 0, 1] - place[:, 0, 0]
    down = place[:, 1, 0] - place[:, 0, 0]
    assert (right * down).sum(-1).abs().max() < 1e-3  # right angles
    assert torch.allclose(right.norm(dim=-1), down.norm(dim=-1), rtol=1e-3)  # square pixels
    assert torch.allclose(torch.atan2(right[:, 1], right[:, 0]), after.angle, atol=1e-3)


def test_a_view_without_movement_is_the_middle_of_the_image():
    geometry = Geometry(FixationConfig(field=0.5, shift=0.1, rotation=0), (32, 32), (16, 16))
    still = Pose(torch.zeros(2, 2), torch.zeros(2), torch.ones(2))
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    (view,) = geometry.look(images, still)
    assert torch.allclose(view, images[..., 8:24, 8:24].float() / 255, atol=1e-5)


def test_a_shift_moves_by_sides_of_the_view():
    geometry = Geometry(FixationConfig(field=0.5, shift=0.5, rotation=0), (32, 32), (16, 16))
    moved = Pose(torch.tensor([[0.25, -0.5]]), torch.zeros(1), torch.ones(1))
    images = torch.randint(0, 256, (1, 1, 32, 32), dtype=torch.uint8)
    (view,) = geometry.look(images, moved)
    assert torch.allclose(view, images[..., 0:16, 12:28].float() / 255, atol=1e-5)


def test_large_images_are_antialiased():
    stripes = (torch.arange(256) % 2 * 255).to(torch.uint8).expand(1, 1, 256, 256)
    geometry, before, after = draw(FixationConfig(field=0.5, shift=0.5, rotation=5), (256, 256), (32, 32), 1)
    for view in geometry.look(stripes, before, after):
        assert (view - 0.5).abs().max() < 0.05


def test_features_tell_movements_apart_and_have_the_octaves():
    geometry, before, after = draw(WIDE, (64, 64), (32, 32))
    saccade = before.inverse().of(after)
    features = geometry.features(saccade)
    assert geometry.octaves() == [10, 4, 4, 4]
    assert features.shape == (256, 44)
    scaled = geometry.scaled(saccade)
    assert scaled.abs().max() <= 1
    assert geometry.scaled(saccade.inverse()).abs().max() <= 1
    assert torch.allclose(features[:, 2], torch.sin(4 * math.pi * scaled[:, 0]), atol=1e-5)
    assert torch.allclose(features[:, 22 + 11], torch.cos(2 * math.pi * scaled[:, 1]), atol=1e-5)
    upright = Geometry(FixationConfig(field=0.5, shift=0.5, rotation=0), (64, 64), (32, 32))
    assert upright.octaves() == [4, 4]


@pytest.mark.parametrize("rotation", [20, 60, 90])
def test_scaled_movements_lie_within_1_and_reach_far(rotation):
    geometry, before, after = draw(FixationConfig(0.4, 0.6, rotation, 1.5), (64, 64), (32, 32), 5000)
    saccade = before.inverse().of(after)
    for movement in (saccade, saccade.inverse()):
        scaled = geometry.scaled(movement).abs()
        assert scaled.max() <= 1
        assert (scaled.amax(0) > 0.8).all()


def test_rotation_is_clockwise_on_the_screen():
    assert torch.allclose(
        rotate(torch.tensor([[1.0, 0.0]]), torch.tensor([math.pi / 2])), torch.tensor([[0.0, 1.0]]), atol=1e-6
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shift": 0.7}, "up to 0.562"),
        ({"field": 0.9, "rotation": 80, "shift": 0.0}, "does not fit into it when turned so far"),
        ({"field": 0.0}, "fixations.field is 0.0"),
        ({"field": 1.2}, "fixations.field is 1.2"),
        ({"shift": -0.1}, "fixations.shift is -0.1"),
        ({"zoom": 1e30}, "the nearest view of an image of 200x200 is less than a pixel"),
        ({"rotation": 100}, "fixations.rotation is 100"),
        ({"zoom": 0.5}, "fixations.zoom is 0.5"),
        ({"shift": 0, "rotation": 0}, "there is no movement"),
    ],
)
def test_bad_movements_are_one_sentence(settings, message):
    with pytest.raises(InputError) as caught:
        FixationConfig(**settings).fits((200, 200), (128, 128))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_image_smaller_than_the_view_is_refused():
    with pytest.raises(InputError, match="smaller than the view of 128x128"):
        FixationConfig().fits((100, 200), (128, 128))


def test_many_next_fixations_stay_within_reach_and_within_the_image():
    geometry = Geometry(WIDE, (64, 64), (32, 32))
    first, after = geometry.sample_many(Rng(0, 0, torch.arange(50)), 32)
    moved = after.shift - first.repeat(32).shift
    assert moved.abs().max() <= WIDE.shift + 1e-6
    for pose in (first, after):
        assert geometry.grid(pose).abs().max() < 1
    assert moved.view(50, 32, 2).std(1).min() > 0.05  # they differ within each image
