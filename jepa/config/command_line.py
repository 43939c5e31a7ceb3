"""Parser of command lines: the options of a command follow from the types of its settings.

tyro prints the help of the same settings. It does not parse, because every error must be one sentence.
"""

from __future__ import annotations

import inspect
import io
import os
import re
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import tyro

from jepa.config.errors import InputError, closest, require
from jepa.config.hints import alternatives, describe, shown

__all__ = [
    "Given",
    "Option",
    "Taken",
    "build",
    "call",
    "options_of",
    "print_help",
    "reject_flag",
    "reject_word",
    "split",
    "take",
]

FLAG = re.compile(r"--|-[A-Za-z]")  # the beginning of a flag; -1 and -.5 are numbers
MAX_HELP_WIDTH = 80  # of a description, in characters
WORDS: dict[Any, dict[str, Any]] = {type(None): {"none": None}, bool: {"true": True, "false": False}}


class Option(NamedTuple):
    """A setting that can be given on the command line."""

    path: tuple[str, ...]  # names of the setting and of the groups that contain it
    hint: Any
    metavar: str | None  # of a positional argument
    required: bool


class Given(NamedTuple):
    """A flag on the command line."""

    flag: str
    value: str | None  # after an equals sign
    words: list[str]  # that follow, up to the next flag


class Taken(NamedTuple):
    """Values of options, flags that are not among the options, and words that no flag takes, with the flag before."""

    values: dict[tuple[str, ...], Any]
    rest: list[Given]
    stray: list[tuple[str, str]]


class _Mismatch(Exception):  # noqa: N818  (never leaves this module)
    """The words are no value of the type."""


def options_of(target: Any, prefix: str = "", path: tuple[str, ...] = ()) -> dict[str, Option]:
    """Return the options of a function or of a config by flag; positional arguments are listed by their metavar."""
    result: dict[str, Option] = {}
    for name, hint, default in _settings(target):
        marks = getattr(hint, "__metadata__", ())
        plain = typing.get_args(hint)[0] if marks else hint
        if tyro.conf.Suppress in marks:
            continue
        if is_dataclass(default):
            inner = "" if any(getattr(mark, "name", None) == "" for mark in marks) else f"{_hyphens(name)}."
            result |= options_of(default, prefix + inner, (*path, name))
        elif tyro.conf.Positional in marks:
            metavar = next(mark.metavar for mark in marks if getattr(mark, "metavar", None))
            result[metavar] = Option((*path, name), plain, metavar, default is inspect.Parameter.empty)
        else:
            required = default is inspect.Parameter.empty
            result[f"--{prefix}{_hyphens(name)}"] = Option((*path, name), plain, None, required)
    return result


def _settings(target: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the name, type and default of the parameters of a function, or of the fields of a config."""
    if is_dataclass(target):
        hints = typing.get_type_hints(type(target), include_extras=True)
        yield from ((f.name, hints[f.name], getattr(target, f.name)) for f in fields(target))
        return
    hints = typing.get_type_hints(target, include_extras=True)
    for name, parameter in inspect.signature(target).parameters.items():
        plain: Any = typing.get_args(hints[name])[0] if hasattr(hints[name], "__metadata__") else hints[name]
        yield name, hints[name], plain() if isinstance(plain, type) and is_dataclass(plain) else parameter.default


def _hyphens(name: str) -> str:
    return name.replace("_", "-")


def split(arguments: Sequence[str]) -> tuple[list[str], list[Given]]:
    """Split arguments into the words before the first flag, and the flags with the words that follow them."""
    words: list[str] = []
    given: list[Given] = []
    for argument in arguments:
        if FLAG.match(argument):
            flag, equals, value = argument.partition("=")
            given.append(Given(_hyphens(flag), value if equals else None, []))
        else:
            (given[-1].words if given else words).append(argument)
    return words, given


def take(options: Mapping[str, Option], given: Sequence[Given]) -> Taken:
    """Convert the flags that are among the options. Raises `InputError` if a value is missing or invalid."""
    taken = Taken({}, [], [])
    flags: dict[tuple[str, ...], str] = {}  # the flag by which each setting was given
    for item in given:
        flag, option = _find(options, item.flag)
        if option is None:
            taken.rest.append(item)
            continue
        before = flags.setdefault(option.path, item.flag)
        if option.path in taken.values:
            how = "twice; give it once" if before == item.flag else f"together with {before}; give one of them"
            raise InputError(f"{item.flag} is given {how}")
        if option.hint is bool:
            value, used = item.flag == flag, 0
            if item.value is not None:
                raise InputError(f"{item.flag} takes no value, got {shown(item.value)}; {_both(flag)}")
        else:
            value, used = _value(item, option.hint)
        taken.values[option.path] = value
        taken.stray.extend((item.flag, word) for word in item.words[used:])
    return taken


def _find(options: Mapping[str, Option], flag: str) -> tuple[str, Option | None]:
    """Return an option and the flag that sets it; `--a.no-b` switches off the option of `--a.b`."""
    if flag not in options:
        group, dot, name = flag.removeprefix("--").rpartition(".")
        positive = f"--{group}{dot}{name.removeprefix('no-')}"
        if positive in options and options[positive].hint is bool:
            return positive, options[positive]
    return flag, options.get(flag)


def _both(flag: str) -> str:
    group, dot, name = flag.removeprefix("--").rpartition(".")
    return f"give {flag} or --{group}{dot}no-{name} alone"


def _value(item: Given, hint: Any) -> tuple[Any, int]:
    """Return the value of a flag, and how many of the words that follow it are used."""
    low, high = _arity(hint)
    words = item.words[:high] if item.value is None else [item.value]
    is_text = not {str, Path}.isdisjoint(alternatives(hint))
    if not words:
        raise InputError(f"{item.flag} has no value; give {'it after the flag' if is_text else describe(hint)}")
    if is_text:  # any other word is text
        require(bool(words[0].strip()), f"{item.flag} must not be empty")
    for count in range(len(words), low - 1, -1):
        with suppress(_Mismatch):
            return convert(hint, words[:count]), count if item.value is None else 0
    raise InputError(f"{item.flag} must be {describe(hint)}, got {shown(' '.join(words))}")


def _arity(hint: Any) -> tuple[int, int]:
    """Return the smallest and the largest number of words of a value."""
    counts = []
    for member in alternatives(hint):
        if typing.get_origin(member) is tuple:
            items = typing.get_args(member)
            counts.append((1, 1 << 30) if items[-1] is Ellipsis else (len(items), len(items)))
        else:
            counts.append((1, 1))
    return min(low for low, _ in counts), max(high for _, high in counts)


def convert(hint: Any, words: Sequence[str]) -> Any:
    """Convert words to a value of a type, or raise `_Mismatch`."""
    *others, last = alternatives(hint)
    for member in others:
        with suppress(_Mismatch):
            return convert(member, words)
    if typing.get_origin(last) is tuple:
        items = typing.get_args(last)
        items = (items[0],) * len(words) if items[-1] is Ellipsis else items
        if len(items) == len(words):
            return tuple(convert(item, [word]) for item, word in zip(items, words, strict=True))
    elif len(words) == 1:
        return _convert_word(last, words[0])
    raise _Mismatch


def _convert_word(hint: Any, word: str) -> Any:
    if typing.get_origin(hint) is Literal:
        values = {str(choice): choice for choice in typing.get_args(hint)}
    else:
        values, word = WORDS.get(hint, {}), word.lower() if hint in WORDS else word
    if values and word in values:
        return values[word]
    if values or not word.strip():
        raise _Mismatch
    try:
        value = hint(word)
    except ValueError as error:
        raise _Mismatch from error
    if value != value:  # NaN
        raise _Mismatch
    return value


def build(config: Any, values: Mapping[tuple[str, ...], Any]) -> Any:
    """Return a config with some settings replaced; `values` are keyed by the path of the setting."""
    return replace(config, **_changes({f.name: getattr(config, f.name) for f in fields(config)}, values))


def _changes(settings: Mapping[str, Any], values: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Return the changed settings, with the changes of each group of settings applied to it."""
    changes = {path[0]: value for path, value in values.items() if len(path) == 1}
    for name in dict.fromkeys(path[0] for path in values if len(path) > 1):
        inner = {path[1:]: value for path, value in values.items() if path[0] == name}
        changes[name] = build(settings[name], inner)
    return changes


def reject_flag(flag: str, options: Mapping[str, Option], prog: str) -> NoReturn:
    """Raise an `InputError` for a flag that does not exist."""
    known = [name for name in options if name.startswith("--")]
    ending = [name for name in known if name.endswith(f".{flag.lstrip('-')}")]
    near = closest(flag, ending or known) or next(iter(ending), None)
    hint = f"; did you mean {near}?" if near else ""
    raise InputError(f"there is no option {flag}{hint} ('{prog} --help' lists all)")


def reject_word(flag: str, word: str, options: Mapping[str, Option], help_text: str) -> NoReturn:
    """Raise an `InputError` for a word that no option takes; `flag` is the one before it."""
    positive, option = _find(options, flag)
    if option is not None and option.hint is bool:
        raise InputError(f"{flag} takes no value, got {shown(word)}; {_both(positive)}")
    hint = f"; did you mean --{word}?" if f"--{word}" in options else ""
    after = f" after {flag}" if flag else ""
    raise InputError(f"unexpected argument {shown(word)}{after}{hint} ({help_text})")


def call(command: Callable[..., int], arguments: Sequence[str], prog: str, usage: str) -> int:
    """Call a command with the values that the arguments give to its parameters; `--help` prints its help and exits.

    Raises `InputError` if the arguments are invalid.
    """
    if {"-h", "--help"} & set(arguments):
        print_help(command, prog)
    options = options_of(command)
    words, given = split(arguments)
    taken = take(options, given)
    for item in taken.rest:
        reject_flag(item.flag, options, prog)
    values = taken.values | _positional(options, [*(("", word) for word in words), *taken.stray], usage)
    _require_flags(options, values, usage)
    defaults = {name: default for name, _, default in _settings(command) if default is not inspect.Parameter.empty}
    return command(**defaults | _changes(defaults, values))


def _positional(options: Mapping[str, Option], found: list[tuple[str, str]], usage: str) -> dict[tuple[str, ...], Any]:
    """Return the values of positional arguments. Raises `InputError` if there are too few or too many."""
    values = {}
    for option in options.values():
        if option.metavar is None:
            continue
        words = [word for _, word in found[: _arity(option.hint)[1]]]
        found = found[len(words) :]
        try:
            if words or option.required:
                values[option.path] = convert(option.hint, words)
        except _Mismatch as error:
            name = option.metavar.split()[0]
            problem = "must not be empty" if words else "is missing"  # all of them are text
            raise InputError(f"{name} {problem}; usage: {usage}") from error
    if found:
        reject_word(*found[0], options, f"usage: {usage}")
    return values


def _require_flags(options: Mapping[str, Option], values: Mapping[tuple[str, ...], Any], usage: str) -> None:
    """Raise an `InputError` if a flag without a default is not given."""
    for flag, option in options.items():
        if option.required and option.path not in values:
            is_choice = typing.get_origin(option.hint) is Literal
            how = f"give {describe(option.hint)}" if is_choice else f"usage: {usage}"
            raise InputError(f"{flag} is missing; {how}")


def print_help(target: Any, prog: str, **default: Any) -> NoReturn:
    """Print the help of a command, or of a config with its values as `default`, and exit.

    tyro wraps the settings, but not the description above them.
    """
    terminal = sys.stdout.isatty() and not os.environ.get("NO_COLOR")  # tyro does not know NO_COLOR (no-color.org)
    width = min(MAX_HELP_WIDTH, shutil.get_terminal_size().columns)
    with nullcontext() if terminal else redirect_stdout(io.StringIO()) as plain, suppress(SystemExit):
        tyro.cli(target, args=["--help"], prog=prog, **default)
    for line in plain.getvalue().splitlines() if plain is not None else ():
        print(textwrap.fill(line, width, break_on_hyphens=False) if line[:1].isalpha() else line)
    raise SystemExit
