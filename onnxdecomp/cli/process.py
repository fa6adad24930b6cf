"""The process that a command runs in: its signals, its streams, and the noise of other libraries."""

from __future__ import annotations

import gc
import io
import os
import signal
import socket
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import Any, NoReturn

from onnxdecomp.runtime import temporary_files
from onnxdecomp.runtime.process_state import handled_logging, no_warnings, shown_logging

INTERRUPTED = 128 + signal.SIGINT
"""The exit code of a command ended by Ctrl-C, as shells have it."""

PATIENCE = 0.6
"""Seconds that a signal's handling may take before the process is ended all the same."""

_ALLOCATIONS = 70_000
"""Objects made between two searches for cycles."""

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Interrupted(BaseException):
    """A signal asked the process to end. No `except Exception` stops it, and every `finally` runs."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


@contextmanager
def signals() -> Iterator[None]:
    """Turn the first signal that would end the process into Interrupted, so that files are tidied up.

    Later ones are ignored: tidying up must not be interrupted, and it is quick. Where a call of another
    library keeps Python from raising, the process ends without it (see `_impatient`).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if not seen:
            seen.append(number)
            raise Interrupted(number)

    before: dict[int, Any] = {}
    for name in _SIGNALS:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        # What was ignored before (by nohup, say) stays ignored.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, handler)
    try:
        with _impatient(before):
            yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def _impatient(numbers: Collection[int]) -> Iterator[None]:
    """Inside, a signal ends the process even where Python does not come to handle it.

    Python handles signals between two steps of its own, and a run of a model or the eigenvectors of a large
    matrix are one step, which may take minutes. So the system's handler also wakes a thread, which tidies
    up and ends the process if nothing has happened for a while.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    ended = threading.Event()

    def watch() -> None:
        for byte in iter(lambda: reader.recv(1), b""):
            number = byte[0]
            if number in numbers and not ended.wait(PATIENCE):
                _end_now(128 + number)

    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(previous)
        writer.close()
        watcher.join()
        reader.close()


def _end_now(code: int) -> NoReturn:
    """End the process without its `finally`: remove what it has half written, and end what it has started."""
    import psutil

    try:
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
        temporary_files.remove_all()
        os.write(2, b"onnxdecomp: interrupted\n")
    finally:
        os._exit(code)


@contextmanager
def streams() -> Iterator[None]:
    """Make stdout and stderr fit to be written to, whatever the caller did to them."""
    if sys.stdout is None:  # closed by the caller
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A character that the encoding lacks must not end the run.
            stream.reconfigure(errors="backslashreplace")
    yield


@contextmanager
def quiet(*, enabled: bool) -> Iterator[None]:
    """Silence the warnings and log lines of other libraries; ours are lines of our own.

    Warnings that the user asked Python for (-W, PYTHONWARNINGS) are shown.
    """
    if not enabled:
        with shown_logging("onnxdecomp"):
            yield
        return
    with handled_logging(), nullcontext() if sys.warnoptions else no_warnings():
        yield


@contextmanager
def few_collections() -> Iterator[None]:
    """Look for objects in cycles a hundred times less often: a graph of thousands of nodes has none to find.

    The search was a fifth of `inspect` for 800 layers. What holds tensors is collected by the pipeline.
    """
    before = gc.get_threshold()
    gc.set_threshold(_ALLOCATIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def forget_stdout() -> None:
    """After the reader of stdout went away: let Python's last flush go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
