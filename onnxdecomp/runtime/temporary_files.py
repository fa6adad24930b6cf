"""Temporary files and folders of this process, known in one place: an end in haste can remove them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PLACES: dict[Path, None] = {}
"""What is there now, of all threads: a signal ends them all."""


@contextmanager
def folder(prefix: str = "onnxdecomp-", beside: Path | None = None) -> Iterator[Path]:
    """A new folder that is gone afterwards: in that folder, or where the system has temporary ones.

    Raises:
        OSError: It cannot be made.
    """
    with tempfile.TemporaryDirectory(prefix=prefix, dir=beside) as name:
        path = Path(name)
        expect(path)
        try:
            yield path
        finally:
            forget(path)


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
