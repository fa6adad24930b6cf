"""Threads of the linear algebra.

The wheels of NumPy and SciPy bring an OpenBLAS each. Its threads wait for each other at every call, and spin
for a while after it in case another follows. So two things are to be avoided. Where the work goes to and fro
between the two libraries, the threads of either keep the cores from the other's. And where many small
products follow each other, each waits until all threads were given a core: beside other work these waits are
most of the time. On two cores the CP of a 512 x 512 x 3 x 3 weight at rank 256 took 4 s on one thread, 17 s
on two, and more than a minute on two beside another busy process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

LARGE = 2048
"""Rows of an eigenvalue problem from which more threads gain more than the change of hands costs."""


@contextmanager
def one_pool() -> Iterator[None]:
    """Inside, NumPy's products have all threads, and SciPy's own BLAS, if it has one, has one thread."""
    scipys, _ = _libraries()
    with scipys.limit(limits=1):
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, all linear algebra has one thread: for alternations, which are many small products."""
    scipys, others = _libraries()
    with scipys.limit(limits=1), others.limit(limits=1):
        yield


@contextmanager
def threads_for(rows: int) -> Iterator[None]:
    """Inside, SciPy has as many threads as NumPy for a problem of that many rows, if it is large."""
    if rows < LARGE:
        yield
        return
    scipys, others = _libraries()
    most = max((library.num_threads for library in others.lib_controllers), default=1)
    with scipys.limit(limits=most):
        yield


def _libraries() -> tuple[ThreadpoolController, ThreadpoolController]:
    """The BLAS that only SciPy uses, if there is one, and the others."""
    import scipy.linalg
    from threadpoolctl import ThreadpoolController

    package = Path(scipy.__file__).parent
    homes = (package, package.with_name("scipy.libs"))
    loaded = ThreadpoolController().select(user_api="blas")
    own: list[str] = []
    others: list[str] = []
    for library in loaded.lib_controllers:
        of_scipy = any(Path(library.filepath).is_relative_to(home) for home in homes)
        (own if of_scipy else others).append(library.filepath)
    return loaded.select(filepath=own), loaded.select(filepath=others)
