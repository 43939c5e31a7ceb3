"""Standard output and error that any text can be printed to."""

from __future__ import annotations

import codecs
import io
import os
import sys
import unicodedata

__all__ = ["as_printed", "prepare_streams", "say_stage"]

ASCII = {
    **dict.fromkeys("–—−‐‑─━═╌", "-"),
    **dict.fromkeys("│┃║", "|"),
    **dict.fromkeys("╭╮╰╯┌┐└┘├┤┬┴┼", "+"),
    **{"±": "+-", "…": "...", "×": "x", "·": "*", "→": "->", "←": "<-", "≤": "<=", "≥": ">=", "²": "^2"},
    **{"‘": "'", "’": "'", "“": '"', "”": '"', "\u00a0": " "},
}
"""Readable replacements of characters that an encoding lacks."""
HANDLER = "jepa-readable"


def readable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace characters that an encoding lacks: a handler of encoding errors."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_replacement, error.object[error.start : error.end])), error.end


def _replacement(character: str) -> str:
    """Return an ASCII form: a readable one, the letter without its accent, or the escape."""
    base = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return ASCII.get(character) or base or character.encode("unicode_escape").decode()


codecs.register_error(HANDLER, readable)


def as_printed(text: str) -> str:
    """Return text as standard output shows it, after `prepare_streams`: the widths of tables depend on it."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, HANDLER).decode(encoding)


def say_stage(text: str) -> None:
    """Print what is computed next, unless progress bars show it in a terminal."""
    if not sys.stderr.isatty():
        print(f"jepa: {text}", file=sys.stderr)


def prepare_streams() -> None:
    """Print text that the encoding of the terminal lacks in a readable form, and no progress bars into files.

    Without a terminal, tqdm is switched off for other packages, such as those that download datasets.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=HANDLER)
    if not (sys.stderr and sys.stderr.isatty()):
        os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
