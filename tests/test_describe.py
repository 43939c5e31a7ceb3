import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jepa.cli import main
from jepa.config import Config, InputError
from jepa.data import CACHE, Listing, Survey, look, open_listing
from jepa.describe import describe, situation
from jepa.plan import plan
from jepa.runs import Run
from tests.conftest import toy_images, write_parquet
from tests.zoo import photo, write_zoo

CELL, GAP, CAPTION = 144, 8, 16  # of the contact sheet


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    out, err = capsys.readouterr()
    return stop.value.code, out, err


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


@pytest.fixture
def pets(tmp_path) -> Path:
    """Two classes in two splits, and something else beside them."""
    for place, seeds in {"train/cat": range(5), "train/dog": range(5, 8), "val/cat": (8, 9), "val/dog": (10,)}.items():
        (tmp_path / "pets" / place).mkdir(parents=True)
        for number, seed in enumerate(seeds):
            photo(30, 20, seed).save(tmp_path / "pets" / place / f"{number}.png")
    for name in ("notes.txt", "more.txt", "film.mp4"):
        (tmp_path / "pets" / "train" / "cat" / name).touch()
    return tmp_path / "pets"


def test_a_description_has_what_is_there_and_what_is_not(pets, tmp_path):
    shutil.copy(pets / "train" / "cat" / "0.png", pets / "train" / "dog" / "copy.png")
    (pets / "train" / "dog" / "torn.jpg").write_bytes(b"torn")
    text = describe(str(pets), tmp_path / "deep" / "sheet.png")
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == [str(pets)]
    nbytes = sum(file.stat().st_size for kind in ("*.png", "*.jpg") for file in pets.glob(f"train/*/{kind}"))
    assert " ".join(lines[1]) == f"train 10 images, {nbytes / 1e3:.0f} kB, 2 classes: cat 5, dog 5"
    assert " ".join(lines[2]).startswith("validation 3 images, ")
    assert " ".join(lines[2]).endswith(" 2 classes: cat 2, dog 1")
    words = " ".join(text.split())
    for part in (
        "train, all of them",
        "sizes 30x20 pixels, all of them",
        "colours RGB 9",
        "formats PNG 9",
        "broken 1: train/dog/torn.jpg: ",
        "duplicates 1: train/cat/0.png = train/dog/copy.png",
        "passed over 2 .txt, 1 .mp4",
        f"contact sheet: {tmp_path / 'deep' / 'sheet.png'}",
    ):
        assert part in words
    with Image.open(tmp_path / "deep" / "sheet.png") as sheet:
        assert np.asarray(sheet.convert("L")).std() > 10
        assert sheet.height == 2 * (CELL + CAPTION + GAP) + GAP


def test_a_description_of_photos_without_labels(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    for number in range(12):
        photo(40 + number, 30 + number, number).save(tmp_path / "photos" / f"{number}.jpg")
    monkeypatch.setattr("jepa.describe.LOOKED_AT", 5)
    words = " ".join(describe(str(tmp_path / "photos"), tmp_path / "sheet.jpg").split())
    assert "train 12 images, " in words
    assert ", no labels" in words
    assert "train, 5 of them, spread evenly (--all: all)" in words
    assert "sizes 5 sizes from 40x30 to " in words
    assert "broken none" in words
    assert "duplicates none by content" in words
    assert "passed over" not in words
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.height == CELL + 2 * GAP
    words = " ".join(describe(str(tmp_path / "photos"), tmp_path / "sheet.jpg", everything=True).split())
    assert "train, all of them" in words
    assert "sizes 12 sizes from 40x30 to 51x41, " in words


def test_many_names_are_cut_short(tmp_path):
    for number in range(9):
        folder = tmp_path / "many" / f"class{number}"
        folder.mkdir(parents=True)
        for image in range(9 - number):
            photo(8, 8, 10 * number + image).save(folder / f"{image}.png")
        (folder / "torn.jpg").write_text(f"torn {number}")
    lines = describe(str(tmp_path / "many"), tmp_path / "sheet.png").splitlines()
    assert lines[1].endswith("9 classes: class0 10, class1 9, class2 8, class3 7, class4 6, …")
    assert "broken      9: class0/torn.jpg" in lines[8]
    assert [line.split("/")[0].strip() for line in lines[9:13]] == ["class1", "class2", "class3", "class4"]
    assert lines[13].strip() == "…"


def test_a_source_of_broken_images_has_a_description_and_no_plan(tmp_path, capsys):
    (tmp_path / "broken").mkdir()
    for number in range(3):
        (tmp_path / "broken" / f"{number}.jpg").write_text(f"no image {number}")
    text = describe(str(tmp_path / "broken"), tmp_path / "sheet.png")
    assert "train       3 images, " in text
    assert all(f"{number}.jpg: " in text for number in range(3))
    assert "contact sheet" not in text
    assert not (tmp_path / "sheet.png").exists()
    with pytest.raises(InputError, match=r"none of 3 images of .* can be read: 0.jpg: "):
        situation(str(tmp_path / "broken"), "cpu")
    source = str(tmp_path / "broken")
    code, _, err = call(capsys, "train", "ijepa-folder", "--data", source, "--run", str(tmp_path / "run"))
    assert code == 2
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_source_without_a_training_split_is_described_and_not_planned(tmp_path):
    write_parquet(tmp_path / "only" / "test-0.parquet", *toy_images(4))
    assert "test        4 images" in describe(str(tmp_path / "only"), tmp_path / "sheet.png")
    with pytest.raises(InputError, match="has no training split: it has test only"):
        situation(str(tmp_path / "only"), "cpu")


def test_a_situation_is_what_was_seen(pets, toy_source, written):
    now, line = situation(str(pets), "cpu")
    assert (now.count, now.height, now.width, now.one_aspect, now.grey, now.device) == (8, 20, 30, True, False, "cpu")
    assert line.startswith("8 images, 2 classes, 30x20 pixels in the middle of 8, ")
    now, line = situation(toy_source, "cpu")
    assert (now.count, now.height, now.width) == (80, 16, 16)
    now, line = situation(str(written[0]), "cpu")
    assert (now.count, now.height, now.width, now.one_aspect) == (34, 40, 48, True)
    assert "34 images, no labels, 48x40 pixels" in line


def test_data_describes_and_writes_the_sheet_here(capsys, pets, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    code, out, err = call(capsys, "data", str(pets))
    assert (code, err) == (0, "")
    assert "2 classes: cat 5, dog 3" in out
    place = Path(out.splitlines()[-1].removeprefix("contact sheet: "))
    assert place.name == "contact-sheet-pets.jpg"
    with Image.open(place) as sheet:
        sheet.load()
    code, out, _ = call(capsys, "data", "../pets", "--all", "--sheet", "other/name.png")
    assert code == 0
    assert {str(path) for path in Path().rglob("*.*g")} == {str(place), "other/name.png"}


def test_data_of_the_sample(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("jepa.describe.LOOKED_AT", 20)
    code, out, _ = call(capsys, "data", "sample", "--sheet", str(tmp_path / "sheet.png"))
    words = " ".join(out.split())
    assert code == 0
    assert "train 10,000 images, " in words
    assert "test 2,000 images, " in words
    assert "10 classes: " in words
    assert "20 of them, spread evenly" in words
    assert "sizes 28x28 pixels, all of them colours RGB 20 formats WEBP 20" in words


def test_data_that_is_nowhere_is_one_sentence(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for source, message in {"nowhere": "there is nothing at nowhere", "empty": "has no images in it"}.items():
        code, out, err = call(capsys, "data", source)
        assert (code, out) == (2, "")
        assert err.startswith("jepa: ")
        assert message in err
        assert err.count("\n") == 1
    assert not list(tmp_path.rglob("contact-sheet*"))


@pytest.fixture
def started(monkeypatch) -> list[tuple[Config, Path]]:
    """The runs that `jepa train` starts, none of which trains."""
    runs: list[tuple[Config, Path]] = []
    monkeypatch.setattr("jepa.train.train", lambda config, path, resume: runs.append((config, path)))
    return runs


@pytest.mark.parametrize(
    ("flags", "view"),
    [
        ([], None),
        (["--data.image-size", "96"], (96, 96)),
        (["--data.image-size=90"], (90, 90)),
        (["--data.image-size", "96", "128"], (96, 128)),
        (["--data.image-size", "96", "128", "--seed", "3"], (96, 128)),
        (["--seed", "3", "--data.image-size", "28", "--device", "cpu"], (28, 28)),
    ],
)
def test_training_on_a_folder_is_planned(capsys, started, pets, tmp_path, flags, view):
    run = tmp_path / "runs" / "r"
    code, _, err = call(
        capsys, "train", "ijepa-folder", "--data", str(pets), "--run", str(run), "--device", "cpu", *flags
    )
    assert code == 0, err
    assert (run.parent / CACHE.name).is_dir()  # the index lies beside the run
    now, line = situation(str(pets), "cpu")
    planned, choices = plan(str(pets), now, view)
    seed = 3 if "--seed" in flags else 0
    assert started == [(dataclasses.replace(planned, device="cpu", seed=seed), run)]
    lines = err.splitlines()
    assert line in lines[0]
    assert [text.split() for text in lines[1:]] == [
        [choice.flag, *choice.value.split(), *choice.reason.split()] for choice in choices
    ]


def test_what_is_given_is_not_planned(capsys, started, pets, tmp_path):
    given = [
        "--steps",
        "7",
        "--batch-size",
        "4",
        "--backbone.patch",
        "16",
        "--data.canvas",
        "50",
        "40",
        "--data.channels",
    ]
    code, _, err = call(
        capsys, "train", "ijepa-folder", f"--data={pets}", "--device=cpu", f"--run={tmp_path / 'r'}", *given, "1"
    )
    assert code == 0, err
    config = started[0][0]
    assert (config.steps, config.batch_size, config.backbone.patch) == (7, 4, 16)
    assert (config.data.canvas, config.data.channels) == ((50, 40), 1)


def test_a_plan_needs_images_and_is_made_only_for_its_recipe(capsys, started, monkeypatch, pets, tmp_path):
    code, _, err = call(capsys, "train", "ijepa-folder", "--run", str(tmp_path / "r"))
    assert code == 2
    assert err == "jepa: ijepa-folder chooses its settings from your images; say which: --data PATH/TO/FOLDER\n"
    monkeypatch.setattr("jepa.describe.situation", None)  # any look at images ends in a traceback
    assert not call(capsys, "train", "ijepa-folder", "--help")[0]
    assert call(capsys, "train", "demo", "--data", str(pets), "--run", str(tmp_path / "r"))[0] == 0
    assert started[0][0].name == "demo"


def test_one_process_alone_says_the_plan(capsys, started, monkeypatch, pets, tmp_path):
    monkeypatch.setenv("RANK", "1")
    code, _, err = call(
        capsys, "train", "ijepa-folder", "--data", str(pets), "--device", "cpu", "--run", str(tmp_path / "r")
    )
    assert (code, err) == (0, "")
    assert len(started) == 1


def test_a_planned_run_trains_and_goes_on_with_its_settings(capsys, monkeypatch, pets, tmp_path):
    command = ["train", "ijepa-folder", "--data", str(pets), "--run", str(tmp_path / "run")]
    small = ["--device", "cpu", "--backbone.size", "32x1x2", "--objective.predictor", "16x1x2", "--eval-every", "0"]
    code, _, err = call(capsys, *command, "--steps", "2", *small)
    assert code == 0, err
    before = Run.open(tmp_path / "run").config
    monkeypatch.setattr("jepa.describe.situation", None)
    code, _, err = call(capsys, *command, "--resume", "--steps", "3")
    assert code == 0, err
    after = Run.open(tmp_path / "run")
    assert after.config == dataclasses.replace(before, steps=3)
    assert after.load()[1]["step"] == 3
