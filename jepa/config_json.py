"""Configs to JSON and back, with one sentence for what does not fit."""

from __future__ import annotations

import json
import types
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from jepa.config import KINDS, Config, InputError, require, suggest

__all__ = ["flat", "from_dict", "read_config", "to_dict"]


def to_dict(config: Any) -> Any:
    """Turn a config into plain JSON values; parts that have alternatives carry their `kind`."""
    if not is_dataclass(config):
        return list(config) if isinstance(config, tuple) else config
    kind = {"kind": config.kind} if hasattr(config, "kind") and "kind" not in {f.name for f in fields(config)} else {}
    # a crop's kind is a field of its own, a backbone's is the class
    return kind | {f.name: to_dict(getattr(config, f.name)) for f in fields(config)}


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Turn a config into one level, `{"data.source": "sample", …}`: the names are those of the command line."""
    result: dict[str, Any] = {}
    for name, value in to_dict(config).items() if prefix == "" else config.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return result


def from_dict(cls: type, values: Any, where: str = "config") -> Any:
    """Build a config from JSON values; missing settings take their defaults.

    Raises `InputError` naming the setting that is unknown or of the wrong type.
    """
    require(isinstance(values, dict), f"{where} is {values!r}; it takes an object of settings")
    values = dict(values)
    hints = typing.get_type_hints(cls)
    if hasattr(cls, "kind") and "kind" not in {f.name for f in fields(cls)}:
        values.pop("kind", None)
    known = {f.name for f in fields(cls)}
    for name in values:
        require(name in known, f"{where} has no setting '{name}'{suggest(name, known)}")
    return cls(**{name: _value(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """Turn one JSON value into the type that a field declares."""
    part = where.split(".")[-1]
    if part in KINDS and isinstance(value, dict):
        kind = value.get("kind", next(iter(KINDS[part])))
        known = KINDS[part]
        require(
            isinstance(kind, str) and kind in known,
            f"{where}.kind is '{kind}'; it takes {', '.join(known)}{suggest(str(kind), known)}",
        )
        return from_dict(known[kind], value, where)
    if is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for alternative in arguments:
            try:
                return _value(alternative, value, where)
            except InputError:
                continue
    elif origin is tuple and isinstance(value, list | tuple):
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(inner) == len(value):
            return tuple(_value(item_hint, item, where) for item_hint, item in zip(inner, value, strict=True))
    elif origin is Literal and any(value == choice and type(value) is type(choice) for choice in arguments):
        return value
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif hint is type(None) and value is None:
        return None
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    accepted = ", ".join(map(str, arguments)) if origin is Literal else str(getattr(hint, "__name__", hint))
    raise InputError(f"{where} is {value!r}; it takes {accepted}")


def read_config(path: str | Path) -> Config:
    """Read a config from a JSON file."""
    try:
        values = json.loads(Path(path).read_text())
    except OSError as error:
        raise InputError(f"the config {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"the config {path} is not JSON: {error}") from error
    config: Config = from_dict(Config, values)
    return config
