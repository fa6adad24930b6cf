"""Which of the user's samples a model fails on: said with file, sample and input, as of other bad data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np

from onnxdecomp.data.feeds import Feeds
from onnxdecomp.errors import ModelError, OnnxDecompError, UsageError
from onnxdecomp.runtime.session import Feed, open_session, outputs_of, run

Run = Callable[[Feed], object]


def culprit(feeds: Feeds, run: Run, *, first: int | None = None, certain: bool = False) -> str | None:
    """The line that names the first feed on which `run` raises ModelError; None where it takes them all.

    Args:
        feeds: The data.
        run: Runs the original.
        first: At most so many feeds are tried.
        certain: Name a feed only if zeros in the place of one input mend it: else the model may be at fault.
    """
    for index, feed in enumerate(islice(feeds, first)):
        try:
            run(feed)
        except ModelError as error:
            guilty = _input(feed, run)
            if certain and guilty is None:
                return None
            found = f"{feeds.where(index)}: the original fails on {guilty or 'it'}: {error}"
            return found if len(feeds) > 1 else f"{found}{_uneven(feed)}"
    return None


@contextmanager
def blaming(model: Path, *data: Feeds | None) -> Iterator[None]:
    """Look for the cause of what the block cannot do in the data: they are run one by one, without batches.

    Raises:
        UsageError: The model fails on one of the samples, which is named, or its outputs are not finite.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OnnxDecompError) and not isinstance(error, ModelError):
            raise
        session = open_session(model, low_memory=True)
        names = [spec.name for spec in outputs_of(session)]

        def finite(feed: Feed) -> None:
            for name, array in zip(names, run(session, feed), strict=True):
                if isinstance(array, np.ndarray) and array.dtype.kind == "f" and not np.isfinite(array).all():
                    raise ModelError(f"its output {name!r} is not finite")

        for feeds in filter(None, data):
            found = culprit(feeds, lambda feed: run(session, feed)) or culprit(feeds, finite, certain=True)
            if found is not None:
                raise UsageError(found) from error
        raise


def _input(feed: Feed, run: Run) -> str | None:
    """The one input with zeros in whose place the model runs, or None where that is none."""
    for name, array in feed.items():
        if array.dtype.kind not in "biufc":
            continue
        try:
            run({**feed, name: np.zeros_like(array)})
        except ModelError:
            continue
        return repr(name)
    return None


def _uneven(feed: Feed) -> str:
    """The sizes of first axes where they differ: the arrays may be samples, some of them missing."""
    sizes = {name: len(array) for name, array in feed.items() if array.ndim}
    if len(set(sizes.values())) < 2:
        return ""
    each = ", ".join(f"{name} {size}" for name, size in sizes.items())
    return f" (were the inputs to have the same number of samples? {each})"
