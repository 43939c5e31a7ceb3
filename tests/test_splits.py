"""Names of splits: folders, files and columns; what looks like a split is never trained on in silence."""

import re
from pathlib import Path

import pytest

from jepa.config import DataConfig, InputError
from jepa.data import open_dataset, open_source
from jepa.data.sources.splits import looks_like_split, split_of
from tests.conftest import toy_images, write_parquet
from tests.zoo import photo

NAMES = {
    "train": ["Train", " training ", "partial-train", "_train_", "TRAINING", "(train)"],
    "validation": ["val", "Valid", "dev", "devel", "partial-validation"],
    "test": ["TEST", "testing", "eval", "Evaluation"],
}
LOOK_LIKE_SPLITS = [
    *(
        "train_images",
        "testSet",
        "TestSet",
        "trainval",
        "train2",
        "test-a",
        "unsup",
        "Unlabeled",
        "held-out",
        "val2017",
    ),
    *("trian", "tset", "traning", "vaildation", "hidden_test", "train_masks", "devset", "private-eval"),
]
OTHERS = [
    *("train_station", "bullet_train", "test_tube", "rain", "brain", "chest", "contest", "raining", "valley", "device"),
    *(
        "text",
        "setting",
        "vale",
        "trains",
        "latest",
        "images",
        "2021",
        "all",
        "labels",
        "devil",
        "valve",
        "attestation",
        "terrain",
    ),
]


def write(root: Path, *names: str) -> Path:
    """Write an image for each path below `root`."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        photo(8, 8, number).save(root / name)
    return root


def splits(root: Path | str) -> dict[str, list[str]]:
    """Return the names of the images of each split."""
    source = open_source(str(root))
    indexes = {split: source.open(split) for split in source.splits()}
    return {split: [index.files.name(i) for i in range(len(index.files))] for split, index in indexes.items()}


def notes(root: Path) -> str:
    return " ".join(open_source(str(root)).open("train").metadata["notes"])


def test_words_of_splits():
    for split, names in NAMES.items():
        assert [split_of(name) for name in names] == [split] * len(names)
        assert not any(looks_like_split(name) for name in names)
    for name in (*LOOK_LIKE_SPLITS, *OTHERS):
        assert split_of(name) is None
        assert looks_like_split(name) == (name in LOOK_LIKE_SPLITS), name


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        (("Train/a/1.png", "train/b/1.png", "TESTING/a/1.png"), {"train": 2, "test": 1}),
        (("train/1.png", "val/1.png", "dev/1.png", "test/1.png"), {"train": 1, "validation": 2, "test": 1}),
        (("set/photos/train/1.png", "set/photos/eval/2.png"), {"train": 1, "test": 1}),
        (("images/training/1.png", "images/valid/2.png"), {"train": 1, "validation": 1}),
        (("bus/1.png", "car/1.png", "train/1.png", "train_station/1.png"), {"train": 4}),
        (("test_tube/1.png", "train_set/../train_car/1.png", "beach/1.png"), {"train": 3}),
        (("partial-train/1.png", "partial-test/1.png"), {"train": 1, "test": 1}),
    ],
)
def test_folders_of_splits(tmp_path, names, sizes):
    (tmp_path / "train_set").mkdir()
    write(tmp_path, *names)
    assert {split: len(files) for split, files in splits(tmp_path).items()} == sizes


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train_images/1.png", "test_images/1.png"), "look like splits.*: test_images, train_images"),
        (("train/1.png", "test/1.png", "test_hidden/1.png"), "look like splits.*: test_hidden"),
        (("train/1.png", "trian/1.png"), "look like splits.*: trian"),
        (("train/1.png", "test/1.png", "unlabeled/1.png"), "look like splits.*: unlabeled"),
        (("cat/1.png", "dog/1.png", "holdout/1.png"), "look like splits.*: holdout"),
        (("seg_train/a/1.png", "seg_test/a/1.png", "more/1.png"), "look like splits.*: seg_test, seg_train"),
        (("cat/1.png", "dog/1.png", "val/1.png"), r"contains splits \(val\) beside folders that are not \(cat, dog\)"),
        (("train/1.png", "images/1.png"), r"contains splits \(train\) beside"),
        (("train/a/1.png", "bus/1.png", "car/1.png"), r"contains splits \(train\) beside"),
        (("left/train/1.png", "left/val/1.png", "right/train/1.png", "right/val/1.png"), "in several folders"),
        (("tr/1.png", "va/1.png", "te/1.png"), "look like splits.*: te, tr, va"),
        (("Trainingsdaten/1.png", "Testdaten/1.png"), "look like splits.*: Testdaten, Train"),
        (
            ("photos/train_1.png", "photos/0_test.png"),
            "names of all images .* contain splits, for example photos/0_test",
        ),
        (("cat/val-1.png", "dog/train-2.png"), "names of all images .* contain splits"),
        (("data/train/1.png", "data/test/1.png", "cover.png"), "pass the folder that contains the splits"),
        (("cat/1.png", "cat/test/1.png", "dog/1.png", "dog/test/1.png"), "in several folders"),
    ],
)
def test_what_looks_like_a_split_is_refused(tmp_path, names, message):
    with pytest.raises(InputError, match=message) as caught:
        open_dataset(DataConfig(source=str(write(tmp_path, *names)), canvas=8))
    assert "\n" not in str(caught.value)


def test_unlabeled_images_beside_class_folders(tmp_path):
    write(tmp_path / "pets", "cat/1.png", "dog/1.png", *(f"unlabeled/{i}.png" for i in range(9)))
    write(tmp_path / "reviews", "train/neg/1.png", "train/pos/1.png", "train/unsup/1.png", "test/pos/1.png")
    for name, classes in (("pets", ("cat", "dog")), ("reviews", ("neg", "pos"))):
        index = open_source(str(tmp_path / name)).open("train")
        assert (index.classes, index.labels.tolist()) == (classes, [0, 1, *[-1] * (len(index.files) - 2)])


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (("JPEGImages/1.png",), ("SegmentationClass/1.png", "SegmentationObject/1.png")),
        (("images/cat/1.png", "images/dog/1.png"), ("segmentations/cat/1.png", "segmentations/dog/1.png")),
        (("images/train/1.png", "images/val/1.png"), ("masks/train/1.png", "masks/val/1.png")),
        (("train/img/1.png", "val/img/2.png"), ("train/ground_truth/1.png", "val/ground_truth/2.png")),
    ],
)
def test_masks_beside_images_are_not_used(tmp_path, images, masks):
    write(tmp_path, *images, *masks)
    assert sorted(name for names in splits(tmp_path).values() for name in names) == sorted(images)
    assert re.search(f"{len(masks)} images are outside .* and not used", notes(tmp_path))


def test_folders_that_are_no_classes(tmp_path):
    write(tmp_path / "one", "train/cat/1.png", "train/dog/1.png", "val/images/1.png", "test/test/1.png")
    write(tmp_path / "class", "train/photo/1.png", "train/sketch/1.png", "test/photo/1.png")
    write(tmp_path / "numbered", "images_001/1.png", "images_002/2.png")
    write(tmp_path / "nas", "cat/1.png", "cat/@eaDir/1.png", "dog/1.png", "@eaDir/1.png", "__MACOSX/cat/1.png")
    write(tmp_path / "folds", "fold1/cat/1.png", "fold2/cat/2.png")
    for name, split, expected in (
        ("one", "train", ("cat", "dog")),
        ("one", "validation", None),
        ("one", "test", None),
        ("class", "test", ("photo",)),
        ("nas", "train", ("cat", "dog")),
        ("numbered", "train", None),
        ("folds", "train", None),
    ):
        index = open_source(str(tmp_path / name)).open(split)
        assert (index.classes if index.labels is not None else None) == expected, (name, split)


def test_images_beside_the_splits_are_told(tmp_path):
    write(tmp_path, "train/1.png", "test/1.png", "extra/1.png", "extra/deep/2.png", "cover.png")
    assert splits(tmp_path) == {"test": ["test/1.png"], "train": ["train/1.png"]}
    assert "3 images are outside the split folders and not used: the folder itself 1, extra/ 1" in notes(tmp_path)
    assert open_dataset(DataConfig(source=str(tmp_path))).notes
    (tmp_path / "val").mkdir()
    assert "1 folder named as a split without images: val" in notes(tmp_path)


def test_one_folder_called_test_among_photos_is_told(tmp_path):
    write(tmp_path, "1.png", "2021/2.png", "2021/test/3.png")
    assert len(splits(tmp_path)["train"]) == 3
    assert "1 folder in train named as another split: 2021/test/" in notes(tmp_path)


@pytest.mark.parametrize("deep", ["", "default/", "more/data/"])
@pytest.mark.parametrize(
    ("train", "test"), [("partial-train", "partial-test"), ("Training", "eval"), ("x-train", "x-dev")]
)
def test_names_of_parquet_files(tmp_path, deep, train, test):
    images, _ = toy_images(3)
    for name, count in ((train, 2), (test, 1)):
        write_parquet(tmp_path / "files" / f"{deep}{name}-00000-of-00012.parquet", images[:count])
        write_parquet(tmp_path / "folders" / deep / name / "0000.parquet", images[:count])
    for root in ("files", "folders"):
        if root == "folders" and train == "x-train":
            continue
        sizes = {split: len(names) for split, names in splits(tmp_path / root).items()}
        assert sizes["train"] == 2
        assert sum(sizes.values()) == 3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("trainval.parquet",), "'trainval' .* does not name one split"),
        (("tr-0.parquet", "te-0.parquet"), "look like splits: te, tr"),
        (("Trainingsdaten/0.parquet", "Testdaten/0.parquet"), "look like splits: testdaten, trainingsdaten"),
        (("trian-0.parquet", "tset-0.parquet"), "does not name one split"),
        (("a/test/train-0.parquet", "a/train/0.parquet"), "'train-0' .* does not name one split"),
        (("train.parquet", "more.parquet"), "more.parquet does not name a split, but .*train.parquet does"),
        (("small/train.parquet", "large/train.parquet"), r"several subsets of a dataset \(large, small\)"),
        (("en-train.parquet", "de-train.parquet", "de-test.parquet"), r"several subsets of a dataset \(de, en\)"),
    ],
)
def test_ambiguous_names_of_parquet_files(tmp_path, names, message):
    for name in names:
        write_parquet(tmp_path / name, toy_images(2)[0])
    with pytest.raises(InputError, match=message):
        splits(tmp_path)


def test_a_pattern_may_mix_subsets_and_shards_are_no_subsets(tmp_path):
    for name in ("a/train-0", "b/train-0"):
        write_parquet(tmp_path / "subsets" / f"{name}.parquet", toy_images(2)[0])
    assert len(splits(tmp_path / "subsets" / "**" / "*.parquet")["train"]) == 4
    for name in ("part-0/train", "part-1/train", "train-3f2a1b4c-c000.snappy", "train_2_of_9"):
        write_parquet(tmp_path / "shards" / f"{name}.parquet", toy_images(2)[0])
    assert len(splits(tmp_path / "shards")["train"]) == 8


def test_a_damaged_shard_is_refused_and_other_parquet_files_are_left_out(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", toy_images(2)[0])
    (tmp_path / "train-1.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"train-1.parquet cannot be read as parquet"):
        splits(tmp_path)
    write(tmp_path / "photos", "1.png")
    (tmp_path / "photos" / "meta.parquet").write_bytes(b"PAR1")
    assert splits(tmp_path / "photos") == {"train": ["1.png"]}
