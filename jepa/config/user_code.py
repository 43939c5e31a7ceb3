"""User-defined experiments: a Python file that defines configs, modules and recipes.

The file adds its components to the tables `OBJECTIVES`, `BACKBONES`, `SOURCES` and `RECIPES`. It is executed when its
path is given on the command line or to `jepa.load`. The copy in a run folder is never executed automatically.
"""

from __future__ import annotations

import hashlib
import sys
import traceback
import types
from pathlib import Path
from typing import Any, NamedTuple

from jepa.config.base import CodeConfig
from jepa.config.errors import InputError
from jepa.config.hints import shown
from jepa.config.recipes import RECIPES
from jepa.files import printable

__all__ = ["LoadedCode", "changes_allowed", "check_code_loaded", "load_code", "loaded_code"]


class LoadedCode(NamedTuple):
    """An executed user file."""

    path: Path  # as it was given
    content: bytes
    recipes: list[str]  # names of the recipes that it added


_loaded: dict[str, LoadedCode] = {}  # by hash
_accepted: set[str] = set()  # names of files that may differ from those that runs were trained with


def load_code(path: str | Path, allow_changes: bool = False) -> CodeConfig:
    """Execute a Python file once, so that its components are in the tables, and return its name and hash.

    With `allow_changes`, runs that were trained with a different version of this file are opened with it.
    Raises `InputError` if the file cannot be read or fails.
    """
    path = Path(path).expanduser()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"the code {path} cannot be read: {error.strerror}; give the path of a .py file") from error
    code = CodeConfig(path.name, hashlib.sha256(content).hexdigest())
    if allow_changes:
        _accepted.add(code.file)
    if code.sha256 not in _loaded:
        before = dict(RECIPES)
        _run(path, content, f"jepa_user_code_{code.sha256[:16]}")
        added = [name for name, make in RECIPES.items() if before.get(name) is not make]
        _loaded[code.sha256] = LoadedCode(path, content, added)
    return code


def _run(path: Path, content: bytes, name: str) -> None:
    """Execute the content of a file as module `name`, so that its classes can be found."""
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        exec(compile(content, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        if isinstance(error, InputError):
            raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        at = f" at line {lines[-1]}" if lines else ""
        raise InputError(f"{path} failed{at}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def loaded_code(code: CodeConfig) -> LoadedCode:
    """Return the path, content and recipes of a loaded file, or of the changed version that was allowed instead."""
    if code.sha256 in _loaded:
        return _loaded[code.sha256]
    return next(loaded for loaded in reversed(_loaded.values()) if loaded.path.name == code.file)


def changes_allowed(code: CodeConfig) -> bool:
    """Return whether runs that were trained with a different version of this file may be opened with it."""
    return code.file in _accepted


def check_code_loaded(values: Any, config_path: Path) -> None:
    """Check that the code that an experiment was trained with is loaded; `values` is `code` in its config.json.

    Raises `InputError` if it is not, or if a file of the same name with different content is.
    """
    if values is None:
        return
    file, sha256 = (values.get("file"), values.get("sha256")) if isinstance(values, dict) else (None, None)
    is_name = isinstance(file, str) and Path(file).name == file == printable(file) != ""
    if not isinstance(file, str) or not is_name or not isinstance(sha256, str):
        raise InputError(
            f"code in {config_path} must have a file name without a folder and its sha256, got {shown(values)}"
        )
    if sha256 in _loaded or file in _accepted:
        return
    copy = config_path.parent / "code" / file
    if any(loaded.path.name == file for loaded in _loaded.values()):
        raise InputError(
            f"{config_path.parent} was trained with a different version of {file} (copy: {copy}); pass that version "
            "with --code, or add --allow-changed-code"
        )
    raise InputError(
        f"{config_path.parent} was trained with the code of {file}, which is never executed automatically; "
        f"pass it with --code FILE (copy: {copy})"
    )
