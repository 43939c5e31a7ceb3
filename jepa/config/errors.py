"""What the user gave cannot be used: one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["InputError", "require", "suggest"]


class InputError(Exception):
    """Something the user gave cannot be used; the message is one sentence that says what, and how to mend it.

    Not a `ValueError`, which tyro would print in a box of its own.
    """


def require(condition: bool, message: str) -> None:
    """Raise `InputError(message)` unless the condition holds."""
    if not condition:
        raise InputError(message)


def suggest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` for a mistyped word, or nothing where no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""
