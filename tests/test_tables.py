"""Tables of paths and columns of parquet files: text stays text, and columns are found by their names."""

import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jepa.config import DataConfig, InputError
from jepa.data import SplitIndex, open_dataset, open_source
from jepa.data.labels import encode_labels
from tests.conftest import toy_images, write_parquet
from tests.zoo import photo

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of eight images, 0.png to 7.png, whose pixels have the value of their number."""
    for number in range(8):
        Image.new("L", (8, 8), number).save(tmp_path / f"{number}.png")
    return tmp_path


def opened(file: Path, text: str | bytes | None = None, split: str = "train") -> SplitIndex:
    """Write a table, unless it exists, and open a split of it."""
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_source(str(file)).open(split)


def rows(values: list[str], columns: str = "path,label") -> str:
    """Return a table with one row for each value, for 0.png, 1.png, …."""
    return "\n".join([columns, *(f"{number}.png,{value}" for number, value in enumerate(values))])


def names(index: SplitIndex) -> list[str | None]:
    """Return the name of the class of each image, None for unlabeled ones."""
    return [None if label < 0 else index.classes[label] for label in index.labels.tolist()]


def values(dataset) -> list[int]:
    batch = dataset.read(torch.arange(len(dataset)))
    assert not batch.unreadable
    return batch.pixels[:, 0, 0, 0].tolist()


def source(file: Path) -> DataConfig:
    return DataConfig(source=str(file), channels=1, cache_gb=0)


def test_paths_are_text(folder):
    paths = ["007", "1e5", "0123.50", "2021-01-01", "NA", "true", "nan", "a,b.png", "-1"]
    for number, path in enumerate(paths):
        Image.new("L", (8, 8), 100 + number).save(folder / path, "PNG")
    text = "path\n" + "\n".join(f'"{path}"' if "," in path else path for path in paths)
    (folder / "t.csv").write_text(text)
    assert values(open_dataset(source(folder / "t.csv"))) == list(range(100, 109))


@pytest.mark.parametrize(
    "text",
    [
        "Path, Label ,SPLIT\n0.png, cat, Training\n1.png , dog,train\n2.png,cat, Dev \n",
        "path;label;split\r\n0.png;cat;train\r\n1.png;dog;train\r\n2.png;cat;valid\r\n",
        "\ufefflabel\tsplit\tfile_name\ncat\ttrain\t0.png\ndog\ttrain\t1.png\ncat\tval\t2.png\n\n",
        ",image,set,class,\n0,./0.png,train,cat,\n1,./1.png,train,dog,\n2,./2.png,validation,cat,\n",
        '"Image Path","partition","label"\n"0.png","train","cat"\n"1.png","train","dog"\n"2.png","val","cat"\n',
    ],
)
def test_headers_delimiters_and_spaces(folder, text):
    for encoding in ("utf-8", "utf-16"):
        train, test = (
            opened(folder / f"{encoding}.csv", text.encode(encoding), split) for split in ("train", "validation")
        )
        assert (names(train), names(test)) == (["cat", "dog"], ["cat"])


def test_paths_of_other_systems(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    (folder / "sub dir").mkdir()
    for name in ("sub dir/a.png", "back\\slash.png"):
        Image.new("L", (8, 8), 50).save(folder / name)
    address = (folder / "sub dir" / "a.png").as_uri()
    text = f"path\nsub dir\\a.png\n~/3.png\n{address}\nback\\slash.png\n{folder}/4.png\n"
    (folder / "t.csv").write_text(text)
    assert values(open_dataset(source(folder / "t.csv"))) == [50, 3, 50, 50, 4]
    assert open_source("~/t.csv").splits() == ["train"]
    assert open_source("~/sub dir").splits() == ["train"]
    write_parquet(folder / "p" / "test-0.parquet", toy_images(2)[0])
    assert open_source("~/p/*.parquet").splits() == ["test"]


def test_missing_images_are_counted(folder):
    index = opened(folder / "t.csv", "path\n0.png\ngone.png\nlost.png\n")
    assert index.metadata["notes"] == ["2 of 3 images do not exist, for example gone.png"]
    for name, text in {"t.txt": "0.png 1\n1.png 0\n", "u.csv": "path\n000000\n"}.items():
        with pytest.raises(InputError, match=r"none of the . images in .* exists, for example 0"):
            opened(folder / name, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,label,split\n0.png,a,train\n1.png,a,exam\n",
            "'split' .* must contain train, validation or test, got 'exam'",
        ),
        ("path,label,split\n0.png,a,train\n1.png,a,\n", "must contain train, validation or test, got ''"),
        ("path,usage\n0.png,Training\n1.png,PrivateTest\n", "'usage' .* got 'PrivateTest'"),
        ("path,set\n0.png,TR\n1.png,te\n", "'set' .* must contain train, validation or test, got 'TR'"),
        ("path,part\n0.png,train\n1.png,test\n", "columns that look like splits: part; name the right one 'split'"),
        ("path,is_test\n0.png,1\n1.png,0\n", "columns that look like splits: is_test"),
        ("path,set,phase\n0.png,train,test\n1.png,test,train\n", "columns that look like splits: set, phase"),
        ("image,file\n0.png,1.png\n", "several columns that may contain the paths: image, file"),
        ("photo,label\n0.png,1\n", "no image or path column .* its columns are photo, label"),
        ("path,label\n0.png,a,b\n", "line 2 of .* must have 2 values"),
        ("path,path\n0.png,1.png\n", "several columns 'path'"),
        ("", "is empty"),
        ("path\n0.png\n\0.png\n", "NUL"),
        ("path,label\n0.png,\n,a\n", "row 2 is empty"),
    ],
)
def test_tables_that_are_not_clear_are_refused(folder, text, message):
    with pytest.raises(InputError, match=message):
        opened(folder / "t.csv", text)


def test_columns_that_are_no_splits(folder):
    text = "path,label,fold,set,valid\n" + "".join(f"{i}.png,{i % 2},{i % 5},{'AB'[i % 2]},yes\n" for i in range(8))
    (folder / "t.csv").write_text(text)
    assert open_source(str(folder / "t.csv")).splits() == ["train"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["3", "700", "12", "3", "700", "12"], ["3", "700", "12", "3", "700", "12"]),
        (["0", "-1", "1", "0"], ["0", None, "1", "0"]),
        (["0", "-100", "1", "-100"], ["0", None, "1", None]),
        (["-1", "1", "1", "-1"], ["-1", "1", "1", "-1"]),
        (["1.0", "2.0", "", "1.0"], ["1", "2", None, "1"]),
        (["-1.0", "1.0", "1", "-1"], ["-1", "1", "1", "-1"]),
        (["cat", "", "dog", "-1"], ["cat", None, "dog", None]),
        (["NA", "None", "true", "null"], ["NA", "None", "true", "null"]),
        (["1", "2", "NaN", "n/a"], ["1", "2", None, None]),
        (["007", "7", "07", "7"], ["007", "7", "07", "7"]),
        (["1000000007", "5", "5", "1000000007"], ["1000000007", "5", "5", "1000000007"]),
        (["True", "False"] * 4, ["True", "False"] * 4),
    ],
)
def test_values_that_are_classes(folder, labels, expected):
    index = opened(folder / "t.csv", rows(labels))
    assert names(index) == expected
    assert set(index.classes) == set(expected) - {None}
    assert index.labels.dtype == torch.long


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(["a", " a ", "", "-1", "1", "1.0", "NA", "ä", "-1 ", "None"]) | st.text(max_size=3), min_size=1
    )
)
def test_labels_are_the_words_of_the_column(words):
    labels = encode_labels(pa.chunked_array([pa.array(words, pa.string())]), "label")
    found = [None if number < 0 else labels.classes[number] for number in labels.numbers.tolist()]
    assert set(labels.classes) == set(found) - {None}
    assert bool(labels.classes) != bool(labels.why_none)
    if labels.classes:
        for word, name in zip(words, found, strict=True):
            assert name in (word.strip(), None, "1")
            assert name is not None or word.strip().lower() in ("", "-1", "-1.0", "na", "none", "nan", "-")


def test_classes_that_are_numbers_are_sorted_as_numbers(folder):
    assert opened(folder / "t.csv", rows(["10", "9", "100", "9"])).classes == ("9", "10", "100")


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([f"{0.5 + number / 7}" for number in range(8)], "contains measurements, 8 different numbers"),
        (["0.25", "0.75"] * 4, "contains measurements"),
        ([f"{1_700_000_000 + number}" for number in range(8)], "8 values for 8 images, such as 1700000000"),
        ([f"id-{number}" for number in range(8)], "8 values for 8 images, such as id-0"),
        (["-1"] * 4, "'label' is empty or -1"),
        ([""] * 4, "'label' is empty or -1"),
    ],
)
def test_values_that_are_not_classes(folder, labels, reason):
    index = opened(folder / "t.csv", rows(labels))
    assert index.labels is None
    assert index.classes == ()
    assert reason in index.metadata["why_no_labels"]


def test_label_columns(folder):
    for columns, reason in {
        "path,other": "there is no column 'label'",
        "path,species_label": "no column is called 'label'; rename the right one of species_label",
    }.items():
        index = opened(folder / f"{columns}.csv", rows(["a", "b"], columns))
        assert (index.labels, index.metadata["why_no_labels"]) == (None, reason)
    text = "class,target,path\na,b,0.png\nc,d,1.png\n"
    assert "class, target" in opened(folder / "two.csv", text).metadata["why_no_labels"]
    assert opened(folder / "label.csv", text.replace("target", "Label")).classes == ("b", "d")


def test_ratings_are_classes_if_each_occurs_often(folder):
    text = "path,label\n" + "".join(f"{i % 8}.png,{(i % 4) / 2}\n" for i in range(80))
    assert opened(folder / "t.csv", text).classes == ("0", "0.5", "1", "1.5")


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.float64(), pa.bool_(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
def test_types_of_labels_in_parquet(folder, kind):
    is_text = pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
    labels = pa.array(["1", None, "0", "1"] if is_text else [1, None, 0, 1]).cast(kind)
    for name, column in {
        "path": pa.array([f"{i}.png" for i in range(4)]),
        "image": pa.array([{"bytes": (folder / f"{i}.png").read_bytes(), "path": None} for i in range(4)], IMAGE),
    }.items():
        pq.write_table(pa.table({name: column, "label": labels}), folder / f"{name}.parquet")
        expected = ["true", None, "false", "true"] if pa.types.is_boolean(kind) else ["1", None, "0", "1"]
        assert names(opened(folder / f"{name}.parquet")) == expected


def test_lists_and_times_are_not_classes(folder):
    images = [{"bytes": (folder / "0.png").read_bytes(), "path": None}] * 6
    columns = {
        "bytes": [b"\xff"] * 6,
        "lists": [[1, 2]] * 6,
        "times": pa.array(range(6), pa.timestamp("s")),
        "nothing": pa.nulls(6),
    }
    for name, reason in {
        "bytes": "values of type binary",
        "lists": "a list or structure",
        "times": "6 values for 6 images",
        "nothing": "is empty",
    }.items():
        pq.write_table(pa.table({"image": pa.array(images, IMAGE), "label": columns[name]}), folder / f"{name}.parquet")
        index = opened(folder / f"{name}.parquet")
        assert index.labels is None
        assert reason in index.metadata["why_no_labels"]


def test_classes_have_names_across_files_and_splits(tmp_path):
    images, _ = toy_images(4)
    write_parquet(tmp_path / "train-0.parquet", images, [0, 1, 0, -1], ["red", "blue"])
    write_parquet(tmp_path / "train-1.parquet", images, [0, 0, 1, 1], ["blue", "green"])
    write_parquet(tmp_path / "test-0.parquet", images, [0, 1, 2, -1], ["green", "pink", "red"])
    data = DataConfig(source=str(tmp_path), image_size=16)
    train, test = open_dataset(data), open_dataset(data, "test")
    assert names(train) == ["red", "blue", "red", None, "blue", "blue", "green", "green"]
    assert names(test) == ["green", "pink", "red", None]
    assert test.classes == (*train.classes, "pink")
    assert len(train.classes) == 3
    assert any("1 image is of classes without training images" in note and "pink" in note for note in test.notes)


def test_classes_of_tables_have_names_across_splits(folder):
    text = rows(["b,train", "c,train", "c,test", "a,test", "b,test", ",test"], "path,label,split")
    (folder / "t.csv").write_text(text)
    train, test = open_dataset(source(folder / "t.csv")), open_dataset(source(folder / "t.csv"), "test")
    assert (names(train), names(test)) == (["b", "c"], ["c", "a", "b", None])
    assert test.classes == ("b", "c", "a")


def test_unnamed_numbers_are_those_of_the_only_list_of_names(tmp_path):
    images, _ = toy_images(4)
    write_parquet(tmp_path / "train-0.parquet", images, [2, 0, 2, 5], ["x", "y", "z"])
    file = write_parquet(tmp_path / "test-0.parquet", images, [0, 2, 2, 0])
    pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    test = open_dataset(DataConfig(source=str(tmp_path), image_size=16), "test")
    assert names(test) == ["x", "z", "z", "x"]
    assert test.classes == ("x", "z", "unnamed 5")


def image_table(file: Path, **columns: int) -> Path:
    """Write a parquet file whose image columns have one gray value each."""
    table = {}
    for name, value in columns.items():
        Image.new("L", (8, 8), value).save(file.with_suffix(".png"))
        content = file.with_suffix(".png").read_bytes()
        table[name] = pa.array([{"bytes": content, "path": None}] * 3, IMAGE)
    file.with_suffix(".png").unlink()
    pq.write_table(pa.table(table), file)
    return file


def test_image_columns_are_found_by_name(tmp_path):
    for number, columns in enumerate([{"mask": 1, "image": 9}, {"depth": 1, "Img": 9, "mask": 2}, {"any": 9}]):
        assert values(open_dataset(source(image_table(tmp_path / f"{number}.parquet", **columns)))) == [9, 9, 9]
    with pytest.raises(InputError, match="several columns that may contain the images: left, right"):
        open_dataset(source(image_table(tmp_path / "two.parquet", left=1, right=2)))
    mask = pq.read_table(image_table(tmp_path / "mask.parquet", mask=1)).append_column(
        "image", pa.array(["u", "v", "w"])
    )
    pq.write_table(mask, tmp_path / "mask.parquet")
    with pytest.raises(InputError, match="several columns that may contain the images: mask, image"):
        open_dataset(source(tmp_path / "mask.parquet"))


def test_splits_in_a_column_of_parquet_images(tmp_path):
    file = write_parquet(tmp_path / "all.parquet", *toy_images(6))
    split = pa.array(["train"] * 3 + ["Test"] * 2 + ["train"])
    pq.write_table(pq.read_table(file).append_column("Split", split), file)
    assert [len(open_dataset(DataConfig(source=str(file)), name)) for name in ("train", "test")] == [4, 2]
    file.rename(tmp_path / "train.parquet")
    with pytest.raises(InputError, match="says train, but its column of splits has test, train"):
        open_dataset(DataConfig(source=str(tmp_path / "train.parquet")))


@pytest.mark.parametrize("name", ["t.csv", "t.txt", "paths.parquet", "images.parquet"])
def test_images_that_change_under_their_names_are_read_again(folder, name):
    paths = ["0.png", "1.png"]
    (folder / "t.csv").write_text("path\n" + "\n".join(paths))
    (folder / "t.txt").write_text("\n".join(paths))
    pq.write_table(pa.table({"path": paths}), folder / "paths.parquet")
    content = pa.array([{"bytes": None, "path": path} for path in paths], IMAGE)
    pq.write_table(pa.table({"image": content}), folder / "images.parquet")
    config = DataConfig(source=str(folder / name), channels=1)
    assert values(open_dataset(config)) == [0, 1]
    time.sleep(0.01)
    Image.new("L", (8, 8), 77).save(folder / "1.png")
    assert values(open_dataset(config)) == [0, 77]
    photo(8, 8).save(folder / "new.png")
    os.replace(folder / "new.png", folder / "0.png")  # noqa: PTH105
    assert values(open_dataset(config))[0] != 0


def test_an_image_of_a_folder_that_is_overwritten_in_place_is_read_again(folder):
    assert values(open_dataset(DataConfig(source=str(folder), channels=1)))[3] == 3
    time.sleep(0.01)
    with (folder / "3.png").open("r+b") as file:
        Image.new("L", (8, 8), 99).save(file, "PNG")
    assert values(open_dataset(DataConfig(source=str(folder), channels=1)))[3] == 99
