import re
import shutil

import numpy as np
import pytest
from PIL import Image

from jepa.cli import main
from jepa.config import read_config
from jepa.data import contact_sheet, look, open_listing
from jepa.describe import describe, situation
from tests.zoo import BROKEN, photo, write_zoo


@pytest.fixture
def zoo(tmp_path):
    write_zoo(tmp_path / "zoo")
    shutil.copy(tmp_path / "zoo" / "plain.png", tmp_path / "zoo" / "copy of plain.png")
    return tmp_path / "zoo"


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_a_survey_of_a_zoo(zoo):
    survey = look(open_listing(str(zoo))["train"], None)
    assert {line.split(": ")[0] for line in survey.broken} == BROKEN
    assert {"copy of plain.png", "deep/er/ünïcode ✓.png", "plain.png"} in map(set, survey.duplicates)
    sizes = {survey.files.name(one.row): one.size for one in survey.readable}
    assert sizes["turned.jpg"] == (40, 48)
    assert sizes["huge.jpg"] == (4000, 3000)
    grey = {survey.files.name(one.row) for one in survey.readable if one.grey}
    assert {"grey.jpg", "bits.png", "sixteen.png", "floats.tif", "grey-alpha.png"} <= grey
    assert "plain.jpg" not in grey
    assert survey.middle == (48, 40)


def test_a_description_names_everything(zoo, tmp_path):
    text = describe(str(zoo), tmp_path / "sheet.jpg")
    for words in ("35 images", "no labels", "1x1", "4000x3000", "all of them", "RGB", "CMYK 2", "JPEG", "WEBP"):
        assert words in text
    assert re.search(r"broken +6: ", text)
    assert re.search(r"duplicates +\d+: copy of plain.png = ", text)
    assert re.search(r"passed over +.*1 \.txt", text)
    sheet = np.asarray(Image.open(tmp_path / "sheet.jpg"))
    assert sheet.std() > 20


def test_splits_classes_and_captions(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for name in ("cat", "a class with a name that is far too long for its cell"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for number in range(count):
                photo(seed=number).save(tmp_path / "pets" / split / name / f"{number}.png")
    text = describe(str(tmp_path / "pets"), tmp_path / "sheet.png")
    assert re.search(r"train +6 images, .*2 classes: ", text)
    assert re.search(r"test +4 images", text)
    assert "48x40 pixels, all of them" in text
    listing = open_listing(str(tmp_path / "pets"))["train"]
    labelled = contact_sheet(listing, look(listing, None))
    listing.labels = None
    assert labelled.height > contact_sheet(listing, look(listing, None)).height


def test_a_look_is_spread_evenly(tmp_path):
    for number in range(30):
        photo(seed=number).save(tmp_path / f"{number:02}.png")
    listing = open_listing(str(tmp_path))["train"]
    assert [one.row for one in look(listing, 4).seen] == [0, 10, 19, 29]
    text = describe(str(tmp_path), tmp_path / "sheet.png")
    assert "duplicates  none by content" in text
    assert "broken      none" in text


def test_a_folder_of_broken_files_is_described(tmp_path):
    (tmp_path / "bad").mkdir()
    for number in range(3):
        (tmp_path / "bad" / f"{number}.jpg").write_text(f"no image {number}")
    text = describe(str(tmp_path / "bad"), tmp_path / "sheet.png")
    assert re.search(r"broken +3: 0.jpg: is no image", text)
    assert not (tmp_path / "sheet.png").exists()


def test_the_commands(zoo, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, "data", str(zoo))
    assert code == 0
    assert out.endswith("contact sheet: contact-sheet-zoo.jpg\n")
    assert (tmp_path / "contact-sheet-zoo.jpg").is_file()
    code, _, err = call(capsys, "data", "nowhere")
    assert code == 2
    assert err.startswith("jepa: there is nothing at nowhere")
    code, _, err = call(capsys, "train", "ijepa-folder")
    assert code == 2
    assert "say which: --data PATH/TO/FOLDER" in err


def test_a_planned_run_is_trained_and_resumed(zoo, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--data", str(zoo), "--steps", "3", "--eval-every", "0", "--data.max-broken", "1", "--device", "cpu"]
    code, _, err = call(capsys, "train", "ijepa-folder", *flags, "--data.image-size", "32", "48")
    assert code == 0, err
    config = read_config(tmp_path / "runs" / "ijepa-folder" / "config.json")
    assert config.data.size == (32, 48)
    assert config.steps == 3
    shown = dict(re.findall(r"  (--\S+) (\S.*?)  +\S", err))
    assert shown["--data.image-size"] == "32 48"
    assert int(shown["--batch-size"]) == config.batch_size
    assert shown["--backbone.size"] == config.backbone.size
    monkeypatch.setattr("jepa.describe.look", None)  # a resumed run does not look again
    code, _, err = call(capsys, "train", "ijepa-folder", *flags[:2], "--resume", "--steps", "5")
    assert code == 0, err


def test_the_situation_of_grey_photos_of_one_aspect(tmp_path):
    for number in range(10):
        photo(90, 60, seed=number).convert("L").convert("RGB").save(tmp_path / f"{number}.png")
    now, said = situation(str(tmp_path), "cpu")
    assert (now.count, now.height, now.width, now.one_aspect, now.grey) == (10, 60, 90, True, True)
    assert said.startswith("10 images, no labels, 90x60 pixels in the middle of 10, ")
