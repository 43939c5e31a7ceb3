"""Repair what is damaged around the pixels of a file: metadata, and end markers."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

__all__ = ["END_OF_IMAGE", "JPEG", "end_jpeg", "lacks_end", "repairs"]

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
JPEG_2000 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # chunks that pixels depend on
PNG_COLORS = (b"iCCP", b"eXIf")  # color profile and orientation
COLOR_SEGMENTS, MIN_COLOR_SEGMENT = (0xE0, 0xEE), 12  # JFIF and Adobe, which decide on the color space, and their size
JPEG_COLORS = (b"Exif\0", b"ICC_PROFILE\0")  # orientation and color profile
COMMENT, START_OF_SCAN, END_OF_IMAGE = 0xFE, b"\xff\xda", b"\xff\xd9"
FILLER_BYTES = 4096
MIN_PADDING = 4  # zeros at the end of a JPEG that are padding of an incomplete file; fewer may be pixels


def repairs(file: bytes) -> Iterator[bytes]:
    """Yield versions of a file that may be sound: a JPEG 2000 with an end marker, a PNG or JPEG without metadata.

    The first version of a PNG or JPEG has its color profile and orientation.
    """
    if file.startswith(PNG):
        yield _png(file, (*PNG_CHUNKS, *PNG_COLORS))
        yield _png(file, PNG_CHUNKS)
    elif file.startswith(JPEG):
        yield _jpeg(file, JPEG_COLORS)
        yield _jpeg(file, ())
    elif file.startswith(JPEG_2000):  # the decoder notices if more than the marker is missing
        yield file + END_OF_IMAGE


def _png(file: bytes, kept: tuple[bytes, ...]) -> bytes:
    parts, start = [PNG], len(PNG)
    while start + 8 <= len(file):
        end = start + 12 + int.from_bytes(file[start : start + 4], "big")  # length, type, content, checksum
        if file[start + 4 : start + 8] in kept:
            parts.append(file[start:end])
        start = end
    return b"".join(parts)


def _jpeg(file: bytes, kept: tuple[bytes, ...]) -> bytes:
    parts, start = [JPEG], len(JPEG)
    while start + 4 <= len(file) and file[start] == 0xFF and file[start : start + 2] != START_OF_SCAN:
        marker, end = file[start + 1], start + 2 + int.from_bytes(file[start + 2 : start + 4], "big")
        content = file[start + 4 : end]
        decides_color = marker in COLOR_SEGMENTS and len(content) >= MIN_COLOR_SEGMENT
        is_metadata = marker == COMMENT or 0xE0 <= marker <= 0xEF
        if decides_color or not is_metadata or content.startswith(kept):
            parts.append(file[start:end])
        start = end
    return b"".join([*parts, file[start:]])


def lacks_end(file: bytes) -> bool:
    """Return whether a file is a JPEG without its end marker.

    Pillow decodes whatever follows, such as the zeros of an incomplete download, as if it were pixels.
    """
    end = file.rfind(END_OF_IMAGE)
    return file.startswith(JPEG) and (end < 0 or START_OF_SCAN in file[end:])  # a thumbnail has an end marker, too


def end_jpeg(file: bytes) -> tuple[bytes, bytes]:
    """Return a JPEG without its end marker with two different continuations and an end marker.

    No row is missing if both decode to the same image: otherwise, the decoder takes the continuation for pixels.
    """
    content = file.rstrip(b"\0")
    if len(file) - len(content) < MIN_PADDING:
        content = file
    elif content.endswith(b"\xff"):  # 255 is stored as 255, 0
        content += b"\0"
    content = content.rstrip(b"\xff")  # half of an end marker
    random = Random(0)
    first, second = (bytes(random.choices(range(1, 255), k=FILLER_BYTES)) for _ in range(2))
    return content + first + END_OF_IMAGE, content + second + END_OF_IMAGE
