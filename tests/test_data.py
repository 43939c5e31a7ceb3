import dataclasses
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jepa.config import DataConfig, InputError
from jepa.data import Loader, auto_workers, open_dataset, split_holdout, step_order
from jepa.data.loader import _ahead
from jepa.data.sources import SAMPLE
from jepa.train import measured
from tests.conftest import toy_images, write_parquet

CIFAR10 = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"
CPU = torch.device("cpu")


def everything(images) -> torch.Tensor:
    read = images.read(torch.arange(len(images)))
    assert not read.unreadable
    return read.pixels


def test_the_sample_is_fashion_mnist():
    data = DataConfig(source="sample", image_size=28, channels=1)
    train, test = open_dataset(data), open_dataset(data, "test")
    assert (len(train), len(test)) == (10_000, 2_000)
    assert train.classes[9] == "Ankle boot"
    assert train.shape == (1, 28, 28)
    assert train.cache.complete
    assert train.labels[:5].tolist() == [9, 0, 0, 3, 0]
    assert test.labels[:5].tolist() == [9, 2, 1, 1, 6]
    filled = measured(data, train)
    assert abs(filled.mean[0] - 0.286) < 0.005  # the published statistics of the whole set: 0.2860 and 0.3530
    assert abs(filled.std[0] - 0.353) < 0.005
    assert sum(file.stat().st_size for file in SAMPLE.glob("*.parquet")) < 6e6


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="CIFAR-10 is not beside the project")
def test_cifar10_in_the_layout_of_the_hub():
    test = open_dataset(DataConfig(source=str(CIFAR10)), "test")
    assert len(test) == 10_000
    assert test.classes[:2] == ("airplane", "automobile")
    assert torch.bincount(test.labels).tolist() == [1000] * 10


def test_parquet_is_bit_exact_and_splits_follow_file_names(tmp_path):
    images, labels = toy_images(12)
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", images[:5], labels[:5])
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", images[5:9], labels[5:9])
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", images[9:], labels[9:])
    for source in (tmp_path / "data", tmp_path, tmp_path / "data" / "*.parquet"):
        data = DataConfig(source=str(source), image_size=16)
        train, test = open_dataset(data), open_dataset(data, "test")
        assert torch.equal(everything(train), torch.from_numpy(np.stack(images[:9])).permute(0, 3, 1, 2))
        assert train.labels.tolist() == labels[:9]
        assert len(test) == 3
    single = DataConfig(source=str(tmp_path / "data" / "train-00000-of-00002.parquet"), image_size=16)
    assert len(open_dataset(single)) == 5
    assert open_dataset(single, "test") is None


def test_the_cache_changes_nothing_but_the_time(toy_source):
    data = DataConfig(source=toy_source, image_size=16)
    kept, fresh = open_dataset(data), open_dataset(dataclasses.replace(data, cache_gb=0.0))
    assert fresh.cache is None
    index = torch.tensor([5, 0, 79])
    assert torch.equal(kept.read(index).pixels, fresh.read(index).pixels)
    loaders = [
        Loader(images, torch.arange(80), 8, 0, CPU, workers=k) for images, k in ((kept, 0), (fresh, 0), (fresh, 2))
    ]
    for one, other, third in zip(*(loader.steps(range(3, 30)) for loader in loaders), strict=True):
        assert torch.equal(one[0].images, other[0].images)
        assert torch.equal(one[0].images, third[0].images)
        assert torch.equal(one[0].labels, third[0].labels)


def test_several_sizes_need_a_canvas(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (height, 40, 3), dtype=np.uint8) for height in (20, 30, 64)]
    write_parquet(tmp_path / "train.parquet", images)
    data = DataConfig(source=str(tmp_path), image_size=16)
    with pytest.raises(InputError, match=r"several sizes.*--data.canvas"):
        open_dataset(data)
    assert everything(open_dataset(dataclasses.replace(data, canvas=24))).shape == (3, 3, 24, 24)
    assert everything(open_dataset(dataclasses.replace(data, canvas=24, channels=1))).shape == (3, 1, 24, 24)
    assert everything(open_dataset(dataclasses.replace(data, canvas=(20, 40)))).shape == (3, 3, 20, 40)


def test_every_epoch_shows_every_image_once_in_another_order():
    shown = torch.cat([step_order(step, 10, 95, seed=0) for step in range(19)])
    first, second = shown.split(95)
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(95))
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.cat([step_order(step, 10, 95, seed=1) for step in range(10)])[:95])


def test_ranks_and_parts_share_out_one_batch(toy_source):
    images = open_dataset(DataConfig(source=toy_source, image_size=16))
    index = torch.arange(80)
    whole = next(Loader(images, index, 16, 0, CPU).steps(range(1)))[0]
    pieces = [part for rank in range(2) for part in next(Loader(images, index, 16, 0, CPU, 2, rank, 2).steps(range(1)))]
    assert torch.equal(whole.images, torch.cat([piece.images for piece in pieces]))
    assert torch.equal(torch.arange(16), torch.cat([piece.rows for piece in pieces]))


def test_holdout_is_disjoint_and_the_same_for_all():
    train, held = split_holdout(1000, 0.1)
    assert len(held) == 100
    assert len(torch.cat([train, held]).unique()) == 1000
    assert len(split_holdout(10**6, 0.1)[1]) == 2000


def test_a_test_split_with_hidden_labels_gives_way_to_validation(tmp_path):
    images, labels = toy_images(6)
    write_parquet(tmp_path / "train-0.parquet", images, labels)
    write_parquet(tmp_path / "test-0.parquet", images, [-1] * 6)
    data = DataConfig(source=str(tmp_path), image_size=16)
    assert open_dataset(data, "test").labels is None
    write_parquet(tmp_path / "validation-0.parquet", images[:4], labels[:4])
    assert open_dataset(data, "test").labels.tolist() == labels[:4]


def test_a_split_can_stand_anywhere_in_the_file_name(tmp_path):
    images, labels = toy_images(6)
    write_parquet(tmp_path / "mnist-train.parquet", images[:4], labels[:4])
    write_parquet(tmp_path / "mnist-test.parquet", images[4:], labels[4:])
    write_parquet(tmp_path / "contest.parquet", images, labels)  # not a test split
    data = DataConfig(source=str(tmp_path), image_size=16)
    assert (len(open_dataset(data)), len(open_dataset(data, "test"))) == (10, 2)


def test_labels_and_columns_that_do_not_fit(tmp_path):
    images, labels = toy_images(3)
    first = write_parquet(tmp_path / "a" / "train-0.parquet", images, labels)
    write_parquet(tmp_path / "a" / "train-1.parquet", images)
    with pytest.raises(InputError, match="has other columns than"):
        open_dataset(DataConfig(source=str(tmp_path / "a")))
    table = pq.read_table(first)
    for name, column in {"words": pa.array(["x", "y", "z"]), "holes": pa.array([0, None, 1])}.items():
        pq.write_table(table.set_column(1, "label", column), tmp_path / f"{name}.parquet")
        with pytest.raises(InputError, match="must hold a whole number in every row"):
            open_dataset(DataConfig(source=str(tmp_path / f"{name}.parquet")))
    plain = pa.table({"image": pa.array([row["bytes"].as_py() for row in table["image"]], pa.large_binary())})
    pq.write_table(plain, tmp_path / "plain.parquet")
    assert len(open_dataset(DataConfig(source=str(tmp_path / "plain.parquet"), image_size=16))) == 3


def test_bad_sources_are_one_sentence(tmp_path, toy_source):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "text.parquet")
    write_parquet(tmp_path / "none.parquet", [])
    write_parquet(tmp_path / "only" / "test-0.parquet", toy_images(2)[0])
    not_an_image = pa.array([{"bytes": b"no image", "path": None}])
    pq.write_table(pa.table({"image": not_an_image}), tmp_path / "garbled.parquet")
    for name, message in {
        "nowhere": "there is nothing at",
        "empty": "has no images in it",
        "broken.parquet": "cannot be read as parquet",
        "text.parquet": "no column of images",
        "none.parquet": "holds no images",
        "only": "no training split",
        "garbled.parquet": "no image of .* can be read: row 0: is no image",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            open_dataset(DataConfig(source=str(tmp_path / name)))
        assert "\n" not in str(caught.value)
    images = open_dataset(DataConfig(source=toy_source))
    with pytest.raises(InputError, match="choose --batch-size 80 or less"):
        Loader(images, torch.arange(80), 81, 0, CPU)
    with pytest.raises(InputError, match="do not divide"):
        Loader(images, torch.arange(80), 16, 0, CPU, 1, 0, 3)


def test_batches_made_ahead_keep_their_order_and_their_errors():
    def batches(count: int):
        yield from range(1, count)
        raise InputError("the disk is gone")

    seen = []
    with pytest.raises(InputError, match="the disk is gone"):
        seen.extend(_ahead(batches(9)))
    assert seen == list(range(1, 9))
    few = _ahead(iter(range(1, 100)))
    assert next(few) == 1
    few.close()


def test_workers_are_shared_out_over_the_processes_of_a_machine(monkeypatch):
    module = sys.modules["jepa.data.stream"]  # the package's `stream` is the function
    monkeypatch.setattr(module, "cores", lambda: 64)
    assert auto_workers(CPU) == 0
    assert auto_workers(torch.device("cuda")) == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert auto_workers(torch.device("cuda")) == 8
    monkeypatch.setattr(module, "cores", lambda: 2)
    assert auto_workers(torch.device("cuda")) == 1
