"""A whole run on a folder of awkward files: train, resume, evaluate."""

import dataclasses
import json

import pytest
import torch

from jepa.config import DataConfig, InputError
from jepa.data import Faults, Loader, open_dataset, step_order
from jepa.evaluate import as_text, evaluate
from jepa.train import train
from tests.conftest import same_tensors, tiny_config
from tests.zoo import BROKEN, photo, write_zoo

CPU = torch.device("cpu")


@pytest.fixture
def zoo(tmp_path):
    write_zoo(tmp_path / "zoo")
    return tmp_path / "zoo"


def zoo_config(zoo, **settings):
    config = tiny_config(str(zoo), steps=20)
    data = dataclasses.replace(config.data, canvas=20, holdout=0.0, max_broken=1.0, **settings)
    return dataclasses.replace(config, data=data)


@pytest.mark.parametrize("settings", [{}, {"cache_gb": 0.0, "workers": 2}])
def test_a_zoo_trains_and_is_evaluated_and_the_broken_are_listed(zoo, tmp_path, settings):
    run = train(zoo_config(zoo, **settings), tmp_path / "run")
    listed = (tmp_path / "run" / "broken.txt").read_text().splitlines()
    assert {line.split(": ")[0] for line in listed} == BROKEN
    assert all(line.split(": ")[1] for line in listed)
    result = evaluate(run.path)
    assert {line.split(": ")[0] for line in result["unreadable"]} == BROKEN
    assert "Left out: 6 images that cannot be read" in as_text(result, run.path)
    assert "need labels" in as_text(result, run.path)


def test_too_many_broken_files_stop_the_run_by_name(zoo, tmp_path):
    config = zoo_config(zoo)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, max_broken=0.01))
    with pytest.raises(InputError, match=r"3 of 34 images .* cannot be read, among them .*: .*--data.max-b"):
        train(config, tmp_path / "run")


def test_one_broken_file_never_stops_a_run(tmp_path):
    for number in range(9):
        (tmp_path / "few").mkdir(exist_ok=True)
        photo(seed=number).save(tmp_path / "few" / f"{number}.png")
    (tmp_path / "few" / "broken.png").touch()
    config = zoo_config(tmp_path / "few")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, max_broken=0.0))
    train(config, tmp_path / "run")


def test_the_next_image_stands_in_for_a_broken_one(tmp_path):
    for number in range(20):
        photo(seed=number).save(tmp_path / f"{number:02}.png")
    for number in (7, 8, 19):
        (tmp_path / f"{number:02}.png").write_bytes(b"")
    data = DataConfig(source=str(tmp_path), image_size=16, canvas=16)
    whole = open_dataset(data).read(torch.arange(20)).pixels
    batch = next(Loader(open_dataset(data), torch.arange(20), 20, 0, CPU).steps(range(1)))[0]
    order = step_order(0, 20, 20, 0)
    seen = torch.empty_like(whole)
    seen[order] = batch.images
    expected = whole.clone()
    expected[[7, 8, 19]] = whole[[9, 9, 0]]
    assert torch.equal(seen, expected)


def test_faults_are_listed_once_and_counted_over_resumes(tmp_path):
    for number in range(30):
        photo(seed=number).save(tmp_path / f"{number:02}.png")
    images = open_dataset(DataConfig(source=str(tmp_path), image_size=16, canvas=16))
    said = []
    faults = Faults(tmp_path / "broken.txt", images, 0.1, said.append)
    faults.note({3: "torn", 4: "torn"})
    faults.note({3: "torn"})
    Faults(tmp_path / "broken.txt", images, 0.1, said.append).note({4: "torn", 5: "gone"})
    assert (tmp_path / "broken.txt").read_text() == "03.png: torn\n04.png: torn\n05.png: gone\n"
    assert len(said) == 3
    with pytest.raises(InputError, match="4 of 30 images"):
        faults.note({7: "gone", 8: "gone"})


def test_a_resumed_epoch_shows_every_image_once(tmp_path, monkeypatch):
    """Stop in the middle of an epoch and go on: together the two show each image of the epoch once, in the same run."""
    for number in range(22):
        photo(seed=number).save(tmp_path / f"{number:02}.png")
    config = zoo_config(tmp_path)
    config = dataclasses.replace(config, steps=11, batch_size=4, save_every=3)
    shown = []
    original = Loader._rows
    monkeypatch.setattr(Loader, "_rows", lambda self, step: shown.append(original(self, step)) or original(self, step))
    whole = train(config, tmp_path / "whole")
    epochs = torch.cat(shown).split(22)
    assert all(epoch.sort().values.tolist() == list(range(22)) for epoch in epochs)
    shown.clear()
    half = train(dataclasses.replace(config, steps=3), tmp_path / "half")
    (half.path / "config.json").write_text(json.dumps(json.loads((whole.path / "config.json").read_text())))
    resumed = train(config, tmp_path / "half", resume=True)
    assert torch.equal(torch.cat(shown), torch.cat(epochs))
    assert resumed.load()[1]["step"] == whole.load()[1]["step"] == 11


def test_a_resumed_run_says_that_the_images_have_changed(tmp_path, capsys):
    for number in range(12):
        photo(seed=number).save(tmp_path / f"{number:02}.png")
    config = zoo_config(tmp_path)
    run = train(dataclasses.replace(config, steps=2), tmp_path / "runs" / "a")
    train(dataclasses.replace(run.config, steps=4), run.path, resume=True)
    assert "have changed" not in capsys.readouterr().err
    photo(seed=99).save(tmp_path / "99.png")
    train(dataclasses.replace(run.config, steps=6), run.path, resume=True)
    assert "the images have changed since the last checkpoint" in capsys.readouterr().err


def test_runs_are_bitwise_the_same_with_and_without_a_cache(zoo, tmp_path):
    runs = [
        train(zoo_config(zoo, **settings), tmp_path / name).load()[0]
        for name, settings in (("kept", {}), ("fresh", {"cache_gb": 0.0}), ("ahead", {"cache_gb": 0.0, "workers": 1}))
    ]
    assert same_tensors(runs[0], runs[1])
    assert same_tensors(runs[0], runs[2])
