"""Files and folders that are written completely or not at all, checked JSON records, locks, and printable names."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = [
    "Locked",
    "atomic_folder",
    "atomic_write",
    "lock",
    "printable",
    "read_record",
    "remove_leftovers",
    "write_record",
]

JOINERS = "\u200c\u200d"  # zero-width characters within emoji, and within words of Persian and Indic scripts


class Locked(Exception):  # noqa: N818  (a state, not an error of this process)
    """A file is locked by another process; the message says by which one."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield the path of a new, empty file in the same folder, and rename it to `path` at the end of the block.

    The file is flushed to disk before it is renamed. If the block raises, the new file is deleted and `path` is left
    unchanged. Its name is random and it is opened exclusively, so that no existing file or link is written to; it has
    the permissions of the umask. Files that killed processes have left behind are removed first.
    """
    remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    owner = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDONLY, 0o666)
    try:
        _try_lock(owner)  # marks the file as being written
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        os.close(owner)
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new, empty folder beside `path`, and rename it to `path`, which must not exist, at the end of the block.

    Like `atomic_write`, it flushes the files to disk, gives them the permissions of the umask, and leaves nothing
    behind if the block raises.
    """
    remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    owner = os.open(temporary, os.O_RDONLY)
    try:
        _try_lock(owner)  # marks the folder as being written
        yield temporary
        for file in filter(Path.is_file, temporary.rglob("*")):
            file.chmod(temporary.stat().st_mode & 0o666)  # safetensors creates private files
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        temporary.rename(path)
    finally:
        os.close(owner)
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files and folders of `path` that no process is writing any more."""
    for leftover in list(path.parent.iterdir()):
        if not (leftover.name.startswith(f".{path.name}.") and leftover.suffix == ".tmp"):
            continue
        with suppress(OSError):
            descriptor = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                if _try_lock(descriptor):
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            finally:
                os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """Lock an open file; return False if another process has locked it, or if its file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock during a `with` block, in the form of a locked file `path` that is removed at the end.

    Raises `Locked` if another process holds it. A lock ends with its process, however that ends. Locks have no effect
    on file systems that do not support them.
    """
    descriptor = _open_locked(path)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _open_locked(path: Path) -> int:
    """Open and lock a file; return its descriptor."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 1000).decode("utf-8", "replace")
            os.close(descriptor)
            raise Locked(printable(holder) or "another process") from error
        except OSError:  # this file system has no locks
            return descriptor
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)  # its previous holder has just removed it


def write_record(path: Path, values: dict[str, Any]) -> None:
    """Write JSON values with their checksum atomically, to be read by `read_record`."""
    text = json.dumps(values)
    with atomic_write(path) as temporary:
        temporary.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n", encoding="utf-8")


def read_record(path: Path) -> dict[str, Any] | None:
    """Read JSON values written by `write_record`; return None if the file is missing or damaged."""
    try:
        checksum, text, end = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):
        return None
    if end or checksum != hashlib.sha256(text.encode()).hexdigest():
        return None
    values: dict[str, Any] = json.loads(text)
    return values


def printable(text: str, keep: str = "") -> str:
    """Replace characters that control a terminal or the direction of text, and lone surrogates, by their escapes.

    Characters in `keep`, such as the newlines of a message of several lines, are not replaced.
    """
    if text.isprintable():
        return text
    escapes = {
        ord(character): character.encode("unicode_escape").decode()
        for character in set(text) - set(JOINERS + keep)
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    }
    return text.translate(escapes)
