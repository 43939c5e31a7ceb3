"""Conversion of configs to JSON and back."""

from __future__ import annotations

import json
import math
import types
import typing
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from jepa.config.base import BACKBONES, OBJECTIVES, BackboneConfig, Config, ObjectiveConfig, PartTable
from jepa.config.errors import InputError, require, suggest
from jepa.config.hints import command, describe, shown
from jepa.config.user_code import check_code_loaded

__all__ = ["flat", "from_dict", "read_config", "read_json", "to_dict"]

TABLES: dict[type, PartTable] = {BackboneConfig: BACKBONES, ObjectiveConfig: OBJECTIVES}
OLD_NAMES = {("objective", "fixations", "field"): "view_fraction"}
"""Settings that have a different name in run folders of version 0.1.0."""


def to_dict(config: Any) -> Any:
    """Convert a config to JSON values. Objectives and backbones carry their `kind`."""
    if not is_dataclass(config):
        return [to_dict(item) for item in config] if isinstance(config, tuple) else config
    kind = {"kind": config.kind} if isinstance(config, BackboneConfig | ObjectiveConfig) else {}
    return kind | {f.name: to_dict(getattr(config, f.name)) for f in fields(config)}


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten a config or its JSON values to a dict keyed by flag name: `{"data.source": "sample", …}`."""
    result: dict[str, Any] = {}
    for name, value in (values if isinstance(values, dict) else to_dict(values)).items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return result


def from_dict(cls: type, values: Any, where: str = "config") -> Any:
    """Build a config from JSON values. Missing settings take their defaults.

    Raises an `InputError` naming the first setting that is unknown or has the wrong type.
    """
    require(isinstance(values, dict), f"{where} must be a JSON object of settings, got {shown(values)}")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in fields(cls)}
    for name in values:
        require(name in known, f"{where} has no setting {shown(name)}{suggest(name, known)}")
    return cls(**{name: _value(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def _part(table: PartTable, values: Any, where: str) -> Any:
    """Build the config of an objective or a backbone, whose class follows from its `kind`."""
    require(isinstance(values, dict), f"{where} must be a JSON object of settings, got {shown(values)}")
    kind = values.get("kind", next(iter(table.kinds())))
    chosen = table.config_class(kind, f"{where}.kind")
    return from_dict(chosen, {name: value for name, value in values.items() if name != "kind"}, where)


def _value(hint: Any, value: Any, where: str) -> Any:
    """Convert one JSON value to the type that a field declares."""
    if hint in TABLES:
        return _part(TABLES[hint], value, where)
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
        with suppress(OverflowError):
            if not math.isnan(number := float(value)):
                return number
    elif hint is type(None) and value is None:
        return None
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise InputError(f"{where} must be {describe(hint)}, got {shown(value)}")


def read_json(path: str | Path) -> dict[str, Any]:
    """Read the JSON values of a config file, with settings of version 0.1.0 under their current names.

    Raises `InputError` if the file cannot be read.
    """
    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise InputError(f"the config {path} cannot be read: {error.strerror}") from error
    try:
        values: Any = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"the config {path} is not JSON: {_json_problem(error)}") from error
    require(isinstance(values, dict), f"the config {path} must contain a JSON object of settings, got {shown(values)}")
    for (*parents, old), new in OLD_NAMES.items():
        part: Any = values
        for name in parents:
            part = part.get(name) if isinstance(part, dict) else None
        if isinstance(part, dict) and old in part:
            part.setdefault(new, part.pop(old))
    return dict(values)


def _json_problem(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    if isinstance(error, json.JSONDecodeError):
        return str(error)
    return "it is nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


def read_config(path: str | Path) -> Config:
    """Read a config from a JSON file.

    Raises `InputError` if the file is not a config, or if the experiment needs user code that is not loaded.
    """
    values = read_json(path)
    folder = Path(path).parent
    require(
        "format" not in values,
        f"{folder} is an exported model, not a run; '{command('import', folder, '--out', 'RUN')}' makes a run of it",
    )
    check_code_loaded(values.get("code"), Path(path))
    config: Config = from_dict(Config, values)
    return config
