"""The work folder of a run: what all that it keeps depends on."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import onnxdecomp
from onnxdecomp.graph.load import content_hash
from onnxdecomp.runtime import environment, temporary_files
from onnxdecomp.tasks.course import Course
from onnxdecomp.tasks.store import FORMAT, Store
from onnxdecomp.tasks.values import digest

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from onnxdecomp.workflow.config import CompressConfig
    from onnxdecomp.workflow.context import RunContext


@contextmanager
def work_folder(config: CompressConfig, pool: Executor | None) -> Iterator[Path | None]:
    """The work folder: the one that was named, one that is gone afterwards for tasks elsewhere, or None.

    Raises:
        UsageError: It cannot be used.
    """
    if config.workdir is not None:
        yield Store.at(config.workdir).folder
    elif pool is None:
        yield None
    else:
        with temporary_files.folder() as folder:
            yield folder / "work"


def course_of(run: RunContext, folder: Path | None) -> Course | None:
    """Where the run keeps results in its work folder; None where it has none.

    They depend on the model's bytes, this version, the libraries that compute, the threads, the machine's
    kind of processor, and what prepares the model; on inputs, plans and other options where these come in.

    Raises:
        UsageError: The folder cannot be used.
    """
    if folder is None:
        return None
    import numpy
    import onnxruntime
    import scipy

    from onnxdecomp.pipeline.base import Planner

    store = Store.at(folder)
    versions = onnxdecomp.__version__, _code(), numpy.__version__, scipy.__version__, onnxruntime.__version__
    passes = [(each.name, _fields(each)) for each in run.config.passes if not isinstance(each, Planner)]
    shapes = dict(run.config.input_shapes or {})
    where = environment.device("cpu"), environment.device(run.config.provider), run.threads
    parts = FORMAT, versions, content_hash(run.original), repr(passes), repr(shapes), where
    return Course(store, digest(*parts))


def _fields(value: object) -> dict[str, object]:
    assert dataclasses.is_dataclass(value)
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


@cache
def _code() -> str:
    """A hash of this program: in a checkout it changes without its version."""
    root = Path(onnxdecomp.__file__).parent
    files = sorted(path for path in root.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
