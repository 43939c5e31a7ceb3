"""Near-duplicates of test images among training images, planted among real photos."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from jepa.data import open_dataset
from jepa.evaluate import evaluate_run
from jepa.evaluation.features import Subset
from jepa.evaluation.near_duplicates import NearDuplicates, find_near_duplicates
from jepa.evaluation_run import EvaluationRun
from jepa.report.html import write_report
from jepa.report.plot_neighbors import neighbors
from jepa.report.text import as_text
from jepa.train import train
from tests.conftest import override, write_parquet

SIDE = 48


def photo(seed: int, side: int = SIDE) -> Image.Image:
    """Draw an image with structure at all scales, as photos have."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize((side, side), 3), float)
        for n in (3, 6, 12, 24)
    ]
    mixed = sum(layer * weight for layer, weight in zip(layers, (0.4, 0.3, 0.2, 0.1), strict=True))
    return Image.fromarray(mixed.clip(0, 250).astype(np.uint8))


def jpeg(image: Image.Image, quality: int = 75) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def resized(image: Image.Image, side: int) -> Image.Image:
    return image.resize((side, side), 3).resize(image.size, 3)


def gradient(slope: float, side: int = SIDE) -> Image.Image:
    """Draw a sky: brighter at the bottom, with a curvature, and a little to one side."""
    y, x = np.mgrid[0:side, 0:side] / side
    values = np.stack([90 + 60 * y + slope * x + 20 * y**2] * 3, -1)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def with_object(image: Image.Image, corner: tuple[int, int], color: tuple[int, int, int]) -> Image.Image:
    copy = image.copy()
    copy.paste(color, (*corner, corner[0] + 9, corner[1] + 9))
    return copy


def write_images(folder, train_images, test_images) -> str:
    """Write a training and a test split, each with a hundred more photos."""
    for split, images, seed in (("train", train_images, 1000), ("test", test_images, 2000)):
        arrays = [np.asarray(image.convert("RGB")) for image in [*images, *(photo(seed + i) for i in range(100))]]
        write_parquet(folder / f"{split}.parquet", arrays, [i % 2 for i in range(len(arrays))])
    return str(folder)


def find(config, source: str, folder) -> NearDuplicates:
    data = override(config, data__source=source).data
    splits = (open_dataset(data, split, folder / "cache") for split in ("train", "test"))
    return find_near_duplicates(*(Subset(dataset, torch.arange(len(dataset))) for dataset in splits))


def test_copies_are_found_however_they_were_saved(tiny, tmp_path):
    originals = [photo(i) for i in range(7)]
    brighter = Image.fromarray(np.asarray(originals[3]) + np.uint8(2))
    copies = [
        originals[0],
        jpeg(originals[1]),
        resized(originals[2], 46),
        brighter,
        jpeg(originals[4], 90),
        resized(originals[5], 51),
        jpeg(resized(brighter, 47)),
    ]
    originals[6] = originals[3]
    found = find(tiny, write_images(tmp_path / "data", originals[:6], copies), tmp_path)
    assert found.pairs.tolist() == [[i, i] for i in range(6)] + [[6, 3]]
    assert str(found) == "7 of 107 test images have a near-duplicate among the training images"


def test_images_that_only_look_alike_are_no_duplicates(tiny, tmp_path):
    background = photo(0)
    flat = [Image.new("RGB", (SIDE, SIDE), (100, 120, 140)), Image.new("RGB", (SIDE, SIDE), (0, 0, 0))]
    pairs = [
        *((image, image) for image in flat),
        (flat[0], Image.new("RGB", (SIDE, SIDE), (101, 120, 140))),
        (gradient(10), gradient(14)),
        (gradient(-10), jpeg(gradient(-12))),
        (with_object(background, (5, 8), (240, 60, 30)), with_object(background, (30, 25), (240, 60, 30))),
        (with_object(background, (20, 20), (240, 240, 240)), with_object(background, (20, 20), (20, 20, 20))),
        (photo(5), photo(5).transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        (photo(6), photo(6).filter(ImageFilter.GaussianBlur(5))),
    ]
    found = find(tiny, write_images(tmp_path / "data", *zip(*pairs, strict=True)), tmp_path)
    assert found.pairs.tolist() == []
    assert str(found) == "0 of 109 test images have a near-duplicate among the training images"


def test_objects_of_one_shape_are_no_duplicates_but_copies_of_them_are(tiny, tmp_path):
    """As in Fashion-MNIST, the silhouette is always the same, and only faint textures differ."""
    shape = with_object(Image.new("RGB", (SIDE, SIDE)), (19, 12), (200, 200, 200)).resize((SIDE, SIDE), 3)

    def clothes(seed: int) -> Image.Image:
        return Image.blend(shape, photo(seed), 0.06)

    train_images, test_images = [clothes(i) for i in range(40)], [clothes(i) for i in range(100, 140)]
    source = write_images(tmp_path / "data", train_images, [*test_images, jpeg(train_images[7], 90)])
    assert find(tiny, source, tmp_path).pairs.tolist() == [[40, 7]]


def test_limits_are_stated(tiny, tmp_path, monkeypatch):
    source = write_images(tmp_path / "data", [photo(0)], [photo(0), photo(0)])
    monkeypatch.setattr("jepa.evaluation.near_duplicates.MAX_TRAIN", 50)
    monkeypatch.setattr("jepa.evaluation.near_duplicates.MAX_TEST", 51)
    found = find(tiny, source, tmp_path)
    assert found.pairs.tolist() == [[0, 0]]
    assert str(found) == "1 of 51 test images has a near-duplicate among 50 of the training images"


@pytest.mark.parametrize("count", [0, 2])
def test_near_duplicates_are_reported(tiny, tmp_path, count, short_report):
    short_report("neighbors")
    copies = [photo(i) for i in range(count)]
    config = override(tiny, data__source=write_images(tmp_path / "data", [jpeg(x) for x in copies], copies))
    run = EvaluationRun.open(train(config, tmp_path / "run").path)
    result = evaluate_run(run)
    text = f"{count} of {100 + count} test images have a near-duplicate among the training images"
    assert result["near_duplicates"] | {"examples": []} == {
        "count": count,
        "test": 100 + count,
        "train": 100 + count,
        "examples": [],
    }
    assert len(result["near_duplicates"]["examples"]) == count
    printed = " ".join(as_text(result, run.folder.path).split())
    assert (f"Note: {text}" in printed) == (count > 0)
    assert text in write_report(run, result).read_text()
    titles = [axes.get_title() for axes in neighbors(run).axes]
    assert titles.count("test") == titles.count("train") == count
