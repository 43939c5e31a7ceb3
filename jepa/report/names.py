"""Short names for legends and axes that stay different from each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

__all__ = ["shorten_names"]


def shorten_names(names: Sequence[str], limit: int) -> list[str]:
    """Shorten names to at most `limit` characters (at least 8), such that different names stay different.

    Names are cut in the middle. Names that this would make equal are cut at a place that keeps what differs between
    them, or numbered if there is none.
    """
    short = {name: cut(name, limit, limit // 2) for name in names}
    heads = sorted(range(limit), key=lambda head: abs(head - limit // 2))
    for text in [text for text in dict.fromkeys(short.values()) if list(short.values()).count(text) > 1]:
        equal = [name for name in short if short[name] == text and len(name) > limit]
        taken = {short[name] for name in short if name not in equal}
        start = common_length(equal)
        end = common_length([name[start:][::-1] for name in equal])
        parts = [name[start : len(name) - end] for name in equal]  # what differs
        options = [[cut(name, limit, head) for name in equal] for head in heads]
        first = max(0, start - 3)
        options.append([f"…{name[first : first + limit - 2]}…" for name in equal])
        options.append([f"…{cut(part, limit - 2, limit // 2 - 1)}…" for part in parts])
        different = (option for option in options if len(set(option)) == len(equal) and taken.isdisjoint(option))
        chosen = next(different, []) or numbered(text, len(equal), taken)
        short |= zip(equal, chosen, strict=True)
    return [short[name] for name in names]


def cut(name: str, limit: int, head: int) -> str:
    """Shorten a name to `limit` characters, of which the first `head` are its start and the last ones its end."""
    return name if len(name) <= limit else f"{name[:head]}…{name[len(name) - (limit - 1 - head) :]}"


def common_length(names: list[str]) -> int:
    """Return the number of characters with which all names begin."""
    columns = enumerate(zip(*names, strict=False))
    return next((i for i, column in columns if len(set(column)) > 1), min(map(len, names)))


def numbered(text: str, length: int, taken: set[str]) -> list[str]:
    """Return `length` different texts, none of which is in `taken`, no longer than `text`, and ending in a number."""
    candidates = (f"{text[: len(text) - len(str(number)) - 1]} {number}" for number in count(1))
    return [candidate for candidate, _ in zip((c for c in candidates if c not in taken), range(length), strict=False)]
