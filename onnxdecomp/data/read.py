"""Every form in which data can be given, as feeds.

- A .npz file (an array per input, samples on the first axis; "labels"), or a folder of them.
- ONNX test data: test_data_set_*/input_*.pb, or one such folder.
- An image, or a folder of them with all its sub-folders, and a preprocessing (`prepared`).
- `module:callable` or `file.py:callable`: a function, or a class, that gives any of the following, or a pair
  of it and the labels, one for each row of the feeds.
- In Python: a mapping of whole arrays as a .npz has them, an iterable of feeds, an ONNX Runtime
  CalibrationDataReader, or Feeds.

Files are read again in every iteration, apart from what fits into memory; what can be drawn only once is
kept, in a temporary file if it is large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeAlias, TypeGuard

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.data.arrays import from_arrays
from onnxdecomp.data.callables import called, guarded, is_callable_name
from onnxdecomp.data.check import check_feed, check_inputs
from onnxdecomp.data.feeds import Feeds, FeedSource, Part, first_parts, join, rows
from onnxdecomp.data.images import SUFFIXES, image_feeds, image_files
from onnxdecomp.data.names import natural
from onnxdecomp.data.npz import npz_part
from onnxdecomp.data.onnx_test_data import data_set_part, data_sets
from onnxdecomp.data.preprocess import Preprocess, parse_preprocess
from onnxdecomp.data.spool import Spool
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.regular_files import require_regular
from onnxdecomp.runtime.session import Feed, TensorSpec


@dataclass(frozen=True)
class Prepared:
    """Data given by name, and how images among them become a model's input."""

    where: str | Path
    preprocess: Preprocess

    def __str__(self) -> str:
        return str(self.where)


Data: TypeAlias = str | Path | Prepared | Feeds | Mapping[str, Array] | Iterable[Mapping[str, Array]]
"""A path or `module:callable`, arrays by input name, an iterable of feeds, or a CalibrationDataReader."""


def prepared(data: Data | None, preprocess: str | Preprocess | None) -> Data | None:
    """The data, images among them to be prepared in this way ("imagenet", see onnxdecomp.data.preprocess).

    Raises:
        UsageError: There is no such preprocessing.
    """
    if preprocess is None:
        return data
    made = parse_preprocess(preprocess) if isinstance(preprocess, str) else preprocess
    return Prepared(data, made) if isinstance(data, str | Path) else data


def read_feeds(data: Data, inputs: Sequence[TensorSpec], *, samples: int | None = None) -> Feeds:
    """The feeds that `data` holds for a model with these inputs, the first `samples` of them.

    Names, shapes and types of all that is in files, and the numbers of the first feed, are checked now;
    the other numbers are when they are read.

    Raises:
        UsageError: Nothing is there, or it does not fit the inputs (name, rank, size, dtype, NaN). Iterating
            raises it too.
    """
    check_inputs(inputs)
    feeds = _read(data, inputs, samples)
    if not len(feeds):
        raise UsageError(f"the calibration set is empty: {feeds.source}")
    next(iter(feeds))
    return feeds


def iterate(data: Iterable[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
    """The feeds of an iterable or of a CalibrationDataReader."""
    read: Callable[[], Mapping[str, Array] | None] | None = getattr(data, "get_next", None)
    if read is None:
        yield from data
        return
    while feed := read():
        yield feed


def repeatable(data: Data, count: int) -> Data:
    """The data in a form that can be read several times: of what can be drawn only once, the first feeds."""
    if isinstance(data, str | Path | Prepared | Feeds | Mapping) or _is_sequence(data):
        return data
    return tuple(islice(iterate(data), count))


def describe(data: Data) -> str:
    """Where data come from, for people."""
    if isinstance(data, Feeds):
        return data.source
    return str(data) if isinstance(data, str | Path | Prepared) else "feeds of the caller"


def _read(data: Data, inputs: Sequence[TensorSpec], samples: int | None) -> Feeds:
    if isinstance(data, Prepared):
        return _named(data.where, inputs, samples, data.preprocess)
    if isinstance(data, str | Path):
        return _named(data, inputs, samples, None)
    if isinstance(data, Feeds):
        for feed in data.first(1):
            check_feed(feed, inputs, data.source)
        return data.first(samples)
    source = describe(data)
    if isinstance(data, Mapping):
        return from_arrays(data, inputs, source, samples=samples)
    if _is_sequence(data):
        part = Part(len(data), partial(_checked, data, inputs))
        return join([part], source, stackable=False, hold=0).first(samples)
    return _kept(Spool(islice(_checked(iterate(data), inputs), samples)), source)


def _named(
    where: str | Path, inputs: Sequence[TensorSpec], samples: int | None, preprocess: Preprocess | None
) -> Feeds:
    path = Path(where)
    if not path.exists() and is_callable_name(str(where)):
        return _from_callable(str(where), inputs, samples)
    return _from_path(path, inputs, samples, preprocess)


def _from_path(
    path: Path, inputs: Sequence[TensorSpec], samples: int | None, preprocess: Preprocess | None
) -> Feeds:
    if not path.exists():
        raise UsageError(f"there is no data at {path}")
    require_regular(path, "a file of data", UsageError)
    if path.is_file():
        if path.suffix.lower() in SUFFIXES:
            return image_feeds(path, [path], inputs, preprocess, samples=samples)
        return _from_npz([path], str(path), inputs, samples)
    if sets := data_sets(path):
        parts = first_parts((data_set_part(folder, inputs) for folder in sets), samples)
        return join(parts, str(path), stackable=False)
    if files := sorted(path.glob("*.npz"), key=natural):
        return _from_npz(files, str(path), inputs, samples)
    if images := image_files(path):
        return image_feeds(path, images, inputs, preprocess, samples=samples)
    raise UsageError(
        f"{path} has no .npz file, no image ({' '.join(SUFFIXES)}) and no test_data_set_*/input_*.pb or "
        "input_*.pb"
    )


def _from_npz(files: Sequence[Path], source: str, inputs: Sequence[TensorSpec], samples: int | None) -> Feeds:
    stackable = True

    def parts() -> Iterator[Part]:
        nonlocal stackable
        for file in files:
            part, single = npz_part(file, inputs)
            stackable = stackable and single
            yield part

    taken = first_parts(parts(), samples)
    return join(taken, source, stackable=stackable)


def _from_callable(text: str, inputs: Sequence[TensorSpec], samples: int | None) -> Feeds:
    """What the callable gives, drawn now, and kept: it may be drawn only once."""
    with called(text, inputs) as given:
        pair = isinstance(given, tuple) and len(given) == 2 and not isinstance(given[1], Mapping)
        found, labels = given if pair else (given, None)
        if isinstance(found, Feeds) and labels is None:
            return _read(found, inputs, samples)
        if isinstance(found, Mapping):
            arrays = found if labels is None else {**found, "labels": labels}
            return from_arrays(arrays, inputs, text, samples=samples)
        if isinstance(found, str | bytes) or not (hasattr(found, "get_next") or isinstance(found, Iterable)):
            raise UsageError(f"{text} gave a {type(found).__name__}; an iterable of feeds is wanted")
        drawn = _guard(iterate(found), text)
        spool = Spool(islice(_checked(drawn, inputs, text), samples))
    if labels is not None:
        labels = _labels_of_rows(np.asarray(labels), spool, text, exact=len(spool) != samples)
    return _kept(spool, text, labels)


def _kept(spool: Spool, source: str, labels: Array | None = None) -> Feeds:
    return Feeds(FeedSource([Part(len(spool), partial(iter, spool))], hold=0), source, labels)


def _checked(
    feeds: Iterable[Mapping[str, Array]], inputs: Sequence[TensorSpec], source: str = ""
) -> Iterator[Feed]:
    prefix = f"{source}, " if source else ""
    for k, feed in enumerate(feeds):
        yield check_feed(feed, inputs, f"{prefix}feed {k}")


def _guard(feeds: Iterator[Mapping[str, Array]], text: str) -> Iterator[Mapping[str, Array]]:
    while True:
        with guarded(text):
            feed = next(feeds, _END)
        if feed is _END:
            return
        yield feed


_END: Mapping[str, Array] = {}


def _labels_of_rows(labels: Array, feeds: Iterable[Feed], where: str, *, exact: bool) -> Array:
    """One label for each row of the feeds; there may be more where not all feeds were drawn."""
    count = sum(map(rows, feeds))
    if not labels.ndim or len(labels) < count or (exact and len(labels) != count):
        raise UsageError(f"{where}: {labels.shape} labels do not fit the {count} rows of the feeds")
    return labels[:count]


def _is_sequence(data: object) -> TypeGuard[Sequence[Mapping[str, Array]]]:
    return isinstance(data, Sequence) and not hasattr(data, "get_next")
