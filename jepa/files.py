"""Atomic writes, where a file is either written completely or left unchanged, and printable file names."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_write", "printable"]

JOINERS = "\u200c\u200d"  # zero-width characters within emoji, and within words of Persian and Indic scripts


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and rename it to `path` at the end of the block.

    The file is flushed to disk before it is renamed. If the block raises, the temporary file is deleted and `path` is
    left unchanged. The temporary name contains the process ID, because several processes may write the same file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def printable(text: str, keep: str = "") -> str:
    """Replace characters that control a terminal or the direction of text, and lone surrogates, by their escapes.

    Characters in `keep`, such as the newlines of a message of several lines, are not replaced.
    """
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in JOINERS + keep
        else character
        for character in text
    )
