import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import jepa
from jepa.config import DataConfig, InputError
from jepa.config.errors import Interrupted
from jepa.data import open_splits
from jepa.embeddings import store
from tests.embedding_runs import save_images, save_run
from tests.test_cli import call

ROOT = Path(__file__).resolve().parent.parent
PARTIAL = ".out.parquet.partial"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide 8 images into shards of 4, in batches of 2."""
    monkeypatch.setattr("jepa.evaluation.features.BATCH_SIZE", 2)
    monkeypatch.setattr(store, "SHARD_IMAGES", 4)


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(save_run(tmp_path / "runs" / "tiny"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return save_images(tmp_path / "photos", {"train": 10, "test": 5})


def embed(capsys, run: str, photos: Path, out: Path, *options: str) -> str:
    """Call the command and return its output."""
    code, text, err = call(capsys, "embed", run, str(photos), "--out", str(out), *options)
    assert code == 0, err
    return text


def fail(capsys, run: str, photos: object, *options: str) -> str:
    """Call the command and return its error, one sentence."""
    code, out, err = call(capsys, "embed", run, str(photos), *options)
    assert (code, out) == (2, "")
    sentence = err.splitlines()[-1]
    assert sentence.startswith("jepa: ")
    return sentence


def test_a_parquet_file_has_a_row_for_each_image_of_all_splits(capsys, run, photos, tmp_path):
    out = tmp_path / "out.parquet"
    text = embed(capsys, run, photos, out)
    assert "15 images" in text
    assert "train 10 and test 5" in text
    table = pq.read_table(out)
    assert table.schema.names == ["path", "split", "label", "vector"]
    assert str(table.schema.field("vector").type).startswith("fixed_size_list<element: float")
    rows = table.to_pylist()
    assert [row["split"] for row in rows] == ["train"] * 10 + ["test"] * 5
    files = [photos / row["path"] for row in rows]
    assert [file.parent.name for file in files] == [row["label"] for row in rows]
    expected = jepa.load(run).embed([str(file) for file in files]).numpy()
    np.testing.assert_allclose([row["vector"] for row in rows], expected, atol=1e-5)
    metadata = json.loads(table.schema.metadata[b"image-jepa"])
    assert (metadata["model"], metadata["source"], metadata["dim"]) == ("tiny", str(photos), 32)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []


def test_one_split(capsys, run, photos, tmp_path):
    embed(capsys, run, photos, tmp_path / "out.parquet", "--split", "test")
    assert set(pq.read_table(tmp_path / "out.parquet")["split"].to_pylist()) == {"test"}
    error = fail(capsys, run, photos, "--split", "tset")
    assert "has no split 'tset', only train, test; did you mean 'test'?" in error


def test_numpy_and_projector_files_have_the_same_rows(capsys, run, photos, tmp_path):
    embed(capsys, run, photos, tmp_path / "a.parquet")
    embed(capsys, run, photos, tmp_path / "b.npy")
    embed(capsys, run, photos, tmp_path / "c.tsv")
    table = pq.read_table(tmp_path / "a.parquet")
    vectors = np.array(table["vector"].to_pylist(), np.float32)
    assert np.array_equal(np.load(tmp_path / "b.npy"), vectors)
    assert np.array_equal(np.loadtxt(tmp_path / "c.tsv", np.float32), vectors)
    expected = [list(row.values()) for row in table.select(["path", "split", "label"]).to_pylist()]
    for name, separator in (("b.csv", ","), ("c-metadata.tsv", "\t")):
        with (tmp_path / name).open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file, delimiter=separator)
        assert header == ["path", "split", "label"]
        assert rows == expected
    for name in ("b.json", "c.json"):
        assert json.loads((tmp_path / name).read_text(encoding="utf-8"))["dim"] == 32


def test_images_without_labels_have_no_column_and_gray_ones_no_other_file(capsys, run, tmp_path):
    folder = tmp_path / "ünï códe"
    folder.mkdir()
    Image.new("L", (30, 20), 128).save(folder / "ein bild,é\t.png")
    embed(capsys, run, folder, tmp_path / "out.npy")
    assert np.load(tmp_path / "out.npy").shape == (1, 32)
    assert (tmp_path / "out.csv").read_text(encoding="utf-8") == 'path,split\n"ein bild,é\\t.png",train\n'


def test_thumbnails(capsys, run, photos, tmp_path):
    out = tmp_path / "out.parquet"
    embed(capsys, run, photos, out, "--thumbnails")
    row = pq.read_table(out).to_pylist()[3]
    with Image.open(io.BytesIO(row["image"]["bytes"])) as image, Image.open(photos / row["path"]) as original:
        assert np.array_equal(np.asarray(image), np.asarray(original))
    assert "--thumbnails are stored in .parquet files only" in fail(
        capsys, run, photos, "--out", str(tmp_path / "x.npy"), "--thumbnails"
    )


@pytest.mark.parametrize(
    ("name", "interrupted_after"), [("out.parquet", 0), ("out.parquet", 1), ("out.npy", 3), ("out.tsv", 2)]
)
def test_an_interrupted_command_continues_to_the_same_bytes(
    capsys, monkeypatch, run, photos, tmp_path, name, interrupted_after
):
    embed(capsys, run, photos, tmp_path / f"whole-{name}")
    out = tmp_path / name
    write, written = store.FeatureShards._write, []

    def stop(self, shard, parts):
        if len(written) == interrupted_after:
            raise Interrupted("interrupted", signal.SIGTERM)
        written.append(shard)
        write(self, shard, parts)

    monkeypatch.setattr(store.FeatureShards, "_write", stop)
    code, _, err = call(capsys, "embed", run, str(photos), "--out", str(out))
    assert code == 128 + signal.SIGTERM
    assert "run the same command again to continue" in err
    assert not out.exists()
    folder = tmp_path / f".{name}.partial"
    assert folder.exists() == (interrupted_after > 0)
    monkeypatch.setattr(store.FeatureShards, "_write", write)
    text = embed(capsys, run, photos, out)
    assert ("had been embedded before" in text) == (interrupted_after > 0)
    assert not folder.exists()
    for end in ("out.parquet", "out.npy", "out.csv", "out.tsv", "out-metadata.tsv"):
        if (tmp_path / end).exists():
            assert (tmp_path / end).read_bytes() == (tmp_path / f"whole-{end}").read_bytes()


def interrupt_before_the_end(capsys, monkeypatch, run, photos, out) -> Path:
    """Leave all shards, and return their folder."""

    def stop(*_):
        raise Interrupted("interrupted", signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr("jepa.embeddings.embed.assemble", stop)
        assert call(capsys, "embed", run, str(photos), "--out", str(out))[0] == 130
    return out.with_name(f".{out.name}.partial")


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "record", "lock"])
def test_damaged_shards_are_written_again(capsys, monkeypatch, run, photos, tmp_path, damage):
    embed(capsys, run, photos, tmp_path / "whole.parquet")
    out = tmp_path / "out.parquet"
    folder = interrupt_before_the_end(capsys, monkeypatch, run, photos, out)
    file = folder / "000001.bin"
    content = file.read_bytes()
    if damage == "flip":
        file.write_bytes(content[:7] + bytes([content[7] ^ 1]) + content[8:])
    elif damage == "truncate":
        file.write_bytes(content[:-4])
    elif damage == "remove":
        file.unlink()
    elif damage == "record":
        file.with_suffix(".json").write_text("{}", encoding="utf-8")
    else:
        (folder / ".lock").write_text("process 1 on elsewhere", encoding="utf-8")
    text = embed(capsys, run, photos, out)
    assert f"{15 if damage == 'lock' else 11} images had been embedded before" in text
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_another_model_or_other_images_start_again(capsys, monkeypatch, run, photos, tmp_path):
    out = tmp_path / "out.parquet"
    interrupt_before_the_end(capsys, monkeypatch, run, photos, out)
    other = str(save_run(tmp_path / "runs" / "other", seed=1))
    text = embed(capsys, other, photos, out)
    assert "started again, because these have changed: model" in text
    embed(capsys, other, photos, tmp_path / "whole.parquet")
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    out.unlink()
    interrupt_before_the_end(capsys, monkeypatch, run, photos, out)
    file = next((photos / "test").rglob("*.png"))
    Image.new("RGB", (16, 16)).save(file)
    assert "these have changed: images" in embed(capsys, run, photos, out)


def test_an_existing_file_is_kept(capsys, run, photos, tmp_path):
    for name in ("out.parquet", "out.npy"):
        out = tmp_path / name
        embed(capsys, run, photos, out)
        before = out.read_bytes()
        assert "is complete" in embed(capsys, run, photos, out)
        error = fail(capsys, run, photos, "--out", str(out), "--split", "test")
        assert "exists and has other features (different: images); remove it, or give another --out" in error
        assert out.read_bytes() == before
    (tmp_path / "mine.csv").write_text("mine", encoding="utf-8")
    assert "mine.csv exists and would be replaced" in fail(capsys, run, photos, "--out", str(tmp_path / "mine.npy"))
    (tmp_path / "no.parquet").write_text("[]", encoding="utf-8")
    assert "no.parquet exists and would be" in fail(capsys, run, photos, "--out", str(tmp_path / "no.parquet"))
    (tmp_path / "no.parquet").unlink()
    embed(capsys, run, photos, tmp_path / "key.npy")  # a name of the folder of shards


def test_files_that_were_being_moved_are_moved_again(capsys, monkeypatch, run, photos, tmp_path):
    out = tmp_path / "out.npy"
    replace = Path.replace

    def stop(self, target):
        if Path(target) == out:
            raise Interrupted("interrupted", signal.SIGTERM)
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        assert call(capsys, "embed", run, str(photos), "--out", str(out))[0] == 143
    assert (tmp_path / "out.csv").exists()
    assert not out.exists()
    embed(capsys, run, photos, out)
    assert np.load(out).shape == (15, 32)


def test_broken_images_are_listed(capsys, run, photos, tmp_path):
    (photos / "train" / "a" / "empty.png").write_bytes(b"")
    (photos / "test" / "b" / "text.png").write_text("no image", encoding="utf-8")
    out = tmp_path / "out.parquet"
    text = embed(capsys, run, photos, out)
    listing = tmp_path / "out.parquet.broken.txt"
    lines = listing.read_text(encoding="utf-8").splitlines()
    assert lines == [
        "train/a/empty.png: the file is empty",
        "test/b/text.png: it is not an image that Pillow can read",
    ]
    assert "skipped: 2 unreadable images" in " ".join(text.split())
    paths = pq.read_table(out)["path"].to_pylist()
    assert len(paths) == 15
    assert not {"train/a/empty.png", "test/b/text.png"} & set(paths)
    out.unlink()
    error = fail(capsys, run, photos, "--out", str(out), "--max-broken", "0")
    assert "2 of 17 images" in error
    assert "raise --max-broken" in error
    assert str(listing) in error
    assert listing.read_text(encoding="utf-8").splitlines() == lines
    assert not out.exists()
    assert "17 images had been embedded before" in embed(capsys, run, photos, out, "--max-broken", "0.5")


def test_a_shard_of_broken_images_is_complete(capsys, run, photos, tmp_path):
    for file in sorted(photos.rglob("*.png"))[:5]:  # more than a shard of the test split
        file.write_bytes(b"")
    out = tmp_path / "out.parquet"
    error = fail(capsys, run, photos, "--out", str(out), "--max-broken", "0")
    assert "images of" in error
    embed(capsys, run, photos, out, "--max-broken", "0.9")
    assert pq.read_table(out).num_rows == 10
    for file in photos.rglob("*.png"):
        file.write_bytes(b"")
    assert "15 of 15 images" in fail(capsys, run, photos, "--out", str(tmp_path / "x.npy"), "--max-broken", "1")


def test_errors_in_the_arguments(capsys, run, photos, tmp_path):
    assert "--out must be a file name that ends in .parquet, .npy, .tsv, got x.csv" in fail(
        capsys, run, photos, "--out", "x.csv"
    )
    assert "of --out" in fail(capsys, run, photos, "--out", str(tmp_path / "no" / "x.npy"))
    assert "--max-broken must be between 0 and 1, got 2.0" in fail(capsys, run, photos, "--max-broken", "2")
    assert "there is no run folder" in fail(capsys, str(tmp_path / "none"), photos)
    assert "does not exist" in fail(capsys, run, tmp_path / "none", "--out", str(tmp_path / "x.npy"))
    assert "SOURCE is missing; usage: jepa embed RUN SOURCE" in call(capsys, "embed", run)[2]


def test_another_process_holds_the_folder(capsys, run, photos, tmp_path):
    folder = tmp_path / PARTIAL
    folder.mkdir()
    with store.lock(folder / ".lock"):
        error = fail(capsys, run, photos, "--out", str(tmp_path / "out.parquet"))
    assert "extracts features into" in error
    assert folder.exists()


def test_open_splits_aligns_labels(photos):
    shutil.rmtree(photos / "test" / "a")
    config = DataConfig(source=str(photos), image_size=16)
    found = open_splits(config)
    assert list(found) == ["train", "test"]
    assert found["test"].classes == found["train"].classes == ("a", "b")
    assert set(found["test"].labels.tolist()) == {1}
    assert list(open_splits(config, "test")) == ["test"]
    with pytest.raises(InputError, match="has no split 'val', only train, test"):
        open_splits(config, "val")


SLOW = """
import time
from jepa.embeddings import store
store.SHARD_IMAGES, write = 4, store.FeatureShards._write
def slow(*arguments):
    time.sleep(0.1)
    write(*arguments)
store.FeatureShards._write = slow
import jepa.distributed
jepa.distributed.has_bf16_instructions = lambda: False
import jepa.evaluation.features as features
features.BATCH_SIZE = 2
from jepa.cli import main
main()
"""


def test_a_killed_process_is_continued_to_the_same_bytes(capsys, run, photos, tmp_path):
    out = tmp_path / "out.parquet"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", SLOW, "embed", run, str(photos), "--out", str(out)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    while not (tmp_path / PARTIAL / "000001.json").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    assert not out.exists()
    assert "images had been embedded before" in embed(capsys, run, photos, out)
    embed(capsys, run, photos, tmp_path / "whole.parquet")
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
