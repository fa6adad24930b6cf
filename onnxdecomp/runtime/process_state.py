"""What belongs to the whole process and is changed for a while, so that threads do not undo each other.

Loggers' levels, warnings' filters, `sys.stdout` and the threads of a library are no thread's own. Where two
threads each save such a thing, change it and put it back, the one that saved last puts the other's change
back, for good. So whoever comes first saves and changes, the others find it changed, and whoever leaves last
restores. Where a change can be kept to the threads that want it, it is: another's prints and log lines are
not ours to lose.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

Undo = Callable[[], object]
"""Puts back what a change has replaced."""


@dataclass(eq=False)
class _Held:
    """A change that stands, and how many are inside it."""

    undo: Undo
    users: int = 0


_LOCK = threading.RLock()
_HELD: dict[str, _Held] = {}
_ALONE: dict[str, threading.RLock] = {}
_SILENT: ContextVar[bool] = ContextVar("silent", default=False)


@contextmanager
def shared(name: str, change: Callable[[], Undo]) -> Iterator[None]:
    """Inside, a change to the process stands; it is undone when nobody is inside any more.

    Args:
        name: Of what is changed. Those who name the same thing must want the same of it: the first one's
            change serves all.
        change: Makes the change and returns what undoes it.
    """
    with _LOCK:
        held = _HELD.get(name)
        if held is None:
            held = _HELD[name] = _Held(change())
        held.users += 1
    try:
        yield
    finally:
        with _LOCK:
            held.users -= 1
            if not held.users:
                del _HELD[name]
                held.undo()


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Inside there is one thread at a time: for what each wants changed in another way. It may be nested."""
    with _LOCK:
        lock = _ALONE.setdefault(name, threading.RLock())
    with lock:
        yield


@contextmanager
def quiet_logger(name: str) -> Iterator[None]:
    """Silence a library's logger and those below it."""
    logger = logging.getLogger(name)

    def change() -> Undo:
        before = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        return lambda: logger.setLevel(before)

    with shared(f"logger {name}", change):
        yield


@contextmanager
def quiet_logging(*libraries: str) -> Iterator[None]:
    """Silence these libraries' loggers, and what this thread logs by the root logger."""
    with ExitStack() as stack:
        for name in libraries:
            stack.enter_context(quiet_logger(name))
        stack.enter_context(handled_logging())
        stack.enter_context(shared("root logger's filter", _filter_root))
        stack.enter_context(_silent())
        yield


@contextmanager
def shown_logging(name: str) -> Iterator[None]:
    """Write what a library logs to stderr, as far as it is worth a look."""
    logger = logging.getLogger(name)

    def change() -> Undo:
        handler, before = logging.StreamHandler(sys.stderr), logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)

        def undo() -> None:
            logger.setLevel(before)
            logger.removeHandler(handler)

        return undo

    with shared(f"shown logger {name}", change):
        yield


@contextmanager
def handled_logging() -> Iterator[None]:
    """Give the root logger a handler that does nothing: without any, Python prints warnings, or adds one."""

    def change() -> Undo:
        nobody = logging.NullHandler()
        logging.getLogger().addHandler(nobody)
        return lambda: logging.getLogger().removeHandler(nobody)

    with shared("root logger's handler", change):
        yield


@contextmanager
def no_warnings() -> Iterator[None]:
    """Ignore Python's warnings."""

    def change() -> Undo:
        stack = ExitStack()
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        return stack.close

    with shared("warnings", change):
        yield


@contextmanager
def no_stdout() -> Iterator[None]:
    """Swallow what this thread prints by `sys.stdout`."""

    def change() -> Undo:
        redirected = contextlib.redirect_stdout(_Divided(sys.stdout))
        redirected.__enter__()
        return lambda: redirected.__exit__(None, None, None)

    with shared("stdout of silent threads", change), _silent():
        yield


@contextmanager
def _silent() -> Iterator[None]:
    token = _SILENT.set(True)
    try:
        yield
    finally:
        _SILENT.reset(token)


def _filter_root() -> Undo:
    root = logging.getLogger()

    def loud(record: logging.LogRecord) -> bool:
        return not _SILENT.get()

    root.addFilter(loud)
    return lambda: root.removeFilter(loud)


class _Divided:
    """A stdout that passes on what is written by threads that are not silent."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if _SILENT.get() else int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
