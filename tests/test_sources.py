import os
import re
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from jepa.config import DataConfig, InputError
from jepa.data import ImageDataset, open_dataset, read_ahead
from jepa.data.describe import inspect_source
from jepa.data.sources.base import source_cache
from tests.conftest import toy_images, write_parquet
from tests.zoo import photo


def write_images(folder: Path, count: int, size: tuple[int, int] = (20, 16), kind: str = "png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        photo(*size, seed=number).save(folder / f"{number:03}.{kind}")


def data(source: Path | str, **settings) -> DataConfig:
    return DataConfig(source=str(source), image_size=16, canvas=16, **settings)


def read_all(dataset: ImageDataset) -> torch.Tensor:
    batch = dataset.read(torch.arange(len(dataset)))
    assert not batch.unreadable
    return batch.pixels


def make_older(root: Path) -> None:
    """Make all folders an hour older, because the index of a folder that has just changed is rebuilt."""
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        past = folder.stat().st_mtime - 3600
        os.utime(folder, (past, past))


def test_a_folder_without_class_folders_has_no_labels(tmp_path):
    write_images(tmp_path / "photos", 3)
    write_images(tmp_path / "photos" / "2021" / "summer", 2)
    dataset = open_dataset(data(tmp_path / "photos"))
    assert len(dataset) == 5
    assert dataset.labels is None
    assert dataset.files.name(4) == "2021/summer/001.png"
    assert open_dataset(data(tmp_path / "photos"), "test") is None


def test_class_folders_at_any_depth(tmp_path):
    write_images(tmp_path / "cat" / "black", 2)
    write_images(tmp_path / "dog", 3)
    dataset = open_dataset(data(tmp_path))
    assert dataset.classes == ("cat", "dog")
    assert dataset.labels.tolist() == [0, 0, 1, 1, 1]


def test_images_outside_the_class_folders_are_reported(tmp_path):
    write_images(tmp_path / "pets" / "cat", 2)
    write_images(tmp_path / "pets" / "dog", 2)
    photo().save(tmp_path / "pets" / "preview.jpg")
    assert open_dataset(data(tmp_path / "pets")).labels.tolist() == [-1, 0, 0, 1, 1]
    text = inspect_source(str(tmp_path / "pets"), tmp_path / "s.png")
    assert "2 classes: cat 2, dog 2; 1 without a label" in text
    write_images(tmp_path / "pets", 4)
    assert open_dataset(data(tmp_path / "pets")).labels is None
    text = " ".join(inspect_source(str(tmp_path / "pets"), tmp_path / "s.png").split())
    assert "no labels because 5 of 9 images are outside the 2 class folders" in text


@pytest.mark.parametrize("test_name", ["test", "val", "Validation"])
def test_splits_above_class_folders(tmp_path, test_name):
    for split, count in (("train", 3), (test_name, 2)):
        write_images(tmp_path / split / "cat", count)
        write_images(tmp_path / split / "dog", count)
    write_images(tmp_path / "train" / "emu", 1)
    train, test = open_dataset(data(tmp_path)), open_dataset(data(tmp_path), "test")
    assert train.classes == test.classes == ("cat", "dog", "emu")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert test.labels.tolist() == [0, 0, 1, 1]
    assert train.files.name(6) == "train/emu/000.png"


def test_split_folders_without_a_training_split_are_not_classes(tmp_path):
    for split in ("test", "val"):
        write_images(tmp_path / split, 2)
    with pytest.raises(InputError, match="has no training split, only test, validation"):
        open_dataset(data(tmp_path))


def test_a_folder_without_images_is_not_a_class(tmp_path, monkeypatch):
    for name in ("cat", "dog"):
        write_images(tmp_path / "pets" / name, 2)
    (tmp_path / "pets" / "annotations").mkdir()
    (tmp_path / "pets" / "annotations" / "x.xml").touch()
    monkeypatch.chdir(tmp_path / "pets")
    for _ in range(2):
        assert open_dataset(data("."), cache=Path("runs/.jepa-cache")).classes == ("cat", "dog")


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "car", "train"):
        write_images(tmp_path / name, 1)
    assert open_dataset(data(tmp_path)).classes == ("bus", "car", "train")


def test_hidden_files_and_symlink_loops_are_ignored(tmp_path):
    write_images(tmp_path / "photos", 2)
    write_images(tmp_path / "photos" / ".trash", 2)
    (tmp_path / "photos" / "again").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    write_images(tmp_path / "elsewhere", 1)
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere")
    assert len(open_dataset(data(tmp_path / "photos"))) == 3


def test_a_class_may_be_called_runs(tmp_path, monkeypatch):
    """Also if the runs of the program are in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "runs"):
        write_images(tmp_path / name, 3)
    (tmp_path / "runs" / ".jepa-cache").mkdir()
    assert open_dataset(data("."), cache=Path("runs/.jepa-cache")).classes == ("cat", "runs")


def test_run_folders_among_the_images_are_ignored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path, 3)
    (tmp_path / "runs" / ".jepa-cache").mkdir(parents=True)
    write_images(tmp_path / "runs" / "demo" / "figures", 2)
    write_images(tmp_path / "experiment" / "figures", 2)  # a run in another folder than `runs`
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / "experiment" / name).touch()
    assert len(open_dataset(data("."), cache=Path("runs/.jepa-cache"))) == 3
    assert len(open_dataset(data(".", cache_gb=0), cache=Path(".jepa-cache"))) == 3


def test_file_names_that_are_not_utf8(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    photo().save(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", name)  # noqa: PTH104
    dataset = open_dataset(data(tmp_path))
    assert not dataset.read(torch.arange(1)).unreadable
    assert dataset.files.name(0) == "\\xff\\xfe.png"


def test_the_index_is_reused_until_the_folder_changes(tmp_path, cache, monkeypatch):
    write_images(tmp_path / "photos" / "a", 3)
    make_older(tmp_path / "photos")
    assert len(open_dataset(data(tmp_path / "photos"))) == 3
    with monkeypatch.context() as patch:
        patch.setattr("jepa.data.sources.folder.index_folder", None)  # fails if it is called
        assert len(open_dataset(data(tmp_path / "photos"))) == 3
    photo(seed=9).save(tmp_path / "photos" / "a" / "new.png")
    assert len(read_all(open_dataset(data(tmp_path / "photos")))) == 4
    make_older(tmp_path / "photos")
    (tmp_path / "photos" / "a" / "000.png").unlink()
    assert len(open_dataset(data(tmp_path / "photos"))) == 3


def test_a_replaced_image_is_decoded_again(tmp_path, cache):
    write_images(tmp_path / "photos", 3)
    before = read_all(open_dataset(data(tmp_path / "photos")))
    photo(seed=77).save(tmp_path / "photos" / "new.png")
    (tmp_path / "photos" / "new.png").replace(tmp_path / "photos" / "001.png")
    after = read_all(open_dataset(data(tmp_path / "photos")))
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])
    assert len(list(source_cache(str(tmp_path / "photos"), cache).glob("*.pixels"))) == 1  # the stale cache is deleted


def test_cached_images_are_shared_and_damaged_ones_decoded_again(tmp_path, cache):
    write_images(tmp_path / "photos", 4)
    first = open_dataset(data(tmp_path / "photos"))
    assert first.cache.complete  # small datasets are decoded when they are opened
    expected = read_all(first).clone()
    second = open_dataset(data(tmp_path / "photos"))
    second.files = None  # nothing is decoded again
    assert torch.equal(second.read(torch.arange(4)).pixels, expected)
    first.cache.pixels[2, 0, 0] += 1  # simulates a process killed while writing
    third = open_dataset(data(tmp_path / "photos"))
    assert torch.equal(read_all(third), expected)
    assert torch.equal(first.cache.tensor, expected)


def test_without_space_for_a_cache_images_are_decoded_in_every_epoch(tmp_path, monkeypatch):
    write_images(tmp_path / "photos", 2)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    dataset = open_dataset(data(tmp_path / "photos"))
    assert dataset.cache is None
    assert re.search(r"cannot be cached in .* \(No space left on device\)", *dataset.notes)
    assert torch.equal(read_all(dataset), read_all(open_dataset(data(tmp_path / "photos", cache_gb=0))))


def test_parquet_files_with_images_take_precedence_over_image_files(tmp_path):
    images, labels = toy_images(6)
    write_parquet(tmp_path / "data" / "train-0.parquet", images, labels)
    write_images(tmp_path / "figures", 2)
    assert len(open_dataset(data(tmp_path))) == 6
    pq.write_table(pa.table({"width": [1, 2]}), tmp_path / "figures" / "metadata.parquet")
    (tmp_path / "data" / "train-0.parquet").unlink()
    assert len(open_dataset(data(tmp_path))) == 2


def test_tables_of_paths(tmp_path):
    write_images(tmp_path / "pictures", 4)
    names = [f"pictures/{number:03}.png" for number in range(4)]
    (tmp_path / "list.txt").write_text("\n".join(names[:3]) + "\n\n")
    rows = zip(names, ["dog", "cat", "dog", "cat"], ["train", "train", "val", "train"], strict=True)
    table = "\n".join(["path,label,split", *(",".join(row) for row in rows)])
    (tmp_path / "table.csv").write_text(table)
    (tmp_path / "table.tsv").write_text(table.replace(",", "\t"))
    absolute = [str(tmp_path / name) for name in names]
    pq.write_table(pa.table({"file_name": absolute, "label": [1, 0, 1, 2]}), tmp_path / "table.parquet")
    listed = open_dataset(data(tmp_path / "list.txt"))
    assert len(listed) == 3
    assert listed.labels is None
    for name in ("table.csv", "table.tsv"):
        train, test = open_dataset(data(tmp_path / name)), open_dataset(data(tmp_path / name), "test")
        assert train.classes == test.classes == ("cat", "dog")
        assert (train.labels.tolist(), test.labels.tolist()) == ([1, 0, 0], [1])
        assert torch.equal(read_all(train)[0], read_all(listed)[0])
    numbered = open_dataset(data(tmp_path / "table.parquet"))
    assert (numbered.labels.tolist(), numbered.classes) == ([1, 0, 1, 2], ("0", "1", "2"))
    (tmp_path / "list.txt").write_text(names[3])
    os.utime(tmp_path / "list.txt", (1, 1))
    assert len(open_dataset(data(tmp_path / "list.txt"))) == 1


def test_hidden_labels_apply_to_a_split_and_identifiers_are_not_classes(tmp_path):
    write_images(tmp_path, 4)
    rows = ["000.png,0,train", "001.png,1,train", "002.png,-1,test", "003.png,1,val"]
    (tmp_path / "table.CSV").write_text("\n".join(["path,label,split", *rows]))
    assert open_dataset(data(tmp_path / "table.CSV")).labels.tolist() == [0, 1]
    assert open_dataset(data(tmp_path / "table.CSV"), "test").labels.tolist() == [1]  # from the validation split
    (tmp_path / "table.csv").write_text("path,label\n000.png,3000000000\n001.png,7\n")
    assert open_dataset(data(tmp_path / "table.csv")).classes == ("7", "3000000000")
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf000.png\r\n001.png\r\n")
    assert len(read_all(open_dataset(data(tmp_path / "list.txt")))) == 2


def test_a_run_folder_among_photos_hides_none_of_them(tmp_path, monkeypatch):
    write_images(tmp_path / "pics" / "holiday", 3)
    (tmp_path / "pics" / "holiday" / ".jepa-cache").mkdir()
    assert len(open_dataset(data(tmp_path / "pics"))) == 3
    for name in ("cat", "dog"):
        write_images(tmp_path / "only" / "train" / name, 2)
    (tmp_path / "only" / "runs" / ".jepa-cache").mkdir(parents=True)
    assert open_dataset(data(tmp_path / "only")).classes == ("cat", "dog")


def test_invalid_tables(tmp_path):
    write_images(tmp_path, 1)
    for text, message in {
        "name\n000.png\n": "no image or path column",
        "path,split\n000.png,exam\n": "'split' of .* must contain train, validation or test, got 'exam'",
        "path\n": "at least one row",
        "path\na,b\n": "line 2 of .* must have 1 values",
        'path\n"a\n': "cannot be read as a table",
        "path\ngone.png\n": "none of the 1 images in .* exists, for example gone.png",
    }.items():
        (tmp_path / "table.csv").write_text(text)
        os.utime(tmp_path / "table.csv", (len(message), len(message)))
        with pytest.raises(InputError, match=message):
            open_dataset(data(tmp_path / "table.csv"))
    (tmp_path / "latin.csv").write_bytes(b"path,label\n000.png,caf\xe9\n")
    with pytest.raises(InputError, match="cannot be read as a table of paths and labels: it is not UTF-8"):
        open_dataset(data(tmp_path / "latin.csv"))
    (tmp_path / "list.txt").write_text("missing.png\n000.png\n")
    dataset = open_dataset(data(tmp_path / "list.txt"))
    assert dataset.read(torch.arange(2)).unreadable == {0: "No such file or directory"}
    with pytest.raises(InputError, match="is a file but not a supported table"):
        open_dataset(data(tmp_path / "000.png"))


def write_idx(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes())


def test_torchvision_datasets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "data" / "MNIST" / "raw"
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 28, 28), dtype=np.uint8)
    for split, count in (("train", 6), ("t10k", 4)):
        write_idx(raw / f"{split}-images-idx3-ubyte", pixels[:count])
        write_idx(raw / f"{split}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8))
    config = DataConfig(source="mnist", image_size=28, channels=1)
    train, test = open_dataset(config), open_dataset(config, "test")
    assert (len(train), len(test)) == (6, 4)
    assert train.labels.tolist() == list(range(6))
    assert train.classes[3].startswith("3")
    assert torch.equal(read_all(train)[:, 0], torch.from_numpy(pixels))

    wnid = {"train": "n01440764", "val": "n02102040"}
    for split, count in (("train", 3), ("val", 2)):
        for label in wnid.values():
            write_images(tmp_path / "data" / "imagenette2" / split / label, count, kind="JPEG")
    train, test = open_dataset(data("imagenette")), open_dataset(data("imagenette"), "test")
    assert (len(train), len(test)) == (6, 4)
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert "000.JPEG" in train.files.name(0)
    assert len(read_all(train)) == 6


def test_a_failed_download_is_an_error_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def no_network(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(InputError, match="cifar10 is not in data/ and cannot be downloaded") as caught:
        open_dataset(data("cifar10"))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="did you mean 'cifar100'"):
        open_dataset(data("cifar1000"))


def test_hub_datasets(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(InputError, match="requires the datasets package"):
            open_dataset(data("hf:owner/name"))
    images, labels = toy_images(6)
    write_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet", images[:4], labels[:4])
    write_parquet(tmp_path / "set" / "data" / "test-00000-of-00001.parquet", images[4:], labels[4:])
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")
    train = open_dataset(DataConfig(source=f"hf:{tmp_path / 'set'}", image_size=16))
    test = open_dataset(DataConfig(source=f"hf:{tmp_path / 'set'}", image_size=16), "test")
    assert train.labels.tolist() == labels[:4]
    assert test.labels.tolist() == labels[4:]
    assert train.classes == ("a", "b")
    assert torch.equal(read_all(train), torch.from_numpy(np.stack(images[:4])).permute(0, 3, 1, 2))
    with pytest.raises(InputError, match="hf:owner/missing cannot be loaded"):
        open_dataset(data("hf:owner/missing"))


def test_uncached_images_are_decoded_by_worker_processes(tmp_path):
    write_images(tmp_path, 70)
    uncached, cached = open_dataset(data(tmp_path, cache_gb=0)), open_dataset(data(tmp_path))
    batches = [torch.arange(40), torch.tensor([3]), torch.arange(69, 29, -1)]
    for first, second in zip(read_ahead(uncached, batches, 2), read_ahead(cached, batches, 2), strict=True):
        assert torch.equal(first.pixels, second.pixels)
        assert torch.equal(first.indices, second.indices)


def test_an_image_of_a_different_size_is_unreadable_without_a_canvas(tmp_path):
    write_images(tmp_path, 100)
    Image.new("RGB", (9, 9)).save(tmp_path / "005.png")
    dataset = open_dataset(DataConfig(source=str(tmp_path), image_size=16))
    reason = dataset.read(torch.arange(100)).unreadable[5]
    assert "9x9 pixels" in reason
    assert "20x16" in reason
