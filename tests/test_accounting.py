"""`jepa data` accounts for every file, and no file stops or hides another."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.config import InputError
from jepa.data import open_source
from jepa.data.describe import inspect_source
from jepa.data.duplicates import find_duplicates
from jepa.data.sources.base import source_cache
from tests.conftest import toy_images, write_parquet
from tests.test_splits import notes, splits, write
from tests.zoo import photo

FOLDERS = st.sampled_from(["train", "Test", "dev", "cat", "dog", ".git", "runs", "empty", "images", "masks", "@eaDir"])
IMAGES = ("1.png", "2.JPG", "3.tiff", ".hidden.png")
OTHERS = ("notes.txt", "README", "x.npy", "gone.png ->", "gone ->", "up ->", "fifo.png |", "pipe |")
FILES = st.sampled_from((*IMAGES, *OTHERS))


def fill(root: Path, files: list[tuple[list[str], str]]) -> None:
    """Create files below `root`: an arrow stands for a broken link or one to the folder above, a bar for a FIFO."""
    for folders, name in files:
        folder = root.joinpath(*folders)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name.split(" ")[0]
        if os.path.lexists(path):
            continue
        if name.endswith("->"):
            path.symlink_to(".." if name.startswith("up") else "nowhere")
        elif name.endswith("|"):
            os.mkfifo(path)
        else:
            path.write_bytes(b"x")


@settings(max_examples=60, deadline=None)
@given(files=st.lists(st.tuples(st.lists(FOLDERS, max_size=3), FILES), max_size=12))
def test_every_file_of_a_folder_is_counted(files):
    with tempfile.TemporaryDirectory() as name:
        root, cache = Path(name) / "root", Path(name) / "cache"
        root.mkdir()
        fill(root, files)
        entries = [Path(folder) / file for folder, folders, files in os.walk(root) for file in files + folders]
        total = sum(not path.is_dir() or path.is_symlink() for path in entries)  # the links lead up, or nowhere
        source = open_source(str(root), cache)
        try:
            sizes = {split: len(source.open(split).files) for split in source.splits()}
        except InputError as error:
            assert any(word in str(error) for word in ("contains no images", "splits"))  # noqa: PT017
            return
        counts = source.count_files()
        assert sum(counts.values()) == total
        assert counts["images"] == sum(sizes.values())


def test_the_count_is_that_of_find(tmp_path):
    root = write(
        tmp_path / "root", "train/a/1.png", "train/b/2.png", "val/a/3.png", "more/4.png", ".git/5.png", ".6.png"
    )
    write(root, "runs/.jepa-cache/7.png", "runs/demo/8.png", "elsewhere/../train/9.png")
    (root / "train" / "linked").symlink_to(root / "more")  # a folder that is read in two places
    (root / "train" / "notes.txt").touch()
    source = open_source(str(root))
    found = subprocess.run(["find", "-L", root, "-type", "f"], capture_output=True, text=True, check=True)
    assert sum(source.count_files().values()) == len(found.stdout.split())
    assert source.count_files()["images outside the splits"] == 1
    assert "train/linked/4.png" in splits(root)["train"]


def test_files_beside_parquet_files_are_counted(tmp_path):
    root = write(tmp_path / "root", "figures/1.png", "figures/2.png")
    write_parquet(root / "train.parquet", toy_images(4)[0])
    (root / "README.md").touch()
    text = describe(root)
    assert "files 4 in all: 1 parquet files of images, 2 image files beside them, 1 .md" in text
    assert "note 2 image files beside the parquet files are not used" in text


def test_special_files_do_not_hide_their_class(tmp_path):
    root = write(tmp_path / "root", "cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")
    (root / "cat" / "me.png").symlink_to("me.png")
    (root / "cat" / "gone.png").symlink_to("nowhere.png")
    (root / "dog" / "zero.png").symlink_to("/dev/zero")
    (root / "cow").symlink_to(root / "nowhere")
    os.mkfifo(root / "dog" / "pipe.png")
    os.mkfifo(root / "dog" / "pipe.txt")
    (root / "dog" / "piped.png").symlink_to("pipe.png")
    (root / "dog" / "loop").symlink_to(root)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "dog" / "s.png"))
        assert splits(root) == {"train": ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"]}
    index = open_source(str(root)).open("train")
    assert index.classes == ("cat", "dog")
    assert index.metadata["notes"] == ["what may be images cannot be read: 4 special files, 3 broken links"]
    assert open_source(str(root)).count_files() == {
        "parquet files of images": 0,
        "images": 4,
        "images outside the splits": 0,
        "special files": 4,
        "broken links": 3,
        ".txt": 1,
        "loops of links": 1,
    }


def test_folders_that_link_to_each_other_end(tmp_path):
    for name in "abcdefgh":
        write(tmp_path, f"{name}/{name}.png")
    for name in "abcdefgh":
        for other in set("abcdefgh") - {name}:
            (tmp_path / name / f"to-{other}").symlink_to(tmp_path / other)
    files = splits(tmp_path)["train"]
    assert {Path(file).name for file in files} == {f"{name}.png" for name in "abcdefgh"}
    assert len(files) <= 8 * 16


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_closed_folders_are_told(tmp_path):
    root = write(tmp_path / "root", "cat/1.png", "dog/1.png", "cow/1.png")
    write(tmp_path / "closed", "2.png")
    (root / "cat" / "2.png").symlink_to(tmp_path / "closed" / "2.png")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and str(folder).startswith(tempfile.gettempdir() + "/"):
            folder.chmod(0o755)
    for folder in (root / "cow", tmp_path / "closed"):
        folder.chmod(0)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    code = (
        "import os, sys; from pathlib import Path; from jepa.data import open_source\n"
        "open_source(sys.argv[3], Path(sys.argv[4])).open('train')\n"  # imports what the other user may not read
        "os.setuid(65534)\n"
        "index = open_source(sys.argv[1], Path(sys.argv[2])).open('train')\n"
        "print(len(index.files), *index.classes, *index.metadata['notes'], sep='; ')"
    )
    readable = write(tmp_path / "readable", "cat/1.png", "dog/1.png")
    command = [sys.executable, "-c", code, root, tmp_path / "cache", readable, tmp_path / "other cache"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "2; cat; dog; 1 folder cannot be read: cow/ (Permission denied); "
        "what may be images cannot be read: 1 entries without permission"
    )


def test_a_link_that_is_mended_is_found(tmp_path, cache):
    root = write(tmp_path / "root", "1.png")
    (root / "2.png").symlink_to(tmp_path / "later.png")
    for folder in (root,):
        os.utime(folder, (1, 1))
    assert len(splits(root)["train"]) == 1
    photo(8, 8, 9).save(tmp_path / "later.png")
    assert len(splits(root)["train"]) == 2
    assert (source_cache(str(root), cache) / "train.arrow").is_file()


def describe(source: Path, **options) -> str:
    return " ".join(inspect_source(str(source), source.parent / "sheet.png", **options).split())


def test_duplicates_across_splits_are_reported(tmp_path):
    root = write(tmp_path / "root", "train/1.png", "train/2.png", "train/3.png", "val/9.png")
    for name in ("1", "2"):
        shutil.copy(root / "train" / f"{name}.png", root / "val" / f"x{name}.png")
    shutil.copy(root / "train" / "3.png", root / "train" / "again.png")
    (root / "train" / "empty.png").touch()
    (root / "val" / "empty.png").touch()
    text = describe(root)
    assert "validation: 2 of 4 images are also in train: val/x1.png = train/1.png" in text
    assert "train: 1 group: train/3.png = train/again.png" in text
    assert "validation: all images inspected" in text
    assert text.count("broken 1: ") == 2  # the empty files


def test_duplicates_in_parquet_files_and_their_limit(tmp_path):
    images, _ = toy_images(8)
    write_parquet(tmp_path / "p" / "train-0.parquet", images)
    write_parquet(tmp_path / "p" / "test-0.parquet", [*images[3:5], images[4]])
    source = open_source(str(tmp_path / "p"))
    indexes = {split: source.open(split) for split in ("train", "test")}
    found = find_duplicates(indexes, None)
    assert found.across("test", "train") == [(0, 3), (1, 4), (2, 4)]
    assert found.within("test") == [[1, 2]]
    assert found.within("train") == []
    limited = find_duplicates(indexes, 1)
    assert limited.across("test", "train") == [(0, 3)]
    assert {split: len(images) for split, images in limited.compared.items()} == {"train": 1, "test": 1}


def test_what_was_sampled_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("jepa.data.describe.MAX_COMPARED_IMAGES", 2)
    root = write(tmp_path / "root", *(f"{i}.png" for i in range(5)))
    assert "train: 2 of 5 images were compared with all others (use --all for all of them)" in describe(root)
    assert "were compared" not in describe(root, inspect_all=True)


def test_labels_are_described(tmp_path):
    write(tmp_path, "0.png", "1.png", "2.png", "3.png")
    text = "path,label,split\n0.png,a,train\n1.png,b,train\n2.png,,train\n3.png,c,test\n"
    (tmp_path / "t.csv").write_text(text)
    text = inspect_source(str(tmp_path / "t.csv"), tmp_path / "sheet.png")
    words = " ".join(text.split())
    assert "2 classes: a 1, b 1; 1 without a label (-1 or missing)" in words
    assert "note test: 1 image is of classes without training images" in words
    assert "1 class: c 1" in words
    assert max(len(line) for line in text.splitlines() if "/" not in line) <= 100


def test_notes_are_those_of_the_training_images(tmp_path):
    write(tmp_path, "train/1.png", "test/1.png", "spare/1.png")
    assert "spare/ 1" in notes(tmp_path)
    text = inspect_source(str(tmp_path), tmp_path / "sheet.png")
    assert text.count("spare/") == 1  # not once for each split
