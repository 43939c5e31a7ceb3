"""`jepa.load`: images of any kind and size in, features out; predictions in latent space."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import jepa
from jepa.config import (
    FixationConfig,
    InputError,
    PlainConvNetConfig,
    SaccadeConfig,
)
from jepa.data import open_dataset
from jepa.evaluation.features import extract
from jepa.interop.images import read_batches
from jepa.runs import load_objective
from jepa.train import train
from jepa.transforms.saccade import Pose


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from tests.conftest import tiny_config, toy_images, write_parquet

    folder = tmp_path_factory.mktemp("model")
    images, labels = toy_images(24)
    write_parquet(folder / "toy" / "train-00000-of-00001.parquet", images, labels)
    return train(tiny_config(str(folder / "toy"), steps=2), folder / "run")


@pytest.fixture(scope="module")
def saccade_run(tmp_path_factory):
    from tests.conftest import tiny_config, toy_images, write_parquet

    folder = tmp_path_factory.mktemp("saccade")
    images, labels = toy_images(24)
    write_parquet(folder / "toy" / "train-00000-of-00001.parquet", images, labels)
    fixations = FixationConfig(view_fraction=0.75, shift=0.2, rotation=10.0)
    parts = {"backbone": PlainConvNetConfig(width=4, stages=1, dim=12), "objective": SaccadeConfig(fixations=fixations)}
    return train(tiny_config(str(folder / "toy"), steps=2, **parts), folder / "run")


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)


def test_one_image_in_all_forms(run, photo, tmp_path):
    model = jepa.load(run.path, device="cpu")
    Image.fromarray(photo).save(tmp_path / "x.png")
    tensor = torch.from_numpy(photo).permute(2, 0, 1)
    forms = [str(tmp_path / "x.png"), tmp_path / "x.png", Image.open(tmp_path / "x.png"), Image.fromarray(photo), photo]
    forms += [photo[None], tensor, tensor[None], [photo], (tmp_path / "x.png",)]
    features = [model.embed(form) for form in forms]
    assert all(x.shape == (1, 32) and torch.equal(x, features[0]) for x in features)
    floats = model.embed(tensor / 255)  # resized without rounding to 256 levels
    assert (floats - features[0]).abs().max() < 0.2 * features[0].std()
    tokens = model.tokens(photo)
    assert (tokens.x.shape, tokens.grid) == ((1, 16, 32), (4, 4))
    assert torch.allclose(tokens.x.mean(1), features[0], atol=1e-6)


def test_modes_of_images(run, photo):
    model = jepa.load(run.path, device="cpu")
    gray = Image.fromarray(photo).convert("L")
    expected = model.embed(gray.convert("RGB"))
    white = Image.fromarray(np.full((16, 16, 3), 255, np.uint8))
    transparent = np.zeros((16, 16, 4), np.uint8)
    for same in (gray, np.asarray(gray), np.asarray(gray)[..., None], torch.from_numpy(np.asarray(gray).copy())[None]):
        assert torch.equal(model.embed(same), expected)
    assert torch.equal(model.embed(transparent), model.embed(white))  # composited onto white, as files are
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    assert (model.embed(deep) - expected).abs().max() < 0.05 * expected.std()
    turned = Image.fromarray(photo)
    turned.getexif()[274] = 6
    assert torch.equal(model.embed(turned), model.embed(ImageOps.exif_transpose(turned)))


def test_features_are_those_of_the_evaluation(run):
    model = jepa.load(run.path, device="cpu")
    data = run.config.data
    dataset = open_dataset(data, "train", run.path.parent / "cache")
    pixels = dataset.read(torch.arange(len(dataset))).pixels
    expected = extract(model.encoder, dataset, torch.arange(len(dataset))).x
    assert torch.equal(model.embed(pixels, batch_size=100), expected)
    assert torch.allclose(model.embed(pixels, batch_size=7), expected, atol=1e-6)
    images = [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).numpy()]
    assert torch.allclose(model.embed(images, batch_size=5), expected, atol=1e-6)


def test_lists_of_different_kinds_and_sizes_keep_their_order(run, photo):
    model = jepa.load(run.path, device="cpu")
    images = [
        photo,
        torch.rand(3, 16, 16),
        photo[:30],
        torch.rand(3, 40, 20),
        Image.fromarray(photo),
        torch.rand(3, 16, 16),
    ]
    together = model.embed(images, batch_size=4)
    assert together.shape == (6, 32)
    assert torch.allclose(together, torch.cat([model.embed(image) for image in images]), atol=1e-6)
    assert model.embed([]).shape == (0, 32)
    assert model.embed(torch.empty(0, 3, 16, 16)).shape == (0, 32)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        ("nowhere.png", "the image nowhere.png cannot be read: No such file"),
        (".", "is a folder; give the paths of images, or use 'jepa embed'"),
        ("a\0b", "cannot be read: embedded null byte"),
        (3, "images must be a path, a PIL image, .* got int"),
        ([[3]], "must be a list of single images, got a list of lists"),
        (np.zeros((4, 4, 3)), "must be uint8, got float64"),
        (np.zeros((3, 40, 40), np.uint8), r"got \(3, 40, 40\) for one image; use array.transpose\(1, 2, 0\)"),
        (np.zeros((0, 4, 3), np.uint8), r"got \(0, 4, 3\)"),
        (torch.zeros(4, 4), r"must be \(C, H, W\) or \(B, C, H, W\), got \(4, 4\)"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), r"must have the shape \(B, 3, H, W\), got \(1, 4, 4, 3\)"),
        (torch.full((3, 8, 8), 7.0), "got floats between 7 and 7; divide"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "must be uint8 or floats in .0, 1., got torch.int64"),
        (torch.full((3, 8, 8), math.nan), "got floats between nan and nan"),
    ],
)
def test_wrong_images(run, images, sentence):
    model = jepa.load(run.path, device="cpu")
    with pytest.raises(InputError, match=sentence) as error:
        model.embed(images)
    assert "\n" not in str(error.value)


def test_a_damaged_file_is_named(run, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(InputError, match=r"broken\.jpg cannot be read: "):
        jepa.load(run.path, device="cpu").embed([tmp_path / "broken.jpg"])
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        jepa.load(run.path, device="cpu").embed([], batch_size=0)


def test_wide_images_are_cropped_to_the_center():
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 200
    (batch,) = read_batches([image], 3, (10, 10), 4)
    assert bool((batch == 200).all())


def test_predictions_of_tokens_are_those_of_training(run):
    """`jepa.predict` gives what the objective predicts in a training step."""
    model = jepa.load(run.path, device="cpu")
    objective = model.objective
    images = torch.rand(3, 3, 16, 16)
    context, targets = torch.tensor([[0, 1, 4], [2, 3, 6], [8, 9, 12]]), torch.tensor([10, 11])
    tokens = model.context_tokens(images, context, batch_size=2)
    with torch.no_grad():
        assert torch.allclose(tokens, objective.context(images, context).x, atol=1e-6)
        assert not torch.allclose(tokens, objective.target(images, context).x, atol=1e-3)
    predicted = jepa.predict(model, tokens, positions=context, targets=targets)
    assert predicted.shape == (3, 2, 32)
    one = jepa.predict(model, tokens[1:2], positions=context[1], targets=[10, 11])
    assert torch.allclose(predicted[1:2], one, atol=1e-6)
    swapped = jepa.predict(model, tokens, positions=context, targets=[11, 10])
    assert torch.allclose(swapped.flip(1), predicted, atol=1e-5)


def test_predictions_of_movements_are_those_of_training(saccade_run):
    model = jepa.load(saccade_run.path, device="cpu")
    objective, _, _ = load_objective(saccade_run)
    objective.eval()
    images = torch.rand(2, 3, 16, 16)
    embedded = model.context_tokens(images)
    assert embedded.shape == (2, 12)
    movement = jepa.Movement(shift=torch.tensor([[0.1, 0.0], [0.0, -0.1]]), rotation=torch.tensor([5.0, -5.0]))
    angle = torch.tensor([math.radians(5), -math.radians(5)])
    pose = Pose(movement.shift, angle, torch.ones(2))
    with torch.no_grad():
        expected = objective.predict(embedded, pose)
    assert torch.allclose(jepa.predict(model, embedded, movement=movement), expected, atol=1e-5)
    single = jepa.predict(model, embedded[:1], movement=jepa.Movement(shift=(0.1, 0), rotation=5))
    assert torch.allclose(single, expected[:1], atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"movement": jepa.Movement()}, "an I-JEPA predicts from positions"),
        ({"positions": [0, 1]}, "an I-JEPA predicts from positions"),
        ({"positions": [0, 1], "targets": [16]}, "must be between 0 and 15, .* grid of 4x4 tokens"),
        ({"positions": [0, -1], "targets": [3]}, "must be between 0 and 15"),
        ({"positions": [0, 0], "targets": [3]}, "must be different"),
        ({"positions": [0, 1], "targets": []}, "must not be empty|must be integers"),
        ({"positions": [0.5, 1.0], "targets": [3]}, "must be integers"),
        ({"positions": [0, 1, 2], "targets": [3]}, r"context tokens must be \(B, 3, 32\)"),
        ({"positions": [[0, 1]] * 3, "targets": [3]}, "with a row for each of 2 images"),
    ],
)
def test_wrong_positions(run, arguments, sentence):
    model = jepa.load(run.path, device="cpu")
    with pytest.raises(InputError, match=sentence):
        jepa.predict(model, torch.zeros(2, 2, 32), **arguments)
    with pytest.raises(InputError, match="must be between 0 and 15"):
        model.context_tokens(torch.zeros(1, 3, 16, 16), [99])
    with pytest.raises(InputError, match="give the positions of the context"):
        model.context_tokens(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"positions": [0], "targets": [1]}, "a Saccade JEPA predicts from a movement"),
        ({"movement": jepa.Movement(rotation=40)}, "trained with shifts .* rotations up to 10°.* got .* 40°"),
        ({"movement": jepa.Movement(zoom=1.5)}, "zooms between 1 and 1"),
        ({"movement": jepa.Movement(shift=(3, 0))}, "got up to 3 view sides"),
        ({"movement": jepa.Movement(rotation=math.nan)}, "got up to"),
        ({"movement": jepa.Movement(rotation=torch.zeros(3))}, "or 2 of each"),
    ],
)
def test_wrong_movements(saccade_run, arguments, sentence):
    model = jepa.load(saccade_run.path, device="cpu")
    with pytest.raises(InputError, match=sentence):
        jepa.predict(model, torch.zeros(2, 12), **arguments)
    with pytest.raises(InputError, match=r"the predictor takes \(B, D\) embeddings with D = 12"):
        jepa.predict(model, torch.zeros(2, 5, 12), movement=jepa.Movement())
    with pytest.raises(InputError, match="encodes whole views"):
        model.context_tokens(torch.zeros(1, 3, 16, 16), [0])


def test_public_names():
    assert set(jepa.__all__) == {"Model", "Movement", "__version__", "load", "predict"}
    for name in jepa.__all__:
        assert getattr(jepa, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'encode'"):
        jepa.encode  # noqa: B018


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_all_precisions(run, dtype):
    model = jepa.load(run.path, device="cpu")
    image = torch.rand(3, 20, 24, generator=torch.Generator().manual_seed(0))
    expected = model.embed(image)
    torch.testing.assert_close(model.embed(image.to(dtype)), expected, atol=0.05, rtol=0)


def test_gray_and_color_floats_are_converted_as_files_are(run, tiny, tmp_path):
    from jepa.config import DataConfig
    from tests.conftest import override

    color = jepa.load(run.path, device="cpu")
    gray_run = train(
        override(run.config, data=DataConfig(source=run.config.data.source, image_size=16, channels=1), steps=1),
        tmp_path / "gray",
    )
    gray = jepa.load(gray_run.path, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    floats = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    torch.testing.assert_close(gray.embed(floats), gray.embed(pixels), atol=0.02, rtol=0)  # without rounding
    torch.testing.assert_close(color.embed(floats[:1]), color.embed(pixels[..., :1]), atol=1e-5, rtol=0)
    assert repr(gray).startswith("Model(ViT of the run")
    for shape in ((1, 0, 8), (3, 8, 0)):
        with pytest.raises(InputError, match="at least one pixel"):
            gray.embed(torch.zeros(shape))
