"""Images of more than 8 bits, with transparency, no-data values, extra bands or profiles: right, or refused."""

import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from jepa.config import DataConfig
from jepa.data import open_dataset
from jepa.data.dataset import DECODER_VERSION
from jepa.data.decode import MAX_DECODED_BYTES, Unreadable, decode
from tests.zoo import chunk, photo

RNG = np.random.default_rng(0)
DECODED = {3: "709cc505c225fc97"}  # start of the digest of decoded pixels, by version of the decoder


def tiff(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, metadata=None, **({"photometric": "minisblack"} | options))
    return buffer.getvalue()


def png(array: np.ndarray, bits: int, color: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Encode samples (H, W, C) of 1 to 16 bits."""
    height, width = array.shape[:2]
    shifts = np.arange(bits - 1, -1, -1)
    packed = np.packbits((array.reshape(height, -1, 1) >> shifts & 1).astype(np.uint8).reshape(height, -1), axis=1)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def expected(array: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Scale samples to 8 bits as documented; pixels that are not valid become black."""
    values = array.astype(np.float64)
    valid = np.isfinite(values) if valid is None else np.broadcast_to(valid, values.shape)
    low, high = values[valid].min(), values[valid].max()
    if array.dtype.kind in "ui" and low >= 0 and high < 2**16:
        low, high = 0, 2 ** next(bits for bits in (8, 10, 12, 14, 16) if high < 2**bits) - 1
    elif array.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0, 1
    return np.where(valid, (np.where(valid, values, low) - low) / (high - low) * 255, 0)


def assert_decodes(file: bytes, pixels: np.ndarray, tolerance: float = 1.5) -> None:
    """Check the decoded pixels against (H, W) or (H, W, 3)."""
    decoded = np.moveaxis(decode(file, 3).astype(float), 0, -1)
    assert np.abs(decoded - (pixels if pixels.ndim == 3 else pixels[..., None])).max() <= tolerance


def samples(dtype: str, top: float = 0, shape: tuple[int, ...] = (9, 13)) -> np.ndarray:
    if dtype[0] == "u":
        return RNG.integers(0, top, shape).astype(dtype)
    return (RNG.normal(size=shape) * (30 if dtype == "i1" else 5000)).astype(dtype)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("dtype", "top"),
    [("u1", 256), ("i1", 0), ("u2", 65536), ("u2", 4096), ("u2", 900), ("i2", 0), ("i4", 0), ("f4", 0)],
)
def test_gray_tiffs_of_all_types(dtype, top, order, compression):
    array = samples(dtype, top)
    assert_decodes(tiff(array, byteorder=order, compression=compression), expected(array))
    tiled = samples(dtype, top, (40, 50))
    assert_decodes(tiff(tiled, byteorder=order, compression=compression, tile=(16, 32)), expected(tiled))


@pytest.mark.parametrize("top", [200, 4000, 60_000, 2**32 - 1])
def test_unsigned_32_bits(top):
    array = samples("u4", top)
    assert_decodes(tiff(array), expected(array))
    assert_decodes(tiff(array, compression="zlib", rowsperstrip=2), expected(array))


@pytest.mark.parametrize(("dtype", "top"), [("u1", 256), ("u2", 65536), ("u2", 4096), ("f4", 0)])
def test_white_is_zero(dtype, top):
    array = samples(dtype, top)
    for compression in (None, "zlib"):
        assert_decodes(tiff(array, photometric="miniswhite", compression=compression), 255 - expected(array))


def test_pixels_without_data_do_not_count_and_become_black():
    for dtype, value in (("f4", np.nan), ("f4", np.inf), ("f4", -np.inf)):
        array = samples(dtype)
        array[:3] = value
        assert_decodes(tiff(array), expected(array))
    for dtype, text in (
        ("u2", "65535"),
        ("i2", "-9999"),
        ("f4", "-3.40282346638529e+38"),
        ("u1", "255"),
        ("f4", "nan"),
    ):
        array = samples(dtype, 200)
        array[:3] = np.float64(text).astype(dtype)
        file = tiff(array, extratags=[(42113, 2, 0, text, True)])
        assert_decodes(file, expected(array, np.arange(9)[:, None] >= 3))
    array = samples("u2", 4000, (9, 13, 3))
    array[:3] = 65535
    file = tiff(array, photometric="rgb", extratags=[(42113, 2, 0, "65535", True)])
    assert_decodes(file, expected(array, np.arange(9)[:, None, None] >= 3))
    assert decode(tiff(np.full((4, 4), np.nan, np.float32)), 1).max() == 0


def test_usual_no_data_values_need_no_tag():
    far = np.float32(3.4028234663852886e38)
    for dtype, value in (("f4", -9999), ("i2", -9999), ("i4", -32768), ("i2", -32768), ("f4", -far), ("f4", far)):
        array = (samples("u2", 900) - 50.0).astype(dtype)
        array[:3] = value
        assert_decodes(tiff(array), expected(array, np.arange(9)[:, None] >= 3))
    near = samples("u2", 20_000).astype("i4") - 9999  # a measured value, with others close to it
    near[0, 0] = -9999
    assert_decodes(tiff(near), expected(near))
    assert decode(tiff(np.full((4, 4), -9999, np.int16)), 1).max() == 0


def test_a_color_map_of_eight_bits():
    colors, index = RNG.integers(0, 256, (3, 256)), samples("u1", 256)
    for shift in (0, 8):
        file = tiff(index, photometric="palette", colormap=(colors << shift).astype(np.uint16))
        assert_decodes(file, np.moveaxis(colors[:, index], 0, -1).astype(float), 0)


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_a_fourth_band_is_transparency_only_if_the_file_says_so(dtype, planes):
    full = np.iinfo(dtype).max
    array = samples(dtype, full + 1, (9, 13, 4))
    premultiplied = np.concatenate([array[..., :3] * (array[..., 3:] / full), array[..., 3:]], -1).astype(dtype)
    color, alpha = array[..., :3] / full * 255, array[..., 3:] / full
    composite = color * alpha + 255 * (1 - alpha)
    cases = ((0, array, color), (1, premultiplied, composite), (2, array, composite))
    for extra, content, pixels in cases:
        for compression in (None, "zlib"):
            stored = content if planes == "contig" else np.moveaxis(content, -1, 0)
            options = {"photometric": "rgb", "planarconfig": planes, "compression": compression}
            file = tiff(stored, extrasamples=(extra,), **options)
            if (extra, planes, dtype, compression) == (0, "separate", "u1", None):
                with pytest.raises(Unreadable, match="kind of TIFF"):
                    decode(file, 3)
            else:
                assert_decodes(file, pixels, 3)


def test_what_pillow_cannot_read_is_refused_by_name():
    header = (b"II*\0", 8, 5, 256, 3, 1, 8, 257, 3, 1, 8, 258, 3, 1, 8, 273, 4, 1, 74, 278, 3, 1, 8, 0)
    silent = struct.pack("<4sIH" + "HHII" * 5 + "I", *header) + bytes(64)  # of black and white, nothing is said
    dark, two = samples("u2", 4096, (3, 9, 13)), samples("u1", 256, (2, 9, 13))
    for file, reason in (
        (silent, "whether 0 is black or white"),
        (tiff(dark, photometric="rgb", planarconfig="separate"), "16-bit colors"),
        (tiff(two, planarconfig="separate", extrasamples=(2,), compression="zlib"), "LA bands"),
        (tiff(samples("f8")), "kind of TIFF"),
        (tiff(samples("u1", 256, (9, 13, 8)), planarconfig="contig"), "kind of TIFF"),
    ):
        with pytest.raises(Unreadable, match=reason):
            decode(file, 3)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_transparent_gray_of_a_png(bits):
    gray = RNG.integers(0, 2**bits, (8, 16))
    gray[0], gray[1] = 1, 2**bits - 1
    scaled = gray * (255 / (2**bits - 1))
    assert_decodes(png(gray, bits, 0), scaled)
    assert_decodes(png(gray, bits, 0, (b"tRNS", struct.pack(">H", 1))), np.where(gray == 1, 255, scaled))


@pytest.mark.parametrize("top", [65536, 1000])
def test_sixteen_bits_of_a_png(top):
    color = RNG.integers(0, top, (8, 16, 3))
    color[:, :2] = color[0, 0]
    color[:, 2:3] = color[0, 0] ^ 1  # differs from the transparent color in the lowest bit
    opaque = (color != color[0, 0]).any(-1, keepdims=True)
    pixels = expected(color.astype(np.uint16), opaque)
    assert_decodes(png(color, 16, 2), expected(color.astype(np.uint16)))
    assert_decodes(png(color, 16, 2, (b"tRNS", struct.pack(">3H", *color[0, 0]))), np.where(opaque, pixels, 255))
    alpha = RNG.integers(0, 65536, (8, 16, 1))
    alpha[:, :2] = 0
    color[:, :2] = 65535  # invisible, so it does not count
    pixels = expected(color.astype(np.uint16), alpha > 0)
    composite = pixels * (alpha / 65535) + 255 * (1 - alpha / 65535)
    assert_decodes(png(np.concatenate([color, alpha], -1), 16, 6), composite)
    gray = expected(color[..., :1].astype(np.uint16), alpha > 0)
    composite = gray * (alpha / 65535) + 255 * (1 - alpha / 65535)
    assert_decodes(png(np.concatenate([color[..., :1], alpha], -1), 16, 4), composite)


@pytest.mark.parametrize("maximum", [1, 100, 255, 1023, 4095, 65535])
def test_netpbm_files_declare_their_maximum(maximum):
    dtype = ">u1" if maximum < 256 else ">u2"
    color = RNG.integers(0, maximum + 1, (7, 11, 3))
    color[0, 0] = maximum
    gray = color[..., 0] if maximum == 65535 else color[..., 0] // 4
    for kind, array in ((5, gray), (6, color)):
        header, plain = (b"P%d\n11 7\n%d\n" % (number, maximum) for number in (kind, kind - 3))
        assert_decodes(header + array.astype(dtype).tobytes(), array / maximum * 255)
        with pytest.raises(Unreadable, match="truncated"):
            decode(header + array.astype(dtype).tobytes()[:-3], 3)
        text = " ".join(str(value) for value in array.ravel().tolist())
        assert_decodes(plain + text.encode() + b"\n", array / maximum * 255)


def test_other_color_spaces():
    flat = Image.new("RGB", (16, 8), (200, 100, 30))
    pixels = np.asarray(flat).astype(float)
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(flat, *profiles, outputMode="LAB")
    for image in (flat.convert("CMYK"), flat.convert("YCbCr"), lab):
        buffer = io.BytesIO()
        image.save(buffer, "TIFF")
        assert_decodes(buffer.getvalue(), pixels, 2)


def test_alpha_of_a_tga_counts_if_its_header_says_so():
    image = photo().convert("RGBA")
    image.putalpha(0)
    buffer = io.BytesIO()
    image.save(buffer, "TGA")
    file = bytearray(buffer.getvalue())
    assert decode(bytes(file), 3).min() == 255
    file[17] &= 0xF0
    assert_decodes(bytes(file), np.asarray(photo()).astype(float), 0)


@pytest.mark.parametrize("alpha", [0, 128])
def test_alpha_of_a_bmp_counts_unless_it_is_0_everywhere(alpha):
    color = np.asarray(photo()).astype(float)
    pixels = np.dstack([color[::-1, :, ::-1], np.full(color.shape[:2], alpha)]).astype(np.uint8).tobytes()
    masks = struct.pack("<4I52x", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 48, 40, 1, 32, 3, len(pixels), 0, 0, 0, 0) + masks
    file = b"BM" + struct.pack("<IHHI", 14 + len(header) + len(pixels), 0, 0, 14 + len(header)) + header + pixels
    opacity = alpha / 255 or 1
    assert_decodes(file, color * opacity + 255 * (1 - opacity))


@pytest.mark.parametrize("codestream", [False, True])
def test_depth_and_sign_of_jpeg_2000(codestream):
    unsigned = samples("u2", 65536, (16, 24))
    buffer = io.BytesIO()
    Image.fromarray(unsigned).save(buffer, "JPEG2000", no_jp2=codestream)
    file = bytearray(buffer.getvalue())
    assert_decodes(bytes(file), expected(unsigned))
    assert file[file.index(b"\xff\x4f\xff\x51") + 42] == 15  # 16 bits, unsigned
    file[file.index(b"\xff\x4f\xff\x51") + 42] = 15 | 128  # the same bits, around 0
    assert_decodes(bytes(file), expected(unsigned.astype(np.int32) - 32768))


def test_color_profiles_are_applied():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tags = {srgb[i : i + 4]: slice(int.from_bytes(srgb[i + 4 : i + 8], "big"), None) for i in range(132, 132 + 144, 12)}
    swapped = bytearray(srgb)  # red and green exchange their primaries
    red, green = (slice(tags[name].start, tags[name].start + 20) for name in (b"rXYZ", b"gXYZ"))
    swapped[red], swapped[green] = srgb[green], srgb[red]
    image = photo()
    exact = np.asarray(image).astype(float)
    for profile, pixels in ((srgb, exact), (bytes(swapped), exact[..., [1, 0, 2]]), (b"no profile", exact)):
        for kind in ("PNG", "TIFF"):
            buffer = io.BytesIO()
            image.save(buffer, kind, icc_profile=profile)
            assert_decodes(buffer.getvalue(), pixels, 2)
    buffer = io.BytesIO()
    image.convert("L").save(buffer, "PNG", icc_profile=bytes(swapped))  # a profile of another color space
    assert_decodes(buffer.getvalue(), np.asarray(image.convert("L")).astype(float), 0)


def test_images_are_limited_by_their_bytes():
    side = 13_300  # 177 megapixels
    row = zlib.compress(bytes(2 * side + 1) * 100)
    header = struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")
    with pytest.raises(Unreadable, match=f"1061 MB of pixels, more than the limit of {MAX_DECODED_BYTES / 1e6:.0f} MB"):
        decode(file, 3, (64, 64))


def test_the_decoder_version_is_bumped_when_pixels_change():
    rng = np.random.default_rng(1)
    gray, color = rng.integers(0, 65536, (30, 40)), rng.integers(0, 65536, (30, 40, 4))
    files = [png(gray >> 8, 8, 0), png(gray, 16, 0), png(gray >> 5, 16, 0), png(color >> 8, 8, 6), png(color, 16, 6)]
    files += [png(color[..., :3], 16, 2), tiff((gray - 9000).astype(np.int32)), tiff((gray / 1e5).astype(np.float32))]
    files += [
        tiff(gray.astype(np.uint16), photometric="miniswhite"),
        b"P5\n40 30\n4095\n" + (gray >> 4).astype(">u2").tobytes(),
    ]
    digest = hashlib.sha256()
    for file in files:
        for channels, canvas in ((1, None), (3, None), (3, (20, 20)), (1, (15, 8))):
            digest.update(decode(file, channels, canvas).tobytes())
    seen = digest.hexdigest()[:16]
    assert DECODED.get(DECODER_VERSION) == seen, (
        f"the pixels have changed: bump DECODER_VERSION, which invalidates caches, and add {seen!r} to DECODED"
    )


def test_another_decoder_starts_a_new_cache(tmp_path, cache, monkeypatch):
    photo(16, 16).save(tmp_path / "a.png")
    config = DataConfig(source=str(tmp_path), image_size=16)
    open_dataset(config, cache=cache)
    (before,) = cache.rglob("*.pixels")
    open_dataset(config, cache=cache)
    assert list(cache.rglob("*.pixels")) == [before]
    monkeypatch.setattr("jepa.data.dataset.DECODER", "another")
    open_dataset(config, cache=cache)
    (after,) = cache.rglob("*.pixels")
    assert after != before
