"""Invalid user input: one sentence, and exit code 2."""

from __future__ import annotations

import difflib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from jepa.config.hints import shown
from jepa.files import printable
from jepa.terminal import prepare_streams

__all__ = [
    "InputError",
    "Interrupted",
    "check_limits",
    "closest",
    "exit_with",
    "handle_stop",
    "require",
    "stop_signals",
    "suggest",
]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""Signals by which users, terminals, containers and job schedulers ask a program to stop."""

MIN_SIMILARITY = 0.6  # of words, as measured by difflib; 'resnet' and 'energy' have 0.5
MAX_COMPARED = 200  # characters; the time of a comparison is quadratic


class InputError(Exception):
    """Invalid user input. The message is one sentence: what was given, what is accepted, how to fix it."""


class Interrupted(BaseException):
    """A signal has asked the program to stop; in training, after everything was saved.

    Like `KeyboardInterrupt`, it is not an `Exception`, so that no handler of errors takes it for one.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def stop_signals() -> list[signal.Signals]:
    """Return the signals to stop at: all but SIGHUP if it is ignored, because the command was started by nohup.

    There are none outside the main thread, which alone can handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        return []
    return [number for number in STOP_SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise `Interrupted`, so that temporary files are removed on the way out: a handler of signals."""
    raise Interrupted("interrupted", number)


@contextmanager
def handle_stop(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call a handler when a signal asks to stop during a `with` block."""
    handlers = {number: signal.signal(number, handler) for number in stop_signals()}
    try:
        yield
    finally:
        for number, previous in handlers.items():
            signal.signal(number, previous)


def require(condition: bool, message: str) -> None:
    """Raise `InputError(message)` unless the condition holds."""
    if not condition:
        raise InputError(message)


def check_limits(config: Any, prefix: str, **limits: int) -> None:
    """Raise `InputError` if a setting is above its limit; `prefix` is that of the settings in the message.

    The limits are far above useful values. They keep a typing error from taking all memory.
    """
    for name, limit in limits.items():
        value = getattr(config, name)
        if value > limit:
            raise InputError(f"{prefix}{name} must be at most {limit:,}, got {shown(value)}")


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the most similar known word, or None if none is similar."""
    near = difflib.get_close_matches(word[:MAX_COMPARED], list(known), n=1, cutoff=MIN_SIMILARITY)
    return near[0] if near else None


def suggest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean '…'?` with the most similar known word, or an empty string if none is similar."""
    near = closest(word, known)
    return f"; did you mean '{near}'?" if near else ""


def exit_with(command: Callable[[], int]) -> NoReturn:
    """Run a command and exit with the code that it returns; user errors are printed as one sentence, with code 2."""
    prepare_streams()
    try:
        code = _exit_code(command)
    except BrokenPipeError:  # `jepa recipes | head -1`
        code = 0
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:  # the pipe is closed, or the disk is full; Python would report it again when it exits
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def _exit_code(command: Callable[[], int]) -> int:
    """Return the exit code of a command, and print its error."""
    try:
        with handle_stop(interrupt):
            code = command()
        if sys.stdout:
            sys.stdout.flush()
        return code
    except InputError as error:
        print(printable(f"jepa: {error}"), file=sys.stderr)
    except Interrupted as stop:
        print(printable(f"jepa: {stop}"), file=sys.stderr)
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        print("jepa: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:  # after --help
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:
        raise
    except OSError as error:
        name = printable(str(error.filename or "a file"))
        print(f"jepa: {name} cannot be used: {error.strerror or error}", file=sys.stderr)
    return 2
