"""Damaged, special and oversized files, and datasets with a few of them: none stops a run, none is read wrongly."""

import io
import os
import socket
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jepa.config import DataConfig, InputError
from jepa.data import BrokenFileLog, EncodedImages, open_dataset
from jepa.data.decode import Unreadable, decode, read_header
from jepa.data.loader import max_unreadable
from jepa.train import train
from tests.conftest import tiny_config
from tests.zoo import chunk, photo

SIGNATURE = 33  # bytes of a PNG before its first ancillary chunk


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    """Return a segment of a JPEG file."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"quality": 100}])
@pytest.mark.parametrize("image", [photo(90, 70), NOISE, photo(90, 70).convert("L"), NOISE.convert("CMYK")])
def test_a_jpeg_needs_all_rows_but_no_end_marker(image, options):
    file = encoded(image, "JPEG", **options)
    for canvas in (None, (16, 20)):
        pixels = decode(file, 3, canvas)
        for end in (b"", b"\xff", b"\xff\xd9 and more", b"text" * 50, bytes(600)):
            assert np.array_equal(decode(file[:-2] + end, 3, canvas), pixels), end
    for cut in (8, 20, 100, len(file) // 2):
        for end in (b"", bytes(600), b"\xff" * 20):
            with pytest.raises(Unreadable, match=r"truncated|broken data stream"):
                decode(file[:-cut] + end, 3)


@pytest.mark.parametrize("options", [{}, {"no_jp2": True}, {"tile_size": (32, 32)}])
def test_a_jpeg_2000_needs_all_rows_but_no_end_marker(options):
    file = encoded(NOISE, "JPEG2000", **options)
    pixels = decode(file, 3)
    assert np.array_equal(decode(file[:-2], 3), pixels)
    assert np.array_equal(decode(file + b"trailing", 3), pixels)
    for cut in (3, 10, len(file) // 2):
        with pytest.raises(Unreadable):
            decode(file[:-cut], 3)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_may_lack_rows_before_its_end_marker(mode):
    gray_end = photo(320, 240)
    gray_end.paste((128, 128, 128), (0, 200, 320, 240))
    for image in (photo(320, 240), gray_end, NOISE):
        file = encoded(image.convert(mode), "JPEG")
        for canvas in (None, (16, 20)):
            assert decode(file + b"after the image", 3, canvas).size
            for cut in (1, 2):
                with pytest.raises(Unreadable, match="truncated"):
                    decode(file[: -len(file) // 3 * cut] + b"\xff\xd9", 3, canvas)


def test_metadata_of_a_png_is_no_reason_to_lose_it():
    file = encoded(photo(), "PNG")
    pixels = decode(file, 3)
    bomb = zlib.compress(bytes(3_000_000))
    for kind, content in (
        (b"zTXt", b"key\0\0" + bomb),
        (b"iTXt", b"key\0\1\0\0\0" + bomb),
        (b"iCCP", b"name\0\0" + bomb),
        (b"iCCP", b"name\0\0not compressed"),
        (b"eXIf", b"II*\0not EXIF"),
        (b"pHYs", b"short"),
    ):
        part = chunk(kind, content)
        assert read_header(file[:SIGNATURE] + part + file[SIGNATURE:]) == ((48, 40), "RGB", "PNG")
        for damaged in (part, part[:-1] + b"?"):  # with a checksum, and without
            assert np.array_equal(decode(file[:SIGNATURE] + damaged + file[SIGNATURE:], 3), pixels), kind
        assert np.array_equal(decode(file[:-12] + part + file[-12:], 3), pixels), kind
    assert np.array_equal(decode(file[:-12], 3), pixels)
    assert np.array_equal(decode(file + b"trailing", 3), pixels)
    with pytest.raises(Unreadable, match="truncated"):
        decode(file[: len(file) // 2], 3)


def test_metadata_of_a_jpeg_is_no_reason_to_lose_it():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = encoded(photo(), "JPEG", exif=exif)
    pixels = decode(file, 3)
    assert pixels.shape == (3, 48, 40)
    offset = struct.pack("<HHII", 0xB001, 4, 1, 5)
    for part in (
        segment(0xE2, b"MPF\0II*\0\x08\0\0\0\1\0" + offset + bytes(4)),
        segment(0xE2, b"ICC_PROFILE\0\1\3part of a profile"),
        segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed\0\0\xff\xff\xff\xff1"),
        segment(0xEE, b"Adobe"),
        segment(0xFE, b"comment" * 5000),
    ):
        assert np.array_equal(decode(file[:2] + part + file[2:], 3), pixels)
        assert np.array_equal(decode(file[:2] + part + file[2:-2], 3), pixels)  # nor has it an end marker
    plain = encoded(photo(), "JPEG")
    for content in (b"Exif\0\0not EXIF", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 30, b"Exif\0\0"):
        assert decode(plain[:2] + segment(0xE1, content) + plain[2:], 3).shape == (3, 40, 48)


def images_of(*paths: object) -> EncodedImages:
    column = pa.chunked_array([pa.array([os.fsencode(str(path)) for path in paths], pa.large_binary())])
    return EncodedImages(column, Path(), nbytes=0)


def test_special_files_are_unreadable_and_never_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "linked-pipe.png").symlink_to(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    with socket.socket(socket.AF_UNIX) as server, (tmp_path / "sparse.png").open("wb") as sparse:
        server.bind(str(tmp_path / "s.png"))
        sparse.truncate(2**40)
        files = images_of(*sorted(tmp_path.iterdir()), tmp_path / "a\0b.png", tmp_path / ("x" * 300), "/dev/tty")
        with ThreadPoolExecutor(1) as pool:
            for index in range(len(files)):
                with pytest.raises(Unreadable) as reason:
                    pool.submit(files.read, index).result(timeout=10)
                assert str(reason.value).isprintable()
                if "sparse" in files.name(index):
                    assert "larger than the limit of 1.1 GB" in str(reason.value)


def test_a_few_unreadable_images_are_allowed():
    allowed = [max_unreadable(count, 0.01) for count in (2, 4, 20, 66, 900, 1000, 5000)]
    assert allowed == [1, 1, 5, 10, 10, 10, 50]
    assert max_unreadable(66, 0.0) == 1
    assert max_unreadable(66, 0.5) == 33


def test_a_log_of_broken_files_stops_at_its_limit(tmp_path):
    for i in range(40):
        photo(16, 16, i).save(tmp_path / f"{i:02}.png")
    dataset = open_dataset(DataConfig(source=str(tmp_path), image_size=16, cache_gb=0.0))
    log = BrokenFileLog(tmp_path / "broken.txt", dataset, 0.01, print)
    log.add(dict.fromkeys(range(10), "damaged"))
    with pytest.raises(InputError, match=r"11 of 40 images .* raise --data.max-broken"):
        log.add({11: "damaged"})
    with pytest.raises(InputError, match="2 of 40"):
        BrokenFileLog(tmp_path / "none.txt", dataset, 0.0, print).add({3: "damaged", 4: "damaged"})


@pytest.mark.parametrize(("count", "broken"), [(20, 3), (66, 5)])
def test_a_small_dataset_with_broken_files_trains(tmp_path, count, broken):
    for i in range(count):
        photo(16, 16, i).save(tmp_path / f"{i:02}.png")
    for i in range(broken):
        (tmp_path / f"{3 * i:02}.png").write_bytes(b"not an image")
    photo(20, 16).save(tmp_path / f"{3 * broken:02}.png")  # of another size
    run = train(tiny_config(str(tmp_path), steps=2, device="cpu"), tmp_path / "run")
    lines = (run.path / "broken.txt").read_text().splitlines()
    assert 1 <= len(lines) <= broken + 1
    assert any("not an image" in line for line in lines)


def test_images_of_many_sizes_require_a_canvas(tmp_path):
    for i in range(30):
        photo(16 + 4 * (i % 6 == 0), 16, i).save(tmp_path / f"{i:02}.png")
    with pytest.raises(InputError, match="differ in size, for example 16x16 and 20x16; crop"):
        open_dataset(DataConfig(source=str(tmp_path), image_size=16))
