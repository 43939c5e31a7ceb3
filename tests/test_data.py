import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from jepa.config import DataConfig, InputError
from jepa.data import ImageDataset, Loader, auto_workers, open_dataset, split_holdout, step_order
from jepa.data.loader import _prefetch
from jepa.data.sources.parquet import SAMPLE
from jepa.data.stats import measure_statistics
from tests.conftest import toy_images, write_parquet

CIFAR10 = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"
CPU = torch.device("cpu")
IMAGE_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def read_all(dataset: ImageDataset) -> torch.Tensor:
    batch = dataset.read(torch.arange(len(dataset)))
    assert not batch.unreadable
    return batch.pixels


def loader(dataset: ImageDataset, batch_size: int, **settings) -> Loader:
    """Return a loader of the first 80 images with seed 0."""
    settings = {"labels": True} | settings
    return Loader(dataset=dataset, indices=torch.arange(80), batch_size=batch_size, seed=0, device=CPU, **settings)


def test_the_sample_is_fashion_mnist():
    data = DataConfig(source="sample", image_size=28, channels=1)
    train, test = open_dataset(data), open_dataset(data, "test")
    assert (len(train), len(test)) == (10_000, 2_000)
    assert train.classes[9] == "Ankle boot"
    assert train.shape == (1, 28, 28)
    assert train.cache.complete
    assert train.labels[:5].tolist() == [9, 0, 0, 3, 0]
    assert test.labels[:5].tolist() == [9, 2, 1, 1, 6]
    measured = measure_statistics(data, train)
    assert abs(measured.mean[0] - 0.286) < 0.005  # published statistics of the full dataset: 0.2860 and 0.3530
    assert abs(measured.std[0] - 0.353) < 0.005
    assert sum(file.stat().st_size for file in SAMPLE.glob("*.parquet")) < 6e6


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="CIFAR-10 is not available")
def test_cifar10_in_the_hub_layout():
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
        assert torch.equal(read_all(train), torch.from_numpy(np.stack(images[:9])).permute(0, 3, 1, 2))
        assert train.labels.tolist() == labels[:9]
        assert len(test) == 3
    single = DataConfig(source=str(tmp_path / "data" / "train-00000-of-00002.parquet"), image_size=16)
    assert len(open_dataset(single)) == 5
    assert open_dataset(single, "test") is None


def test_batches_are_the_same_with_a_cache_and_with_workers(toy_source):
    data = DataConfig(source=toy_source, image_size=16)
    cached, uncached = open_dataset(data), open_dataset(dataclasses.replace(data, cache_gb=0.0))
    assert uncached.cache is None
    indices = torch.tensor([5, 0, 79])
    assert torch.equal(cached.read(indices).pixels, uncached.read(indices).pixels)
    loaders = [loader(cached, 8, workers=0), loader(uncached, 8, workers=0), loader(uncached, 8, workers=2)]
    for first, second, third in zip(*(images.steps(range(3, 30)) for images in loaders), strict=True):
        assert torch.equal(first[0].images, second[0].images)
        assert torch.equal(first[0].images, third[0].images)
        assert torch.equal(first[0].labels, third[0].labels)


def test_images_that_differ_in_size_require_a_canvas(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (height, 40, 3), dtype=np.uint8) for height in (20, 30, 64)]
    write_parquet(tmp_path / "train.parquet", images)
    data = DataConfig(source=str(tmp_path), image_size=16)
    with pytest.raises(InputError, match=r"differ in size.*--data.canvas"):
        open_dataset(data)
    assert read_all(open_dataset(dataclasses.replace(data, canvas=24))).shape == (3, 3, 24, 24)
    assert read_all(open_dataset(dataclasses.replace(data, canvas=24, channels=1))).shape == (3, 1, 24, 24)
    assert read_all(open_dataset(dataclasses.replace(data, canvas=(20, 40)))).shape == (3, 3, 20, 40)


def test_each_epoch_is_a_different_permutation_of_all_images():
    order = torch.cat([step_order(step, 10, 95, seed=0) for step in range(19)])
    first, second = order.split(95)
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(95))
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.cat([step_order(step, 10, 95, seed=1) for step in range(10)])[:95])


def test_processes_and_microbatches_divide_one_batch(toy_source):
    dataset = open_dataset(DataConfig(source=toy_source, image_size=16))
    whole = next(loader(dataset, 16).steps(range(1)))[0]
    microbatches = []
    for rank in range(2):
        microbatches += next(loader(dataset, 16, num_microbatches=2, rank=rank, world_size=2).steps(range(1)))
    assert [len(batch.images) for batch in microbatches] == [4] * 4
    assert torch.equal(whole.images, torch.cat([batch.images for batch in microbatches]))
    assert torch.equal(whole.labels, torch.cat([batch.labels for batch in microbatches]))
    assert torch.equal(torch.arange(16), torch.cat([batch.positions for batch in microbatches]))


@pytest.mark.parametrize("kind", ["images in parquet", "paths in parquet", "folder", "table"])
def test_replaced_images_are_decoded_again(kind, tmp_path):
    (old, _), (new, _) = toy_images(6, seed=0), toy_images(6, seed=1)
    folder = tmp_path / "data"
    folder.mkdir()
    data = DataConfig(source=str(folder / "table.csv" if kind == "table" else folder), image_size=16)
    for images in (old, new):
        if kind == "images in parquet":
            write_parquet(folder / "train.parquet", images)
        else:
            for i, image in enumerate(images):
                Image.fromarray(image).save(folder / f"{i}.new.png")
                (folder / f"{i}.new.png").replace(folder / f"{i}.png")
            names = [f"{i}.png" for i in range(6)]
            (folder / "table.csv").write_text("\n".join(["path", *names]))
            if kind == "paths in parquet":
                column = pa.array([{"bytes": None, "path": name} for name in names])
                pq.write_table(pa.table({"image": column.cast(IMAGE_STRUCT)}), folder / "train.parquet")
        dataset = open_dataset(data)
        assert dataset.signature
        assert torch.equal(read_all(dataset), torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))


def test_only_objectives_that_use_labels_get_them(toy_source):
    dataset = open_dataset(DataConfig(source=toy_source, image_size=16))
    assert next(loader(dataset, 16, labels=False).steps(range(1)))[0].labels is None
    assert next(loader(dataset, 16, labels=True).steps(range(1)))[0].labels.shape == (16,)


def test_the_holdout_is_disjoint_and_limited():
    train, held_out = split_holdout(1000, 0.1)
    assert len(held_out) == 100
    assert len(torch.cat([train, held_out]).unique()) == 1000
    assert len(split_holdout(10**6, 0.1)[1]) == 2000


def test_the_validation_split_replaces_a_test_split_with_hidden_labels(tmp_path):
    images, labels = toy_images(6)
    write_parquet(tmp_path / "train-0.parquet", images, labels)
    write_parquet(tmp_path / "test-0.parquet", images, [-1] * 6)
    data = DataConfig(source=str(tmp_path), image_size=16)
    assert open_dataset(data, "test").labels is None
    write_parquet(tmp_path / "validation-0.parquet", images[:4], labels[:4])
    assert open_dataset(data, "test").labels.tolist() == labels[:4]


def test_a_split_may_be_anywhere_in_the_file_name(tmp_path):
    images, labels = toy_images(6)
    write_parquet(tmp_path / "mnist-train.parquet", images[:4], labels[:4])
    write_parquet(tmp_path / "mnist-test.parquet", images[4:], labels[4:])
    data = DataConfig(source=str(tmp_path), image_size=16)
    assert (len(open_dataset(data)), len(open_dataset(data, "test"))) == (4, 2)
    write_parquet(tmp_path / "contest.parquet", images, labels)  # not a test split
    with pytest.raises(InputError, match=r"contest.parquet does not name a split, but .*mnist-.* does"):
        open_dataset(data)


def test_invalid_labels_and_columns(tmp_path):
    images, labels = toy_images(3)
    first = write_parquet(tmp_path / "a" / "train-0.parquet", images, labels)
    write_parquet(tmp_path / "a" / "train-1.parquet", images)
    with pytest.raises(InputError, match="differ from those of"):
        open_dataset(DataConfig(source=str(tmp_path / "a")))
    table = pq.read_table(first)
    words = table.set_column(1, "label", pa.array(["x", "y", "x"])).replace_schema_metadata(None)
    pq.write_table(words, tmp_path / "words.parquet")
    assert open_dataset(DataConfig(source=str(tmp_path / "words.parquet"))).classes == ("x", "y")
    pq.write_table(table.set_column(1, "label", pa.array([0, None, 1])), tmp_path / "holes.parquet")
    assert open_dataset(DataConfig(source=str(tmp_path / "holes.parquet"))).labels.tolist() == [0, -1, 1]
    plain = pa.table({"image": pa.array([row["bytes"].as_py() for row in table["image"]], pa.large_binary())})
    pq.write_table(plain, tmp_path / "plain.parquet")
    assert len(open_dataset(DataConfig(source=str(tmp_path / "plain.parquet"), image_size=16))) == 3


def test_an_invalid_source_is_an_error_in_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "text.parquet")
    write_parquet(tmp_path / "none.parquet", [])
    write_parquet(tmp_path / "only" / "test-0.parquet", toy_images(2)[0])
    not_an_image = pa.array([{"bytes": b"no image", "path": None}])
    pq.write_table(pa.table({"image": not_an_image}), tmp_path / "garbled.parquet")
    for name, message in {
        "nowhere": "does not exist",
        "empty": "contains no images",
        "broken.parquet": "cannot be read as parquet",
        "text.parquet": "no image or path column",
        "none.parquet": "contains no images",
        "only": "no training split",
        "garbled.parquet": "none of the sampled images of .* can be read: row 0: it is not an image",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            open_dataset(DataConfig(source=str(tmp_path / name)))
        assert "\n" not in str(caught.value)


def test_a_loader_checks_the_batch_size(toy_source):
    dataset = open_dataset(DataConfig(source=toy_source))
    with pytest.raises(InputError, match="choose --batch-size 80 or less"):
        loader(dataset, 81, labels=False)
    with pytest.raises(InputError, match="must be a multiple of 3 processes"):
        loader(dataset, 16, world_size=3)


def test_prefetched_batches_keep_their_order_and_their_errors():
    def batches(count: int):
        yield from range(1, count)
        raise InputError("the disk is gone")

    received = []
    with pytest.raises(InputError, match="the disk is gone"):
        received.extend(_prefetch(batches(9)))
    assert received == list(range(1, 9))
    prefetched = _prefetch(iter(range(1, 100)))
    assert next(prefetched) == 1
    prefetched.close()


def test_cores_are_divided_among_the_processes_of_a_machine(monkeypatch):
    monkeypatch.setattr("jepa.data.workers.cores", lambda: 64)
    assert auto_workers(CPU) == 0
    assert auto_workers(torch.device("cuda")) == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert auto_workers(torch.device("cuda")) == 8
    monkeypatch.setattr("jepa.data.workers.cores", lambda: 2)
    assert auto_workers(torch.device("cuda")) == 1
