"""Who computes tasks: this process, others of this machine, a Dask cluster, or what a callable gives.

Whatever is named ends as a `concurrent.futures.Executor`. None is opened before the first task.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from onnxdecomp.errors import UsageError
from onnxdecomp.runtime import environment

P = ParamSpec("P")
T = TypeVar("T")

SERIAL = "serial"
_KNOWN = re.compile(r"processes(?::(?P<count>\d+))?|dask(?::(?P<address>.+))?")
_FORMS = "serial, processes, processes:N, dask, dask:ADDRESS, or module:callable"


@dataclass(frozen=True)
class ExecutorSpec:
    """An executor as it was asked for.

    Attributes:
        text: As it was said.
        kind: "serial", "processes", "dask" or "callable".
        count: Processes; None for as many as there are cores.
        where: The address of a scheduler, or the callable; "" for a cluster of its own.
    """

    text: str
    kind: str
    count: int | None = None
    where: str = ""

    @property
    def elsewhere(self) -> bool:
        """Whether its processes may be on other machines."""
        return self.kind in ("dask", "callable")


def parse_executor(text: str) -> ExecutorSpec:
    """What `--executor` says.

    Raises:
        UsageError: It is none of the known forms.
    """
    if text == SERIAL:
        return ExecutorSpec(text, SERIAL)
    known = _KNOWN.fullmatch(text)
    if known is not None and text.startswith("dask"):
        return ExecutorSpec(text, "dask", where=known["address"] or "")
    if known is not None and known["count"] != "0":
        return ExecutorSpec(text, "processes", int(known["count"]) if known["count"] else None)
    module, _, name = text.partition(":")
    if module not in ("processes", "dask", SERIAL) and module and name.isidentifier():
        return ExecutorSpec(text, "callable", where=text)
    raise UsageError(f"--executor {text}: is none of {_FORMS}")


@contextmanager
def opened(spec: ExecutorSpec) -> Iterator[Executor | None]:
    """The executor, closed afterwards if it was made here; None for serial work in this process.

    Raises:
        UsageError: Something that it needs is not installed, or its cluster is not there.
    """
    if spec.kind == SERIAL:
        yield None
    elif spec.kind == "processes":
        yield from _processes(spec)
    elif spec.kind == "dask":
        yield from _dask(spec)
    else:
        yield from _called(spec)


def _processes(spec: ExecutorSpec) -> Iterator[Executor]:
    try:
        from loky import ProcessPoolExecutor
    except ImportError:
        raise UsageError(f"--executor {spec.text} needs loky: pip install 'onnxdecomp[cluster]'") from None
    pool = ProcessPoolExecutor(spec.count or environment.cores(), env=ONE_THREAD)
    try:
        yield pool
    finally:
        pool.shutdown(kill_workers=True)


def _dask(spec: ExecutorSpec) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ImportError:
        raise UsageError(f"--executor {spec.text} needs Dask: pip install 'onnxdecomp[cluster]'") from None
    try:
        # One thread a worker: a task counts on being alone with its linear algebra.
        client = Client(spec.where, timeout=_SECONDS) if spec.where else Client(threads_per_worker=1)
    except (OSError, ValueError) as error:
        raise UsageError(f"--executor {spec.text}: the scheduler does not answer: {error}") from error
    with client:
        yield client.get_executor(pure=False)


def _called(spec: ExecutorSpec) -> Iterator[Executor]:
    from onnxdecomp.data.callables import called

    with called(spec.where, ()) as made:
        if not isinstance(made, Executor):
            kind = type(made).__name__
            raise UsageError(f"--executor {spec.text} gives a {kind}, no concurrent.futures.Executor")
        with made:
            yield made


_SECONDS = "10s"

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""The environment of worker processes."""
