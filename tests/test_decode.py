import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jepa.data.decode import EXTENSIONS, Unreadable, decode, fit_canvas
from tests.zoo import BROKEN, photo, write_zoo


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    return folder, write_zoo(folder)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_format_decodes_to_eight_bits_and_one_or_three_channels(zoo):
    folder, readable = zoo
    assert len(readable) > 25
    for name in readable:
        file = (folder / name).read_bytes()
        for channels in (1, 3):
            pixels = decode(file, channels, (24, 32))
            assert pixels.shape == (channels, 24, 32)
            assert pixels.dtype == np.uint8
            assert pixels.flags.c_contiguous


def test_broken_files_raise_a_one_line_reason(zoo):
    folder, _ = zoo
    for name in BROKEN:
        with pytest.raises(Unreadable) as reason:
            decode((folder / name).read_bytes(), 3, (24, 24))
        assert str(reason.value)
        assert "\n" not in str(reason.value)
    with pytest.raises(Unreadable, match="more than 179 megapixels"):
        decode((folder / "bomb.png").read_bytes(), 3)


def test_all_formats_decode_to_the_same_image(zoo):
    folder, _ = zoo
    exact = np.asarray(photo()).transpose(2, 0, 1)
    for name in ("plain.png", "plain.bmp", "plain.tif", "animated.webp", "pages.tif"):
        assert np.array_equal(decode((folder / name).read_bytes(), 3), exact), name
    gray = np.asarray(photo().convert("L"))
    for name, tolerance in (("sixteen.png", 0), ("twelve.tif", 1), ("floats.tif", 0), ("gray.jpg", 12)):
        assert np.abs(decode((folder / name).read_bytes(), 1)[0].astype(int) - gray).max() <= tolerance, name
    for name in ("palette.png", "palette.gif", "animated.gif"):  # 32 and 256 colors
        assert np.abs(decode((folder / name).read_bytes(), 3).astype(int) - exact).mean() < 16, name
    for name in ("plain.jpg", "cmyk.jpg", "cmyk.tif", "progressive.jpg"):
        assert np.abs(decode((folder / name).read_bytes(), 3).astype(int) - exact).mean() < 8, name


def test_images_are_rotated_by_their_exif_orientation(zoo):
    folder, _ = zoo
    turned = decode((folder / "turned.jpg").read_bytes(), 3)
    assert turned.shape == (3, 48, 40)
    upright = np.asarray(photo().rotate(-90, expand=True)).transpose(2, 0, 1)
    assert np.abs(turned.astype(int) - upright).mean() < 5
    small = decode((folder / "turned.jpg").read_bytes(), 3, (12, 10))
    whole = np.asarray(photo().rotate(-90, expand=True).resize((10, 12), Image.BICUBIC)).transpose(2, 0, 1)
    assert np.abs(small.astype(int) - whole).mean() < 5


def test_transparent_images_are_composited_onto_white():
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))
    pixels = decode(encoded(image), 3)
    assert pixels[:, 0, 0].tolist() == [10, 20, 30]
    assert pixels[:, 1, 1].tolist() == [255, 255, 255]


def test_the_canvas_is_a_center_crop():
    ramp = np.broadcast_to(np.arange(90, dtype=np.uint8), (60, 90))
    square = decode(encoded(Image.fromarray(ramp)), 1, (30, 30))[0]
    assert np.abs(square[0] - (15 + 2 * np.arange(30) + 0.5)).max() <= 2  # columns 15 to 75
    tall = decode(encoded(Image.fromarray(ramp)), 1, (60, 20))[0]
    assert np.abs(tall[0] - (35 + np.arange(20))).max() <= 1  # columns 35 to 55
    larger = decode(encoded(Image.fromarray(ramp)), 1, (120, 120))
    assert larger.shape == (1, 120, 120)
    assert (larger[0].min(), larger[0].max()) == (15, 74)


@given(st.tuples(*[st.integers(1, 5000)] * 2), st.tuples(*[st.integers(1, 500)] * 2))
def test_any_image_is_resized_to_any_canvas(size, canvas):
    assert fit_canvas(Image.new("L", size), canvas).size == canvas[::-1]


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("canvas", [(100, 100), (60, 240), (240, 60)])
def test_decoding_at_a_reduced_scale_equals_full_decoding(canvas, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photo(1600, 1200)
    scaled = decode(encoded(image, "JPEG", quality=95, exif=exif), 3, canvas)
    full = decode(encoded(image if orientation == 1 else image.rotate(-90, expand=True)), 3, canvas)
    assert np.abs(scaled.astype(int) - full).mean() < 1.5


def test_only_raster_formats_are_accepted():
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"} <= EXTENSIONS
    assert not {".pdf", ".eps", ".txt", ".mp4", ".hdf5"} & EXTENSIONS
