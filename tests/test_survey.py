import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from jepa.data import CACHE, Listing, Survey, contact_sheet, look, open_listing
from jepa.data.files import Files
from tests.zoo import BROKEN, photo, write_zoo

CELL, GAP, CAPTION = 144, 8, 16  # of the contact sheet


def listed(images: list[Image.Image], labels: list[int] | None = None, classes: tuple[str, ...] = ()) -> Listing:
    """A listing of images in memory."""
    rows = []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    files = Files(pa.chunked_array([pa.array(rows)]), Path(), sum(len(row["bytes"]) for row in rows))
    return Listing(files, None if labels is None else torch.tensor(labels), classes, {})


def train_of(source: Path) -> Listing:
    return open_listing(str(source))["train"]


def plain(colour: int, width: int = 20, height: int = 20) -> Image.Image:
    return Image.new("RGB", (width, height), (colour, 255 - colour, colour // 2))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, set[str]]:
    folder = tmp_path_factory.mktemp("photos") / "zoo"
    return folder, set(write_zoo(folder))


@pytest.fixture(scope="module")
def seen(written) -> Survey:
    return look(open_listing(str(written[0]), written[0].parent / CACHE.name)["train"], None)


def test_broken_files_are_named_with_a_reason(written, seen):
    reasons = dict(line.split(": ", 1) for line in seen.broken)
    assert reasons.keys() == BROKEN
    assert all(reason.strip() and "\n" not in reason for reason in reasons.values())
    readable = {seen.files.name(one.row) for one in seen.readable}
    assert readable == written[1]
    assert [one.row for one in seen.seen] == list(range(len(seen.files)))


def test_a_missing_file_is_broken_and_is_nobodys_duplicate(tmp_path):
    photo().save(tmp_path / "here.png")
    (tmp_path / "list.txt").write_text("gone.png\nhere.png\nlost.png\n")
    survey = look(train_of(tmp_path / "list.txt"), None)
    assert [line.split(": ")[0] for line in survey.broken] == ["gone.png", "lost.png"]
    assert survey.duplicates == []


def test_sizes_formats_and_modes_are_those_of_the_files(written, seen):
    names = {seen.files.name(one.row): one for one in seen.readable}
    sizes = {"pixel.png": (1, 1), "thin.png": (200, 2), "huge.jpg": (2400, 1800), "turned.jpg": (40, 48)}
    assert {name: one.size for name, one in names.items() if one.size != (48, 40)} == sizes
    for name, one in names.items():
        with Image.open(written[0] / name) as image:
            assert (one.mode, one.format) == (image.mode, image.format)
    assert sum(seen.modes.values()) == sum(seen.formats.values()) == len(names)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_sizes_are_upright(tmp_path, kind):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo(30, 20).save(tmp_path / f"{orientation}.{kind}", exif=exif)
    survey = look(train_of(tmp_path), None)
    assert [one.size for one in survey.seen] == [(30, 20)] * 4 + [(20, 30)] * 4
    assert survey.one_aspect == 0.5


def test_grey_is_what_looks_grey(seen):
    ones = {seen.files.name(one.row): one.grey for one in seen.readable}
    assert all(ones[name] for name in ("grey.jpg", "bits.png", "sixteen.png", "floats.tif", "grey-alpha.png"))
    assert not any(ones[name] for name in ("plain.jpg", "palette.png", "alpha.png", "cmyk.jpg", "pixel.png"))
    grey = np.asarray(photo().convert("L"))[..., None].repeat(3, 2)
    noisy = (grey // 2 + np.random.default_rng(0).integers(0, 4, grey.shape)).astype(np.uint8)
    tinted = (grey // 2 + np.array([0, 0, 20])).astype(np.uint8)
    pictures = [Image.fromarray(pixels) for pixels in (grey, noisy, tinted)]
    survey = look(listed(pictures), None)
    assert [one.grey for one in survey.seen] == [True, True, False]
    assert not survey.grey
    assert look(listed(pictures[:2]), None).grey
    assert not seen.grey


def test_duplicates_have_the_same_content_whatever_their_name(tmp_path):
    for number in range(4):
        photo(seed=number).save(tmp_path / f"{number}.png")
    (tmp_path / "copies").mkdir()
    for source, target in {"1": "a", "3": "b"}.items():
        shutil.copy(tmp_path / f"{source}.png", tmp_path / "copies" / f"{target}.png")
    shutil.copy(tmp_path / "3.png", tmp_path / "copies" / "c.jpg")
    photo(seed=0).save(tmp_path / "0.webp", lossless=True)  # the same picture in another file is none
    assert look(train_of(tmp_path), None).duplicates == [
        ["3.png", "copies/b.png", "copies/c.jpg"],
        ["1.png", "copies/a.png"],
    ]


@pytest.mark.parametrize(("count", "limit"), [(10_000, 64), (1000, 999), (100, 7), (5, 1), (3, 100), (3, None)])
def test_a_sample_is_spread_evenly(tmp_path, count, limit):
    Image.new("L", (2, 2)).save(tmp_path / "same.png")
    (tmp_path / "list.txt").write_text("same.png\n" * count)
    rows = [one.row for one in look(train_of(tmp_path / "list.txt"), limit, canvas=2).seen]
    assert len(rows) == min(count, limit or count)
    gaps = np.diff(rows)
    assert rows[0] == 0
    assert rows[-1] == (count - 1 if len(rows) > 1 else 0)
    assert gaps.min(initial=count) >= 1
    assert np.ptp(gaps) <= 1 if len(gaps) else True


def test_the_middle_and_its_aspect():
    sizes = [(10, 90), (90, 70), (30, 40), (20, 20), (31, 40), (60, 80), (300, 400)]
    survey = look(listed([plain(9, *size) for size in sizes]), None)
    assert survey.middle == (31, 40)
    assert survey.one_aspect == pytest.approx(1 / 7)
    survey = look(listed([plain(9, *size) for size in [(30, 40), (40, 30), (60, 80), (61, 80)]]), None)
    assert survey.middle == (60, 80)  # of four, the third
    assert survey.one_aspect == 0.75
    assert survey.rate > 0


def cell(sheet: Image.Image, number: int, caption: int, columns: int = 8) -> np.ndarray:
    """The place of an image on the sheet, with its caption."""
    left = GAP + (number % columns) * (CELL + GAP)
    top = GAP + number // columns * (CELL + caption + GAP)
    return np.asarray(sheet)[top : top + CELL + caption, left : left + CELL]


@pytest.mark.parametrize("classes", [(), ("black", "white")])
def test_every_image_lies_on_its_place_of_the_sheet(classes):
    colours = list(range(0, 250, 20))
    labels = [number % 2 for number in range(len(colours))] if classes else None
    listing = listed([plain(colour) for colour in colours], labels, classes)
    sheet = contact_sheet(listing, look(listing, None))
    caption = CAPTION if classes else 0
    assert sheet.size == (8 * (CELL + GAP) + GAP, 2 * (CELL + caption + GAP) + GAP)
    for number, colour in enumerate(colours):
        place = cell(sheet, number, caption)
        assert (place[10 : CELL - 10, 10:-10] == (colour, 255 - colour, colour // 2)).all()
        assert (place[CELL + 2 :].min(initial=255) < 100) == bool(classes)
    for number in range(len(colours), 16):
        assert (cell(sheet, number, caption) == 255).all()


def test_a_sheet_shows_at_most_64_images_of_all_that_were_seen():
    listing = listed([plain(colour) for colour in range(200)])
    sheet = contact_sheet(listing, look(listing, None))
    shown = [int(cell(sheet, number, 0)[70, 70, 0]) for number in range(64)]
    assert shown[0] == 0
    assert shown[-1] == 199
    assert set(np.diff(shown)) <= {3, 4}


def test_images_are_whole_and_upright_on_the_sheet(tmp_path):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = (255, 0, 0)
    pixels[:, 20:] = (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # show it a quarter turn clockwise: what was left is on top
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "b.png", exif=exif)
    listing = train_of(tmp_path)
    sheet = contact_sheet(listing, look(listing, None))
    lying, standing = cell(sheet, 0, 0), cell(sheet, 1, 0)
    assert np.array_equal(
        lying[[70, 70, 20, 120], [10, 130, 70, 70]], [(255, 0, 0), (0, 0, 255), (255,) * 3, (255,) * 3]
    )
    assert np.array_equal(standing[[10, 130, 70, 70], [70, 70, 20, 120]], lying[[70, 70, 20, 120], [10, 130, 70, 70]])


def test_a_long_class_name_stays_under_its_image():
    listing = listed([plain(0)] * 3, [0, 1, 2], ("a" + "very" * 100 + "long name", "b", "猫 ünïcode"))
    sheet = np.asarray(contact_sheet(listing, look(listing, None)))
    captions = sheet[GAP + CELL + 2 :]
    assert (captions[:, GAP + CELL + 2 : 2 * GAP + CELL] == 255).all()
    assert (captions[:, :GAP] == 255).all()
    assert captions[:, GAP : GAP + CELL].min() < 100


def test_every_image_of_a_zoo_is_on_the_sheet(seen):
    sheet = contact_sheet(Listing(seen.files, None, (), {}), seen)
    for number in range(len(seen.readable)):
        assert (cell(sheet, number, 0) < 250).any()
