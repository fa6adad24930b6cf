"""Feeds that can be drawn only once, kept to be read many times: in memory, then in a temporary file."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.data.feeds import HELD, nbytes
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.session import Feed


class Spool:
    """Copies of feeds: the first `hold` bytes of them in memory, the others in a nameless temporary file.

    They are copies because generators and readers often fill the same array again for each feed. The file
    is gone when the spool is, or the process.

    Raises:
        UsageError: The temporary folder is full.
    """

    def __init__(self, feeds: Iterable[Feed], *, hold: int = HELD) -> None:
        self._feeds: list[Feed] = []
        self._places: list[tuple[int, tuple[str, ...]]] = []
        self._file: IO[bytes] | None = None
        left = hold
        for feed in feeds:
            left -= nbytes(feed)
            if left >= 0 and self._file is None:
                self._feeds.append({name: _copy(array) for name, array in feed.items()})
            else:
                self._write(feed)

    def __len__(self) -> int:
        return len(self._feeds) + len(self._places)

    def __iter__(self) -> Iterator[Feed]:
        yield from self._feeds
        for place, names in self._places:
            yield self._read(place, names)

    @property
    def written(self) -> int:
        """Feeds in the temporary file."""
        return len(self._places)

    def _write(self, feed: Feed) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="onnxdecomp-")  # noqa: SIM115
                weakref.finalize(self, self._file.close)
            self._places.append((self._file.seek(0, 2), tuple(feed)))
            for array in feed.values():
                np.lib.format.write_array(self._file, array, allow_pickle=True)
        except OSError as error:
            raise UsageError(
                f"the inputs do not fit into the temporary folder {tempfile.gettempdir()} ({error}): "
                "use fewer samples, or set TMPDIR to a larger disk"
            ) from error

    def _read(self, place: int, names: tuple[str, ...]) -> Feed:
        assert self._file is not None
        self._file.seek(place)
        feed: Feed = {}
        for name in names:
            # Only what this process wrote into its own nameless file is unpickled (arrays of strings).
            feed[name] = np.lib.format.read_array(self._file, allow_pickle=True)
            feed[name].flags.writeable = False
        return feed


def _copy(array: Array) -> Array:
    copy = array.copy()
    copy.flags.writeable = False
    return copy
