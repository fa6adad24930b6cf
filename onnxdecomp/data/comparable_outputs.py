"""Which outputs of two models can be compared with each other.

An output may be no tensor but a sequence or a map; it may differ between two runs of one and the same model,
where random numbers are drawn; and it may have as many rows as the data make it, which two models choose
differently. What this module lets through is a pair of arrays, and what it does not it names, with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from onnxdecomp.core.layer import Array, Dim
from onnxdecomp.data.mask import Mask
from onnxdecomp.runtime.metrics import Comparison

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

Pair: TypeAlias = tuple[str, Array, Array]
"""A tensor's name, for people, and its numbers in the original and in the new model."""

_STEADY = 1e-3
"""Relative L2 difference of two runs of one model up to which an output counts as the same."""

CHOOSING = frozenset(("NonZero", "NonMaxSuppression", "Unique", "Compress", "TopK"))
"""Operators whose result has as many rows as the data say, or rows of the data's choice."""

_COUNTING = CHOOSING | {"Range", "Loop", "If", "Scan", "StringSplit"}
"""Operators behind which the size of a tensor may depend on the data."""

DRAWING = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
)
"""Operators that draw random numbers."""


class UnlikeError(Exception):
    """Two values cannot be compared.

    Attributes:
        reason: What the new one is, a phrase that goes on from its name.
        what: "size" where they are of one kind, and the data may have made them unlike; "kind" where they are
            not; "unknown" where nothing is known of their kind.
    """

    def __init__(self, name: str, reason: str, what: Literal["size", "kind", "unknown"]) -> None:
        super().__init__(f"{name!r} {reason}")
        self.reason = reason
        self.what = what


def pairs(name: str, original: object, new: object) -> Iterator[Pair]:
    """The tensors of one output, one by one: those of a sequence by their place, of a map by its keys.

    A sequence of maps, as classifiers of scikit-learn give it, is one array with a row for each map. Optional
    values that are empty have no tensor.

    Args:
        name: The output's.
        original, new: What two runs gave for it, as ONNX Runtime has it in Python.

    Raises:
        UnlikeError: They are no counterparts, or their shapes differ.
    """
    if original is None and new is None:
        return
    if isinstance(original, np.ndarray) and isinstance(new, np.ndarray):
        if original.shape != new.shape:
            reason = f"has shape {new.shape} where the original has {original.shape}"
            raise UnlikeError(name, reason, "size" if original.ndim == new.ndim else "kind")
        yield name, original, new
    elif isinstance(original, dict) and isinstance(new, dict):
        yield from pairs(name, [original], [new])
    elif isinstance(original, list) and isinstance(new, list):
        if len(original) != len(new):
            reason = f"has {len(new)} elements where the original has {len(original)}"
            raise UnlikeError(name, reason, "size")
        if original and all(isinstance(element, dict) for element in (*original, *new)):
            yield name, *_table(name, original, new)
            return
        for index, (one, two) in enumerate(zip(original, new, strict=True)):
            yield from pairs(f"{name}[{index}]", one, two)
    elif np.isscalar(original) and np.isscalar(new):
        yield name, np.asarray(original), np.asarray(new)
    elif type(original) is type(new):
        raise UnlikeError(name, f"is a {type(original).__name__}", "unknown")
    else:
        raise UnlikeError(name, f"is {_kind(new)} where the original is {_kind(original)}", "size")


_Maps: TypeAlias = Sequence[Mapping[object, object]]


def _table(name: str, original: _Maps, new: _Maps) -> tuple[Array, Array]:
    """Maps as arrays [maps, keys], in the order of the original's keys."""
    keys = [list(one) for one in original]
    for own, other in zip(keys, new, strict=True):
        if set(own) != set(other) or len(own) != len(keys[0]):
            raise UnlikeError(name, "has other keys than the original's", "kind")
    one, two = (
        np.array([[held[key] for key in own] for own, held in zip(keys, maps, strict=True)])
        for maps in (original, new)
    )
    return one, two


def _kind(value: object) -> str:
    return "empty" if value is None else f"a {type(value).__name__}"


def unsteady(names: Sequence[str], first: Sequence[object], second: Sequence[object]) -> dict[str, str]:
    """The outputs that differ between two runs of the same model on the same input, with the reason."""
    found = {}
    for name, one, two in zip(names, first, second, strict=True):
        if not _steady(name, one, two):
            found[name] = "it differs between two runs of the original itself"
    return found


def _steady(name: str, one: object, two: object) -> bool:
    try:
        for leaf, a, b in pairs(name, one, two):
            comparison = Comparison(leaf)
            comparison.add(a, b)
            if comparison.rel_l2 > _STEADY or comparison.nonfinite:
                return False
    except UnlikeError as unlike:
        # What cannot be compared at all is named where models are compared.
        return unlike.what == "unknown"
    return True


def chosen_by_data(model: str | Path | bytes, name: str) -> bool:
    """Whether operators stand before an output of the file that make its size depend on the data."""
    import onnx

    if isinstance(model, bytes):
        proto = onnx.load_model_from_string(model)
    else:
        proto = onnx.load(model, load_external_data=False)
    functions = {(f.domain, f.name): f.node for f in proto.functions}
    made = {output: node for node in proto.graph.node for output in node.output}
    todo, seen = [name], set[str]()
    while todo:
        wanted = todo.pop()
        node = made.get(wanted)
        if node is None or wanted in seen:
            continue
        seen.update(node.output)
        inner = functions.get((node.domain, node.op_type), ())
        if node.op_type in _COUNTING or any(one.op_type in _COUNTING for one in inner):
            return True
        todo += _reads(node)
    return False


def _reads(node: NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        graphs: list[GraphProto] = [*attribute.graphs]
        if attribute.HasField("g"):
            graphs.append(attribute.g)
        for graph in graphs:
            for inner in graph.node:
                yield from _reads(inner)


class Compared:
    """The outputs of a model beside the original's, feed by feed: summed up, or left out for a reason."""

    def __init__(
        self,
        names: Sequence[str],
        *,
        declared: Mapping[str, Sequence[Dim] | None] | None = None,
        mask: Mask | None = None,
        left_out: Mapping[str, str] | None = None,
        by_data: Callable[[str], bool] = lambda name: True,
    ) -> None:
        """Of the outputs with these names.

        Args:
            names: Of the outputs, in the order in which `add` is given them.
            declared: The shapes that the model declares for them.
            mask: Which positions count.
            left_out: Outputs that are known to be incomparable, with the reason.
            by_data: Whether the number of rows of an output may depend on the data: then another number
                is a reason to leave it out, else an error.
        """
        self.left_out = dict(left_out or {})
        self._names, self._declared, self._mask, self._by_data = names, declared or {}, mask, by_data
        self._found: dict[str, dict[str, Comparison]] = {name: {} for name in names}

    def add(
        self, feed: Mapping[str, Array], originals: Sequence[object], news: Sequence[object]
    ) -> dict[str, tuple[Array, Array]]:
        """Count the outputs for one feed in; returns the tensors that have the same shape in both.

        Raises:
            ValueError: A shape differs, and not because of the data.
            UsageError: See onnxdecomp.data.mask.
        """
        both: dict[str, tuple[Array, Array]] = {}
        for name, original, new in zip(self._names, originals, news, strict=True):
            try:
                tensors = list(pairs(name, original, new))
            except UnlikeError as unlike:
                self._leave_out(name, unlike)
                continue
            both |= {leaf: (one, two) for leaf, one, two in tensors}
            if name in self.left_out:
                continue
            for leaf, one, two in tensors:
                real = None
                if self._mask is not None:
                    real = self._mask.values(feed, one.shape, self._declared.get(name))
                self._found[name].setdefault(leaf, Comparison(leaf)).add(one, two, real)
        return both

    def _leave_out(self, name: str, unlike: UnlikeError) -> None:
        if name in self.left_out:
            return
        if unlike.what == "unknown":
            self.left_out[name] = f"it {unlike.reason}"
        elif unlike.what == "size" and self._by_data(name):
            self.left_out[name] = f"it {unlike.reason}, for its size depends on the data"
        else:
            raise ValueError(f"the output {unlike}") from unlike

    @property
    def comparisons(self) -> list[Comparison]:
        """Of every tensor of every output that could be compared on all feeds."""
        left = (own for name, own in self._found.items() if name not in self.left_out)
        return [comparison for own in left for comparison in own.values()]

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not compared, and why, a sentence each."""
        return tuple(
            f"the output {name!r} was not compared: {reason}" for name, reason in self.left_out.items()
        )
