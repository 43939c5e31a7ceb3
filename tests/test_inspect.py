import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jepa.config import InputError
from jepa.data import CACHE, SplitIndex, open_source
from jepa.data.contact_sheet import contact_sheet
from jepa.data.describe import inspect_source
from jepa.data.duplicates import find_duplicates
from jepa.data.inspect import InspectionResult, inspect_images, summarize_source
from tests.conftest import toy_images, write_parquet
from tests.test_cli import call
from tests.zoo import BROKEN, photo, write_pets, write_zoo

CELL, GAP, CAPTION = 144, 8, 16  # dimensions of the contact sheet in pixels


def index_of(images: list[Image.Image], labels: list[int] | None = None, classes: tuple[str, ...] = ()) -> SplitIndex:
    """Build an in-memory index of images."""
    files = []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        files.append(buffer.getvalue())
    return SplitIndex.from_files(files, labels, classes)


def training_index(source: Path) -> SplitIndex:
    return open_source(str(source)).open("train")


def plain(color: int, width: int = 20, height: int = 20) -> Image.Image:
    return Image.new("RGB", (width, height), (color, 255 - color, color // 2))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> tuple[Path, set[str]]:
    """Return the folder of the zoo and the names of its readable images."""
    folder = tmp_path_factory.mktemp("photos") / "zoo"
    return folder, set(write_zoo(folder))


@pytest.fixture(scope="module")
def result(zoo) -> InspectionResult:
    """Inspect all images of the zoo."""
    source = open_source(str(zoo[0]), zoo[0].parent / CACHE.name)
    assert source.splits() == ["train"]
    return inspect_images(source.open("train"), None)


@pytest.fixture
def pets(tmp_path) -> Path:
    return write_pets(tmp_path / "pets")


def test_broken_files_are_listed_with_a_reason(zoo, result):
    reasons = dict(line.split(": ", 1) for line in result.broken)
    assert reasons.keys() == BROKEN
    assert all(reason.strip() and "\n" not in reason for reason in reasons.values())
    readable = {result.files.name(image.index) for image in result.readable}
    assert readable == zoo[1]
    assert [image.index for image in result.images] == list(range(len(result.files)))


def test_a_missing_file_is_broken_and_not_a_duplicate(tmp_path):
    photo().save(tmp_path / "here.png")
    (tmp_path / "list.txt").write_text("gone.png\nhere.png\nlost.png\n")
    index = training_index(tmp_path / "list.txt")
    result = inspect_images(index, None)
    assert [line.split(": ")[0] for line in result.broken] == ["gone.png", "lost.png"]
    assert find_duplicates({"train": index}, None).groups == []


def test_sizes_formats_and_modes_are_those_of_the_files(zoo, result):
    images = {result.files.name(image.index): image for image in result.readable}
    sizes = {"pixel.png": (1, 1), "thin.png": (200, 2), "huge.jpg": (2400, 1800), "turned.jpg": (40, 48)}
    assert {name: image.size for name, image in images.items() if image.size != (48, 40)} == sizes
    for name, image in images.items():
        with Image.open(zoo[0] / name) as opened:
            assert (image.mode, image.format) == (opened.mode, opened.format)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_sizes_follow_the_exif_orientation(tmp_path, kind):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo(30, 20).save(tmp_path / f"{orientation}.{kind}", exif=exif)
    result = inspect_images(training_index(tmp_path), None)
    assert [image.size for image in result.images] == [(30, 20)] * 4 + [(20, 30)] * 4
    assert result.median_aspect_fraction == 0.5


def test_images_with_equal_channels_are_gray(result):
    gray = {result.files.name(image.index): image.gray for image in result.readable}
    assert all(gray[name] for name in ("gray.jpg", "bits.png", "sixteen.png", "floats.tif", "gray-alpha.png"))
    assert not any(gray[name] for name in ("plain.jpg", "palette.png", "alpha.png", "cmyk.jpg", "pixel.png"))
    assert not result.gray
    pixels = np.asarray(photo().convert("L"))[..., None].repeat(3, 2)
    noisy = (pixels // 2 + np.random.default_rng(0).integers(0, 4, pixels.shape)).astype(np.uint8)
    tinted = (pixels // 2 + np.array([0, 0, 20])).astype(np.uint8)
    images = [Image.fromarray(array) for array in (pixels, noisy, tinted)]
    mixed = inspect_images(index_of(images), None)
    assert [image.gray for image in mixed.images] == [True, True, False]
    assert not mixed.gray
    assert inspect_images(index_of(images[:2]), None).gray


def test_duplicates_have_the_same_content_under_any_name(tmp_path):
    for number in range(4):
        photo(seed=number).save(tmp_path / f"{number}.png")
    (tmp_path / "copies").mkdir()
    for original, copy in {"1": "a", "3": "b"}.items():
        shutil.copy(tmp_path / f"{original}.png", tmp_path / "copies" / f"{copy}.png")
    shutil.copy(tmp_path / "3.png", tmp_path / "copies" / "c.jpg")
    photo(seed=0).save(tmp_path / "0.webp", lossless=True)  # identical pixels in a different format are not a duplicate
    index = training_index(tmp_path)
    groups = find_duplicates({"train": index}, None).within("train")
    assert [[index.files.name(image) for image in group] for group in groups] == [
        ["3.png", "copies/b.png", "copies/c.jpg"],
        ["1.png", "copies/a.png"],
    ]


@pytest.mark.parametrize(("count", "limit"), [(10_000, 64), (1000, 999), (100, 7), (5, 1), (3, 100), (3, None)])
def test_inspected_images_are_evenly_spaced(tmp_path, count, limit):
    Image.new("L", (2, 2)).save(tmp_path / "same.png")
    (tmp_path / "list.txt").write_text("same.png\n" * count)
    indices = [image.index for image in inspect_images(training_index(tmp_path / "list.txt"), limit).images]
    number = min(count, limit or count)
    assert indices == [i * count // number for i in range(number)]
    gaps = np.diff([*indices, count])
    assert gaps.min() >= 1
    assert np.ptp(gaps) <= 1


def test_the_median_size_and_its_aspect_ratio():
    sizes = [(10, 90), (90, 70), (30, 40), (20, 20), (31, 40), (60, 80), (300, 400)]
    result = inspect_images(index_of([plain(9, *size) for size in sizes]), None)
    assert result.median_size == (31, 40)
    assert result.median_aspect_fraction == pytest.approx(1 / 7)
    result = inspect_images(index_of([plain(9, *size) for size in [(30, 40), (40, 30), (60, 80), (61, 80)]]), None)
    assert result.median_size == (60, 80)  # the third of four
    assert result.median_aspect_fraction == 0.75
    assert result.images_per_second > 0


def cell(sheet: Image.Image, number: int, caption: int, columns: int = 8) -> np.ndarray:
    """Return one image of the contact sheet with its caption."""
    left = GAP + (number % columns) * (CELL + GAP)
    top = GAP + number // columns * (CELL + caption + GAP)
    return np.asarray(sheet)[top : top + CELL + caption, left : left + CELL]


@pytest.mark.parametrize("classes", [(), ("black", "white")])
def test_every_image_has_its_place_on_the_contact_sheet(classes):
    colors = list(range(0, 250, 20))
    labels = [number % 2 for number in range(len(colors))] if classes else None
    index = index_of([plain(color) for color in colors], labels, classes)
    sheet = contact_sheet(index, inspect_images(index, None).sizes)
    caption = CAPTION if classes else 0
    assert sheet.size == (8 * (CELL + GAP) + GAP, 2 * (CELL + caption + GAP) + GAP)
    for number, color in enumerate(colors):
        pixels = cell(sheet, number, caption)
        assert (pixels[10 : CELL - 10, 10:-10] == (color, 255 - color, color // 2)).all()
        assert (pixels[CELL + 2 :].min(initial=255) < 100) == bool(classes)
    for number in range(len(colors), 16):
        assert (cell(sheet, number, caption) == 255).all()


def test_a_contact_sheet_has_at_most_64_evenly_spaced_images():
    index = index_of([plain(color) for color in range(200)])
    sheet = contact_sheet(index, inspect_images(index, None).sizes)
    assert sheet.height == 8 * (CELL + GAP) + GAP
    shown = [int(cell(sheet, number, 0)[70, 70, 0]) for number in range(64)]
    assert shown == [number * 200 // 64 for number in range(64)]


def test_images_on_the_contact_sheet_are_uncropped_and_upright(tmp_path):
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = (255, 0, 0)
    pixels[:, 20:] = (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotates clockwise by 90 degrees: the left half becomes the upper half
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "b.png", exif=exif)
    index = training_index(tmp_path)
    sheet = contact_sheet(index, inspect_images(index, None).sizes)
    landscape, portrait = cell(sheet, 0, 0), cell(sheet, 1, 0)
    assert np.array_equal(
        landscape[[70, 70, 20, 120], [10, 130, 70, 70]], [(255, 0, 0), (0, 0, 255), (255,) * 3, (255,) * 3]
    )
    assert np.array_equal(
        portrait[[10, 130, 70, 70], [70, 70, 20, 120]], landscape[[70, 70, 20, 120], [10, 130, 70, 70]]
    )


def test_a_long_class_name_is_shortened_to_the_width_of_its_image():
    index = index_of([plain(0)] * 3, [0, 1, 2], ("a" + "very" * 100 + "long name", "b", "猫 ünïcode"))
    sheet = np.asarray(contact_sheet(index, inspect_images(index, None).sizes))
    captions = sheet[GAP + CELL + 2 :]
    assert (captions[:, GAP + CELL + 2 : 2 * GAP + CELL] == 255).all()
    assert (captions[:, :GAP] == 255).all()
    assert captions[:, GAP : GAP + CELL].min() < 100


def test_every_image_of_the_zoo_is_on_the_contact_sheet(result):
    sheet = contact_sheet(SplitIndex(result.files, None, ()), result.sizes)
    for number in range(len(result.readable)):
        assert (cell(sheet, number, 0) < 250).any()


def test_a_source_is_described(pets, tmp_path):
    shutil.copy(pets / "train" / "cat" / "0.png", pets / "train" / "dog" / "copy.png")
    (pets / "train" / "dog" / "torn.jpg").write_bytes(b"torn")
    text = inspect_source(str(pets), tmp_path / "deep" / "sheet.png")
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == [str(pets)]
    nbytes = sum(file.stat().st_size for kind in ("*.png", "*.jpg") for file in pets.glob(f"train/*/{kind}"))
    assert " ".join(lines[1]) == f"train 10 images, {nbytes / 1e3:.0f} kB, 2 classes: cat 5, dog 5"
    assert " ".join(lines[2]).startswith("validation 3 images, ")
    assert " ".join(lines[2]).endswith(" 2 classes: cat 2, dog 1")
    words = " ".join(text.split())
    for part in (
        "train: all images inspected",
        "sizes all 30x20 pixels",
        "colors RGB 9",
        "formats PNG 9",
        "broken 1: train/dog/torn.jpg: ",
        "duplicates train: 1 group: train/cat/0.png = train/dog/copy.png",
        "files 16 in all: 13 images, 2 .txt, 1 .mp4",
        "validation: all images inspected",
        f"contact sheet: {tmp_path / 'deep' / 'sheet.png'}",
    ):
        assert part in words
    with Image.open(tmp_path / "deep" / "sheet.png") as sheet:
        assert np.asarray(sheet.convert("L")).std() > 10
        assert sheet.height == 2 * (CELL + CAPTION + GAP) + GAP


def test_photos_without_labels_are_described(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    for number in range(12):
        photo(40 + number, 30 + number, number).save(tmp_path / "photos" / f"{number}.jpg")
    monkeypatch.setattr("jepa.data.describe.MAX_INSPECTED_IMAGES", 5)
    words = " ".join(inspect_source(str(tmp_path / "photos"), tmp_path / "sheet.jpg").split())
    assert "train 12 images, " in words
    assert ", no labels" in words
    assert "train: 5 of 12 images inspected, evenly spaced (use --all to inspect all of them)" in words
    assert "sizes 5 sizes from 40x30 to " in words
    assert "broken none" in words
    assert "duplicates none" in words
    assert "ignored" not in words
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.height == CELL + 2 * GAP
    words = " ".join(inspect_source(str(tmp_path / "photos"), tmp_path / "sheet.jpg", inspect_all=True).split())
    assert "train: all images inspected" in words
    assert "sizes 12 sizes from 40x30 to 51x41 pixels, " in words


def test_long_lists_are_truncated(tmp_path):
    for number in range(9):
        folder = tmp_path / "many" / f"class{number}"
        folder.mkdir(parents=True)
        for image in range(9 - number):
            photo(8, 8, 10 * number + image).save(folder / f"{image}.png")
        (folder / "torn.jpg").write_text(f"torn {number}")
    lines = inspect_source(str(tmp_path / "many"), tmp_path / "sheet.png").splitlines()
    words = " ".join(" ".join(lines).split())
    assert "9 classes: class0 10, class1 9, class2 8, class3 7, class4 6, … files" in words
    start = next(i for i, line in enumerate(lines) if "broken      9: class0/torn.jpg" in line)
    assert [line.split("/")[0].strip() for line in lines[start + 1 : start + 5]] == [f"class{i}" for i in range(1, 5)]
    assert lines[start + 5].strip() == "…"


def test_a_source_of_broken_images_is_described_but_has_no_summary(tmp_path, capsys):
    (tmp_path / "broken").mkdir()
    for number in range(3):
        (tmp_path / "broken" / f"{number}.jpg").write_text(f"no image {number}")
    text = inspect_source(str(tmp_path / "broken"), tmp_path / "sheet.png")
    assert "train       3 images, " in text
    assert all(f"{number}.jpg: " in text for number in range(3))
    assert "contact sheet" not in text
    assert not (tmp_path / "sheet.png").exists()
    with pytest.raises(InputError, match=r"none of the 3 inspected images of .* can be read: 0.jpg: "):
        summarize_source(str(tmp_path / "broken"), "cpu")
    source = str(tmp_path / "broken")
    code, _, err = call(capsys, "train", "ijepa-folder", "--data", source, "--run", str(tmp_path / "run"))
    assert code == 2
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_source_without_a_training_split_is_described_but_has_no_summary(tmp_path):
    write_parquet(tmp_path / "only" / "test-0.parquet", *toy_images(4))
    assert "test        4 images" in inspect_source(str(tmp_path / "only"), tmp_path / "sheet.png")
    with pytest.raises(InputError, match="has no training split, only test"):
        summarize_source(str(tmp_path / "only"), "cpu")


def test_a_summary_has_the_properties_of_the_images(pets, toy_source, zoo):
    summary, line = summarize_source(str(pets), "cpu")
    assert (summary.count, summary.height, summary.width, summary.one_aspect) == (8, 20, 30, True)
    assert (summary.gray, summary.device) == (False, "cpu")
    assert line.startswith("8 images, 2 classes, median size 30x20 pixels, ")
    summary, _ = summarize_source(toy_source, "cpu")
    assert (summary.count, summary.height, summary.width) == (80, 16, 16)
    summary, line = summarize_source(str(zoo[0]), "cpu")
    assert (summary.count, summary.height, summary.width, summary.one_aspect) == (34, 40, 48, True)
    assert "34 images, no labels, median size 48x40 pixels" in line


def test_jepa_data_writes_the_contact_sheet_in_the_working_directory(capsys, pets, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    code, out, err = call(capsys, "data", str(pets))
    assert (code, err) == (0, "")
    assert "2 classes: cat 5, dog 3" in out
    path = Path(out.splitlines()[-1].removeprefix("contact sheet: "))
    assert path.name == "contact-sheet-pets.jpg"
    with Image.open(path) as sheet:
        sheet.load()
    code, out, _ = call(capsys, "data", "../pets", "--all", "--sheet", "other/name.png")
    assert code == 0
    assert {str(file) for file in Path().rglob("*.*g")} == {str(path), "other/name.png"}


def test_jepa_data_of_the_sample(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("jepa.data.describe.MAX_INSPECTED_IMAGES", 20)
    code, out, _ = call(capsys, "data", "sample", "--sheet", str(tmp_path / "sheet.png"))
    words = " ".join(out.split())
    assert code == 0
    assert "train 10,000 images, " in words
    assert "test 2,000 images, " in words
    assert "10 classes: " in words
    assert "train: 20 of 10,000 images inspected, evenly spaced" in words
    assert "sizes all 28x28 pixels colors RGB 20 formats WEBP 20" in words


def test_jepa_data_without_images_is_an_error_in_one_sentence(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for source, message in {"nowhere": "nowhere does not exist", "empty": "contains no images"}.items():
        code, out, err = call(capsys, "data", source)
        assert (code, out) == (2, "")
        assert err.startswith("jepa: ")
        assert message in err
        assert err.count("\n") == 1
    assert not list(tmp_path.rglob("contact-sheet*"))
