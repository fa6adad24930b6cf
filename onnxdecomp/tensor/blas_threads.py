"""Threads of the linear algebra: one, but for single large problems.

The wheels of NumPy and SciPy bring an OpenBLAS each. Its threads wait for each other at every call, and spin
for a while after it in case another follows. So where many products follow each other, each waits until all
threads were given a core, and where the work goes to and fro between the two libraries, the threads of either
keep the cores from the other's: beside other work these waits are most of the time. On two cores the CP of a
512 x 512 x 3 x 3 weight at rank 256 took 4 s on one thread, 17 s on two, and more than a minute on two beside
another busy process; the eigenvalues of a 1536 x 1536 matrix 1.1 s on one thread and 2.4 to 20 s on two.

The number of threads belongs to the process, whichever of its threads asks. So scopes that overlap are kept
account of in one place: the least that any thread asks for holds, and when the last has left all is as
before.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threadpoolctl import LibController

LARGE = 2048
"""Rows of a problem from which more threads gain more than they wait for each other."""

LONG = 1024
"""Rows from which a problem is given to NumPy, during whose calls Python's other threads run on: so a signal
ends the process. SciPy's LAPACK keeps them waiting."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, linear algebra has one thread; `threads_for` makes the exceptions."""
    with _SCOPES.scope(1):
        yield


@contextmanager
def threads_for(rows: int) -> Iterator[None]:
    """Inside, a problem of that many rows has as many threads as there were at first, if it is large."""
    if rows < LARGE:
        yield
        return
    with _SCOPES.scope(None):
        yield


class _Scopes:
    """What the threads of this process have asked for, each in scopes within each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[int, list[int | None]] = {}
        self._before: list[tuple[LibController, int]] = []

    @contextmanager
    def scope(self, threads: int | None) -> Iterator[None]:
        """Inside, at most so many threads; None: as many as there were before all scopes."""
        me = threading.get_ident()
        with self._lock:
            if not self._asked:
                self._before = [(library, library.num_threads) for library in _libraries()]
            self._asked.setdefault(me, []).append(threads)
            self._set_threads()
        try:
            yield
        finally:
            with self._lock:
                self._asked[me].pop()
                if not self._asked[me]:
                    del self._asked[me]
                self._set_threads()

    def _set_threads(self) -> None:
        asked = [scopes[-1] for scopes in self._asked.values()]
        for library, before in self._before:
            wanted = min((most for most in asked if most is not None), default=before)
            library.set_num_threads(min(wanted, before))


_SCOPES = _Scopes()
"""The one place for what belongs to the process."""


def _libraries() -> list[LibController]:
    """Every BLAS of the process, SciPy's included, which comes with it."""
    import scipy.linalg  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return list(ThreadpoolController().select(user_api="blas").lib_controllers)
