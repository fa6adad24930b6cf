"""Temporary files and folders of this process, known in one place: an end in haste can remove them.

A process that is killed, or that a library ends, removes nothing. So a folder is locked as long as its
process lives, and a later run removes those of this machine that nobody holds.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PLACES: dict[Path, None] = {}
"""What is there now, of all threads: a signal ends them all."""
_PREFIX = "onnxdecomp-"
_HIDDEN = f".{_PREFIX}"
_YOUNG_S = 60
"""A folder of that age may just not have been locked yet."""


@contextmanager
def folder(beside: Path | None = None) -> Iterator[Path]:
    """A new folder that is gone afterwards: hidden in that folder, or where the system has temporary ones.

    Raises:
        OSError: It cannot be made.
    """
    prefix = (_PREFIX if beside is None else _HIDDEN) + _machine()
    with tempfile.TemporaryDirectory(prefix=prefix, dir=beside) as name:
        path = Path(name)
        expect(path)
        held = _lock(path)
        try:
            yield path
        finally:
            forget(path)
            if held is not None:
                os.close(held)


@contextmanager
def folder_if(needed: bool) -> Iterator[Path | None]:
    """`folder()` where one is needed; None elsewhere: there may be no place for any."""
    if not needed:
        yield None
        return
    with folder() as path:
        yield path


def remove_abandoned(beside: Path | None = None) -> None:
    """Remove the folders that processes of this machine have left behind when they were killed."""
    parent, prefix = (Path(tempfile.gettempdir()), _PREFIX) if beside is None else (beside, _HIDDEN)
    with suppress(OSError):
        for path in parent.iterdir():
            if not path.name.startswith(prefix + _machine()) or path.is_symlink():
                continue
            with suppress(OSError):
                if time.time() - path.stat().st_mtime < _YOUNG_S or (held := _lock(path)) is None:
                    continue
                shutil.rmtree(path, ignore_errors=True)
                os.close(held)


def _machine() -> str:
    """A part of names: whether a process of another machine lives cannot be told here."""
    return re.sub(r"[^\w.]", "", platform.node())[:40] + "-"


def _lock(folder: Path) -> int | None:
    """Lock a folder for as long as what is returned is open; None where another holds it, or none can.

    By a file in it: who saves a model there locks the folder itself.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    handle = None
    try:
        handle = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another's, or on one of the file systems that know no locks
        if handle is not None:
            os.close(handle)
        return None
    return handle


def expect(path: Path) -> None:
    """This file or folder, which may not be there yet, is of no use if the process ends now."""
    _PLACES[path] = None


def forget(path: Path) -> None:
    """It is gone, or meant to stay."""
    _PLACES.pop(path, None)


def remove_all() -> None:
    """Remove what is there, at the end of the process."""
    for path in tuple(_PLACES):
        with suppress(OSError):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
