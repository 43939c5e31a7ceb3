"""Folders of test images: files of every kind that people have, and two classes in two splits."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

BROKEN = {"truncated.jpg", "empty.png", "text.jpg", "bomb.png", "garbled.webp", "cut.tif"}


def photo(width: int = 48, height: int = 40, seed: int = 0) -> Image.Image:
    """Draw a smooth color image that is brighter on the left."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 200, (5, 6, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    pixels = np.asarray(small).astype(int)
    pixels[:, : width // 2] += 50
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_zoo(folder: Path) -> list[str]:
    """Write a file of every kind, and return the sorted names of the readable ones; `BROKEN` are the others."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_images(folder)
    (folder / "deep" / "er").mkdir(parents=True)
    photo().save(folder / "deep" / "er" / "ünïcode ✓.png")
    readable = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    buffer = io.BytesIO()
    photo(400, 300).save(buffer, "JPEG")
    (folder / "truncated.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("this is not an image\n")
    (folder / "garbled.webp").write_bytes((folder / "plain.webp").read_bytes()[:30] + bytes(200))
    (folder / "cut.tif").write_bytes((folder / "plain.tif").read_bytes()[:300])
    (folder / "bomb.png").write_bytes(decompression_bomb(60_000))
    (folder / "notes.txt").write_text("about these images")
    (folder / ".hidden.jpg").write_bytes(buffer.getvalue())
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "deep" / "loop").symlink_to(folder)
    return readable


def _write_images(folder: Path) -> None:
    image = photo()

    def save(name: str, picture: Image.Image, **options) -> None:
        picture.save(folder / name, **options)

    save("plain.jpg", image)
    save("upper.JPEG", image, format="JPEG")
    save("progressive.jpg", image, progressive=True)
    save("plain.png", image)
    save("plain.webp", image)
    save("plain.bmp", image)
    save("plain.tif", image, compression="tiff_lzw")
    save("gray.jpg", image.convert("L"))
    save("bits.png", image.convert("1"))
    save("palette.png", image.quantize(32))
    save("palette.gif", image.quantize(32))
    transparent = image.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(image.size))
    save("alpha.png", transparent)
    save("gray-alpha.png", transparent.convert("LA"))
    save("palette-alpha.png", image.quantize(16), transparency=0)
    save("cmyk.jpg", image.convert("CMYK"))
    save("cmyk.tif", image.convert("CMYK"))
    gray = np.asarray(image.convert("L")).astype(np.uint16)
    save("sixteen.png", Image.fromarray(gray * 257))
    save("twelve.tif", Image.fromarray(gray * 16))
    save("floats.tif", Image.fromarray((gray / 255).astype(np.float32)))
    save("wild-floats.tif", Image.fromarray(np.where(gray > 250, np.nan, gray * 3.0 - 100).astype(np.float32)))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate clockwise by 90 degrees
    save("turned.jpg", image, exif=exif)
    save("animated.gif", image, save_all=True, append_images=[photo(seed=1)])
    save("animated.webp", image, save_all=True, append_images=[photo(seed=1)], lossless=True)
    save("pages.tif", image, save_all=True, append_images=[photo(seed=1)])
    save("pixel.png", image.crop((0, 0, 1, 1)))
    save("thin.png", photo(200, 2))
    save("huge.jpg", photo(2400, 1800))


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def decompression_bomb(side: int) -> bytes:
    """Return a PNG file whose header claims side² pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def write_pets(folder: Path) -> Path:
    """Write two classes in two splits, with other files among them; return the folder."""
    seeds = {"train/cat": range(5), "train/dog": range(5, 8), "val/cat": range(8, 10), "val/dog": range(10, 11)}
    for name, numbers in seeds.items():
        (folder / name).mkdir(parents=True)
        for number, seed in enumerate(numbers):
            photo(30, 20, seed).save(folder / name / f"{number}.png")
    for name in ("notes.txt", "more.txt", "film.mp4"):
        (folder / "train" / "cat" / name).touch()
    return folder
