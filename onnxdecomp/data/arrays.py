"""How whole arrays are cut into feeds: their ranks decide.

One more axis than the model's input, and array[k] is a whole feed; the same rank, and array[k] lacks the
batch axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.data.check import check_dtype, check_feed, check_shape
from onnxdecomp.data.feeds import Feeds, Part, first_parts, join, labels_per_feed
from onnxdecomp.data.names import names
from onnxdecomp.errors import UsageError
from onnxdecomp.runtime.session import Feed, TensorSpec

LABELS = "labels"


@dataclass(frozen=True)
class Layout:
    """How arrays by input name make feeds.

    Attributes:
        count: Feeds.
        rows: Per input, the rows of the array that a feed takes; 0: array[k] is the feed, None: the whole
            array belongs to each feed.
        stackable: Whether feeds may be stacked along their first axis.
    """

    count: int
    rows: Mapping[str, int | None]
    stackable: bool


@dataclass(frozen=True)
class Header:
    """What is known of an array before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


def layout_of(headers: Mapping[str, Header], inputs: Sequence[TensorSpec], where: str) -> Layout:
    """The layout of arrays, checked against the inputs as far as that goes without the numbers.

    Raises:
        UsageError: An input has no array, or one of a shape or type that does not fit.
    """
    wanted = [spec.name for spec in inputs]
    missing = [name for name in wanted if name not in headers]
    if missing:
        raise UsageError(
            f"{where} has no array for the input {missing[0]!r}: it holds {names(headers)}, "
            f"the model's inputs are {names(wanted)}"
        )
    counts: dict[str, int] = {}
    rows: dict[str, int | None] = {}
    for spec in inputs:
        shape = headers[spec.name].shape
        extra = len(shape) - len(spec.shape)
        if extra not in (0, 1):
            raise UsageError(
                f"{where}: {spec.name!r} has shape {shape}; the model wants {spec} "
                "and, if there are many, samples on the first axis"
            )
        if not shape:
            rows[spec.name] = None
            continue
        first = spec.shape[0] if spec.shape else None
        step = first if isinstance(first, int) and first > 1 else 1
        if extra == 0 and shape[0] % step:
            raise UsageError(f"{where}: {spec.name!r} has {shape[0]} rows, the model takes {step} at a time")
        rows[spec.name] = step if extra == 0 else 0
        counts[spec.name] = shape[0] // step if extra == 0 else shape[0]
    whole = not counts
    if len(set(counts.values())) > 1:
        # Where every array has the model's rank they are one feed together, unless the model itself says that
        # their first axes are one and the same.
        whole = all(rows[name] for name in counts) and not _same_axis(inputs, counts)
        if not whole:
            each = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise UsageError(f"{where}: the inputs differ in their number of samples: {each}")
    stackable = not whole and all(
        rows[spec.name] == 1 and not isinstance(spec.shape[0], int) for spec in inputs
    )
    layout = (
        Layout(1, dict.fromkeys(rows), False)
        if whole
        else Layout(next(iter(counts.values())), rows, stackable)
    )
    for spec in inputs:
        header, step_or_none = headers[spec.name], layout.rows[spec.name]
        check_shape(feed_shape(header.shape, step_or_none), spec, f"{where}, sample 0")
        check_dtype(header.dtype, spec, where)
    return layout


def _same_axis(inputs: Sequence[TensorSpec], counts: Mapping[str, int]) -> bool:
    """Whether inputs of unequal counts have a first axis of the same name (not "?" or the like)."""
    axes: dict[str, set[int]] = {}
    for spec in inputs:
        first = spec.shape[0] if spec.shape else None
        if spec.name in counts and isinstance(first, str) and first.isidentifier():
            axes.setdefault(first, set()).add(counts[spec.name])
    return any(len(found) > 1 for found in axes.values())


def feed_shape(shape: tuple[int, ...], rows: int | None) -> tuple[int, ...]:
    """The shape of what one feed takes of an array."""
    if rows is None:
        return shape
    return (rows, *shape[1:]) if rows else shape[1:]


def from_arrays(
    arrays: Mapping[str, Array], inputs: Sequence[TensorSpec], source: str, *, samples: int | None = None
) -> Feeds:
    """The feeds of arrays by input name in memory, and of "labels"; they are not copied.

    Raises:
        UsageError: They do not fit the inputs.
    """
    held = {name: np.asarray(array) for name, array in arrays.items()}
    layout = layout_of({k: Header(a.shape, a.dtype) for k, a in held.items()}, inputs, source)
    labels = labels_of(held, inputs, layout.count, source)
    cut = partial(_cut, held, layout, inputs, source)
    part = Part(layout.count, cut, labels, unused=unused_of(held, inputs))
    return join(first_parts([part], samples), source, stackable=layout.stackable, hold=0)


def labels_of(
    arrays: Mapping[str, Array], inputs: Sequence[TensorSpec], count: int, where: str
) -> Array | None:
    """The array "labels", unless that is the name of an input."""
    if LABELS not in arrays or any(spec.name == LABELS for spec in inputs):
        return None
    return labels_per_feed(arrays[LABELS], count, where)


def unused_of(arrays: Iterable[str], inputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """The names of arrays that are no inputs, nor the labels."""
    known = {LABELS, *(spec.name for spec in inputs)}
    return tuple(name for name in arrays if name not in known)


def _cut(
    arrays: Mapping[str, Array], layout: Layout, inputs: Sequence[TensorSpec], where: str
) -> Iterator[Feed]:
    for k in range(layout.count):
        feed = {name: _piece(arrays[name], rows, k) for name, rows in layout.rows.items()}
        yield check_feed(feed, inputs, f"{where}, sample {k}")


def _piece(array: Array, rows: int | None, k: int) -> Array:
    if rows is None:
        return array
    return np.asarray(array[k * rows : (k + 1) * rows] if rows else array[k])
