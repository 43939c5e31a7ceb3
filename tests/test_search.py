import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jepa.embeddings import duplicates, neighbors, store
from jepa.embeddings.neighbors import Neighbors
from jepa.embeddings.source import Image as SourceImage
from jepa.embeddings.source import SourceImages
from jepa.embeddings.store import cached_features
from jepa.evaluation.knn import nearest
from tests.embedding_runs import save_images, save_run
from tests.test_cli import call


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jepa.evaluation.features.BATCH_SIZE", 4)
    monkeypatch.setattr(store, "SHARD_IMAGES", 8)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save_run(tmp_path / "runs" / "tiny")


def detailed_image(seed: int) -> np.ndarray:
    """Draw a random image of large and small squares, as an image that is told from others by its details."""
    rng = np.random.default_rng(seed)
    large = np.kron(rng.integers(0, 200, (4, 4, 3)), np.ones((4, 4, 1)))
    return (large + np.kron(rng.integers(0, 55, (8, 8, 3)), np.ones((2, 2, 1)))).astype(np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """20 training and 6 test images; a test image has a brighter copy in the training split."""
    for split, seeds in (("train", range(20)), ("test", range(20, 26))):
        for seed in seeds:
            file = tmp_path / "photos" / split / "ab"[seed % 2] / f"{seed:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(detailed_image(seed)).save(file)
    Image.fromarray(detailed_image(20) + 1).save(tmp_path / "photos" / "train" / "a" / "copy.png")
    return tmp_path / "photos"


def run_command(capsys, *arguments: object) -> str:
    """Call a command and return its output."""
    code, out, err = call(capsys, *map(str, arguments))
    assert code == 0, err
    return out


def test_exact_neighbors_are_those_of_the_evaluation(run, photos):
    images = SourceImages.open(run, str(photos))
    shards = cached_features(images)
    bank = torch.cat([block.x for block in shards.blocks()])
    queries = torch.randn(5, 32)
    expected, rows = nearest(bank, queries, 7)
    similarities, found = Neighbors(shards).nearest(queries, 7)
    torch.testing.assert_close(similarities, expected)
    assert torch.equal(found, rows)


def test_rows_are_located_without_unreadable_images(run, photos):
    for name in ("train/a/00.png", "train/b/13.png", "test/b/21.png"):
        (photos / name).write_bytes(b"")
    images = SourceImages.open(run, str(photos))
    shards = cached_features(images)
    expected = [image for block in shards.blocks() for image in block.images]
    assert len(expected) == len(shards) == 24
    assert shards.locate(range(24)) == expected
    assert expected[0] == SourceImage("train", 1)


def test_a_search_finds_the_image_itself_and_its_copy(capsys, run, photos, tmp_path):
    query = photos / "test" / "a" / "20.png"
    text = run_command(capsys, "search", run, photos, query, "--count", "3")
    lines = text.splitlines()
    assert lines[0] == f"nearest 3 of 27 images of {photos}, compared exactly"
    assert lines[2] == str(query)
    assert lines[3].split() == ["1", "1.000", "test", "a", "test/a/20.png"]
    assert lines[4].split()[2:] == ["train", "a", "train/a/copy.png"]
    assert len(lines) == 6
    only = run_command(capsys, "search", run, photos, query, "--split", "train", "--count", "1")
    assert "train/a/copy.png" in only
    assert "nearest 1 of 21 images" in only


def test_features_are_reused_until_the_images_change(capsys, monkeypatch, run, photos):
    query = photos / "test" / "a" / "20.png"
    first = run_command(capsys, "search", run, photos, query)
    write, written = store.FeatureShards._write, []

    def count(self, shard, parts):
        written.append(shard)
        write(self, shard, parts)

    monkeypatch.setattr(store.FeatureShards, "_write", count)
    assert run_command(capsys, "search", run, photos, query) == first
    assert not written
    Image.fromarray(detailed_image(99)).save(photos / "test" / "b" / "21.png")
    run_command(capsys, "search", run, photos, query)
    assert len(written) == 4


def test_lists_of_queries_and_the_page(capsys, run, photos, tmp_path):
    (photos / "list.txt").write_text("test/a/20.png\n\n  train/b/01.png\n", encoding="utf-8")
    shutil.copy(photos / "train" / "a" / "00.png", tmp_path / "a <b>.png")
    source = tmp_path / "source"
    photos.rename(source)
    page = tmp_path / "page.html"
    (tmp_path / "list.txt").write_text("source/test/a/20.png\n\n  source/train/b/01.png\n", encoding="utf-8")
    (source / "list.txt").unlink()
    names = (tmp_path / "list.txt", tmp_path / "a <b>.png")
    text = run_command(capsys, "search", run, source, *names, "--html", page, "--count", "4")
    assert [line for line in text.splitlines() if line.startswith("  1")] == [
        "  1   1.000  test   a  test/a/20.png",
        "  1   1.000  train  b  train/b/01.png",
        "  1   1.000  train  a  train/a/00.png",
    ]
    html = page.read_text(encoding="utf-8")
    assert html.count("data:image/png;base64") == 3 * 5
    assert "a &lt;b&gt;.png" in html
    assert not re.search(r"https?://|<b>.png", html)


def test_gray_images_without_labels_and_a_single_one(capsys, run, tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    Image.new("L", (40, 30), 99).save(folder / "gray.png")
    text = run_command(capsys, "search", run, folder, folder / "gray.png")
    assert "nearest 1 of 1 images" in text
    assert text.splitlines()[-1].endswith("gray.png")
    assert "no near-duplicates among 1 images" in run_command(capsys, "duplicates", run, folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.png"], "the query none.png does not exist; give image files, or .txt files"),
        (["."], "the query . is a folder"),
        (["broken.png"], "the query broken.png cannot be read: it is not an image"),
        (["empty.txt"], "the list of queries empty.txt is empty"),
        (["none.txt"], "the list of queries none.txt cannot be read"),
        (["broken.png", "--count", "0"], "--count must be between 1 and 1,000, got 0"),
        (["broken.png", "--html", "page.txt"], "--html must be a file name that ends in .html, got page.txt"),
        (["broken.png", "--html", "none/page.html"], "the folder none of --html none/page.html does not exist"),
        ([], "QUERY is missing"),
    ],
)
def test_errors(capsys, monkeypatch, run, photos, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("broken.png").write_text("no image", encoding="utf-8")
    Path("empty.txt").write_text("\n", encoding="utf-8")
    code, out, err = call(capsys, "search", str(run), str(photos), *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not Path("page.html").exists()


def test_a_run_that_cannot_be_written_to(capsys, monkeypatch, run, photos, tmp_path):
    monkeypatch.setattr("jepa.data.sources.base.USER_CACHE", tmp_path / "user")
    monkeypatch.setattr("jepa.data.sources.base.os.access", lambda *_: False)
    run_command(capsys, "search", run, photos, photos / "train" / "a" / "00.png")
    assert list((tmp_path / "user").rglob("*.bin"))
    assert not list((tmp_path / "runs").rglob("*.bin"))


def test_faiss_finds_the_same(capsys, monkeypatch, run, photos):
    pytest.importorskip("faiss")
    query = photos / "test" / "a" / "20.png"
    exact = run_command(capsys, "search", run, photos, query)
    monkeypatch.setattr(neighbors, "MIN_APPROXIMATE", 10)
    for _ in range(2):  # the index is built, then read
        found = run_command(capsys, "search", run, photos, query)
        assert "found approximately by faiss" in found
        assert found.splitlines()[2:] == exact.splitlines()[2:]
    (index,) = photos.parent.rglob("hnsw.faiss")
    content = bytearray(index.read_bytes())
    for damaged in (b"", content[: len(content) // 2], content[:-100] + bytes(100)):
        index.write_bytes(damaged)
        assert run_command(capsys, "search", run, photos, query).splitlines()[2:] == exact.splitlines()[2:]
        assert index.read_bytes() == content


def test_near_duplicates_across_splits(capsys, run, photos, tmp_path):
    table, page = tmp_path / "pairs.csv", tmp_path / "page.html"
    text = run_command(capsys, "duplicates", run, photos, "--csv", table, "--html", page)
    assert "1 group of near-duplicates (2 images, 1 pair) among 27 images" in text
    assert "leaks: 1 pair across train and test" in text
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1
    assert float(rows[0].pop("similarity")) > 0.99
    assert rows[0] == {
        **{"path_1": "train/a/copy.png", "split_1": "train", "label_1": "a"},
        **{"path_2": "test/a/20.png", "split_2": "test", "label_2": "a", "across_splits": "true"},
    }
    assert page.read_text(encoding="utf-8").count("data:image/png;base64") == 2
    assert "no near-duplicates among 6 images" in run_command(capsys, "duplicates", run, photos, "--split", "test")


def test_different_objects_of_one_shape_are_no_duplicates_but_copies_are(capsys, run, tmp_path):
    """As in Fashion-MNIST, the silhouette is always the same, and only faint textures differ."""
    shape = np.zeros((16, 16, 3))
    shape[2:14, 4:12] = 200
    folder = tmp_path / "clothes" / "train"
    folder.mkdir(parents=True)
    for seed in range(40):
        texture = np.random.default_rng(seed).integers(0, 255, (16, 16, 3))
        clothes = Image.fromarray((0.92 * shape + 0.08 * texture).astype(np.uint8))
        clothes.save(folder / f"{seed:02d}.png")
        if seed == 7:
            clothes.save(folder / "copy.jpg", quality=95, subsampling=0)
    every = ("--threshold", "-1")
    text = run_command(capsys, "duplicates", run, folder.parent, *every)
    assert "1 group of near-duplicates (2 images, 1 pair) among 41 images" in text
    assert sorted(line.split()[-1] for line in text.splitlines()[-2:]) == ["train/07.png", "train/copy.jpg"]


@pytest.mark.parametrize("others", [0, 1, 20])
def test_recompressed_copies_are_one_group(capsys, run, tmp_path, others):
    folder = tmp_path / "copies" / "train"
    folder.mkdir(parents=True)
    for seed in range(others):
        Image.fromarray(detailed_image(100 + seed)).save(folder / f"other-{seed}.png")
    for quality in range(90, 99):
        Image.fromarray(detailed_image(3)).save(folder / f"{quality}.jpg", quality=quality, subsampling=0)
    text = run_command(capsys, "duplicates", run, folder.parent)
    assert "1 group of near-duplicates (9 images, " in text
    assert "other" not in text


def test_features_alone_find_more(capsys, run, photos):
    Image.fromarray(detailed_image(20)[:, ::-1]).save(photos / "train" / "a" / "mirror.png")
    text = run_command(capsys, "duplicates", run, photos)
    assert "mirror.png" not in text
    text = run_command(capsys, "duplicates", run, photos, "--no-pixels", "--threshold", "-1")
    assert "mirror.png" in text
    assert "by features alone" in text


def test_copies_of_one_image_are_one_group(capsys, run, photos):
    for number in range(12):
        shutil.copy(photos / "train" / "a" / "00.png", photos / "train" / "b" / f"copy-{number}.png")
    text = run_command(capsys, "duplicates", run, photos)
    assert "2 groups of near-duplicates (15 images" in text
    assert "13 images" in text
    assert "… 7 more" in text


def test_groups_are_connected_pairs():
    a, b, c, d, e = (SourceImage("train", index) for index in range(5))
    pairs = [duplicates.Pair(d, e, 0.99), duplicates.Pair(a, b, 0.9), duplicates.Pair(b, c, 0.8)]
    first, second = duplicates.group_pairs(pairs)
    assert duplicates.members(first) == {a: 0.9, b: 0.9, c: 0.8}
    assert duplicates.members(second) == {d: 0.99, e: 0.99}


def test_the_threshold_is_checked(capsys, run, photos):
    for arguments, message in ((["--threshold", "2"], "between -1 and 1"), (["--csv", "x.txt"], "ends in .csv")):
        code, _, err = call(capsys, "duplicates", str(run), str(photos), *arguments)
        assert code == 2
        assert message in err


def test_unreadable_images_are_counted(capsys, run, tmp_path):
    folder = save_images(tmp_path / "photos", {"train": 9})
    (folder / "train" / "a" / "empty.png").write_bytes(b"")
    text = run_command(capsys, "duplicates", run, folder)
    assert "skipped: 1 unreadable image, for example train/a/empty.png: the file is empty" in text
