"""Descriptions of the types of settings, and of values of any type, for messages to the user."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jepa.files import printable

__all__ = ["alternatives", "command", "describe", "listed", "shown"]

NAMES: dict[Any, tuple[str, str]] = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    bool: ("true or false", "values true or false"),
    Path: ("a path", "paths"),
    type(None): ("none", "none"),
}
"""One value of a type, and several."""
MAX_LISTED = 5  # names in a message
MAX_SHOWN = 60  # characters of a value in a message


def command(*words: object) -> str:
    """Return a command of `jepa` that can be pasted into the shell in which the program was started."""
    program = Path(sys.argv[0])
    name = str(program) if program.name == "jepa" and shutil.which("jepa") is None else "jepa"
    return shlex.join([name, *map(str, words)])


def alternatives(hint: Any) -> list[Any]:
    """Return the types of a union, None first, or the type itself."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return sorted(typing.get_args(hint), key=lambda member: member is not type(None))
    return [hint]


def describe(hint: Any) -> str:
    """Describe the accepted values of a type: `an integer, 2 integers or none`."""
    members = alternatives(hint)
    if len(members) > 1:
        *others, last = [describe(member) for member in sorted(members, key=lambda member: member is type(None))]
        return f"{', '.join(others)} or {last}"
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    if typing.get_origin(hint) is tuple:
        several = NAMES.get(arguments[0], ("", "values"))[1]
        return several if arguments[-1] is Ellipsis else f"{len(arguments)} {several}"
    return NAMES.get(hint, ("an object of settings", ""))[0]


def listed(names: Sequence[str]) -> str:
    """Return names separated by commas: the first ones and the number of the others if there are many."""
    more = f" and {len(names) - MAX_LISTED:,} more" if len(names) > MAX_LISTED else ""
    return ", ".join(map(shown, names[:MAX_LISTED])) + more


def shown(value: Any) -> str:
    """Return a value as it is written in JSON, with text in single quotes and shortened if it is long."""
    try:
        text = f"'{value}'" if isinstance(value, str) else json.dumps(value, default=repr, skipkeys=True)
    except RecursionError:
        return "a deeply nested value"
    return printable(text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…")
