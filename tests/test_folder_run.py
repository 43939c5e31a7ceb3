"""Complete runs on a folder of readable and unreadable files: training, resuming and evaluation."""

import json
from pathlib import Path

import pytest
import torch

from jepa.config import Config, DataConfig, InputError
from jepa.data import BrokenFileLog, Loader, open_dataset, step_order
from jepa.evaluate import evaluate
from jepa.report.text import as_text
from jepa.train import train
from tests.conftest import override, same_tensors, tiny_config
from tests.zoo import BROKEN, photo, write_zoo

CPU = torch.device("cpu")


@pytest.fixture
def zoo(tmp_path) -> Path:
    write_zoo(tmp_path / "zoo")
    return tmp_path / "zoo"


def folder_config(folder: Path, **settings) -> Config:
    """Return a config of 20 steps on all images of a folder, however many are unreadable."""
    config = tiny_config(str(folder), steps=20)
    return override(config, data__canvas=20, data__holdout=0.0, data__max_broken=1.0, **settings)


def write_photos(folder: Path, count: int) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        photo(seed=number).save(folder / f"{number:02}.png")


@pytest.mark.parametrize("settings", [{}, {"data__cache_gb": 0.0, "data__workers": 2}])
def test_training_and_evaluation_skip_and_list_broken_files(zoo, tmp_path, settings):
    run = train(folder_config(zoo, **settings), tmp_path / "run")
    lines = (tmp_path / "run" / "broken.txt").read_text().splitlines()
    assert {line.split(": ")[0] for line in lines} == BROKEN
    assert all(line.split(": ")[1] for line in lines)
    result = evaluate(run.path)
    assert {line.split(": ")[0] for line in result["unreadable"]} == BROKEN
    assert "Skipped: 6 unreadable images" in " ".join(as_text(result, run.path).split())
    assert "need labels" in " ".join(as_text(result, run.path).split())


def test_too_many_broken_files_stop_the_run_and_are_named(zoo, tmp_path):
    config = override(folder_config(zoo), data__max_broken=0.0)
    with pytest.raises(InputError, match=r"[2-6] of 34 images .* cannot be read, for example .*: .*--data.max-b"):
        train(config, tmp_path / "run")


def test_one_broken_file_never_stops_a_run(tmp_path):
    write_photos(tmp_path / "photos", 9)
    (tmp_path / "photos" / "broken.png").touch()
    train(override(folder_config(tmp_path / "photos"), data__max_broken=0.0), tmp_path / "run")


def test_a_broken_image_is_replaced_by_the_next_readable_one(tmp_path):
    write_photos(tmp_path, 20)
    for number in (7, 8, 19):
        (tmp_path / f"{number:02}.png").write_bytes(b"")
    data = DataConfig(source=str(tmp_path), image_size=16, canvas=16)
    pixels = open_dataset(data).read(torch.arange(20)).pixels
    loader = Loader(dataset=open_dataset(data), indices=torch.arange(20), batch_size=20, seed=0, device=CPU)
    batch = next(loader.steps(range(1)))[0]
    received = torch.empty_like(pixels)
    received[step_order(0, 20, 20, 0)] = batch.images
    expected = pixels.clone()
    expected[[7, 8, 19]] = pixels[[9, 9, 0]]
    assert torch.equal(received, expected)


def test_broken_files_are_listed_once_and_counted_when_a_run_is_resumed(tmp_path):
    write_photos(tmp_path, 30)
    dataset = open_dataset(DataConfig(source=str(tmp_path), image_size=16, canvas=16))
    printed = []
    broken_files = BrokenFileLog(tmp_path / "broken.txt", dataset, 0.1, printed.append)
    broken_files.add({3: "torn", 4: "torn"})
    broken_files.add({3: "torn"})
    BrokenFileLog(tmp_path / "broken.txt", dataset, 0.1, printed.append).add({4: "torn", 5: "gone"})
    assert (tmp_path / "broken.txt").read_text() == "03.png: torn\n04.png: torn\n05.png: gone\n"
    assert len(printed) == 3
    with pytest.raises(InputError, match="8 of 30 images"):
        broken_files.add(dict.fromkeys(range(7, 13), "gone"))


def test_a_resumed_epoch_shows_every_image_once(tmp_path, monkeypatch):
    """A run resumed in the middle of an epoch shows each image once per epoch, like an uninterrupted run."""
    write_photos(tmp_path, 22)
    config = override(folder_config(tmp_path), steps=11, batch_size=4, save_every=3)
    shown = []
    original = Loader._indices_of_step

    def record(loader: Loader, step: int) -> torch.Tensor:
        shown.append(original(loader, step))
        return shown[-1]

    monkeypatch.setattr(Loader, "_indices_of_step", record)
    whole = train(config, tmp_path / "whole")
    epochs = torch.cat(shown).split(22)
    assert all(epoch.sort().values.tolist() == list(range(22)) for epoch in epochs)
    shown.clear()
    half = train(override(config, steps=3), tmp_path / "half")
    (half.path / "config.json").write_text(json.dumps(json.loads((whole.path / "config.json").read_text())))
    resumed = train(config, tmp_path / "half", resume=True)
    assert torch.equal(torch.cat(shown), torch.cat(epochs))
    assert resumed.load()[1]["step"] == whole.load()[1]["step"] == 11


def test_a_resumed_run_warns_if_the_images_have_changed(tmp_path, capsys):
    write_photos(tmp_path, 12)
    run = train(override(folder_config(tmp_path), steps=2), tmp_path / "runs" / "a")
    train(override(run.config, steps=4), run.path, resume=True)
    assert "have changed" not in capsys.readouterr().err
    photo(seed=99).save(tmp_path / "99.png")
    train(override(run.config, steps=6), run.path, resume=True)
    assert "the images have changed since the checkpoint" in capsys.readouterr().err


def test_runs_are_bitwise_the_same_with_and_without_a_cache(zoo, tmp_path):
    settings = {
        "cached": {},
        "uncached": {"data__cache_gb": 0.0},
        "workers": {"data__cache_gb": 0.0, "data__workers": 1},
    }
    runs = [train(folder_config(zoo, **changes), tmp_path / name).load()[0] for name, changes in settings.items()]
    assert same_tensors(runs[0], runs[1])
    assert same_tensors(runs[0], runs[2])
