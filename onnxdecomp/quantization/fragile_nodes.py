"""Nodes that fewer bits are likely to harm: by the numbers that they read and make."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibration.activations import open_observer
from onnxdecomp.core.layer import Array
from onnxdecomp.errors import ModelError
from onnxdecomp.graph.traversal import places
from onnxdecomp.quantization.half import LARGEST, halved

if TYPE_CHECKING:
    from onnxdecomp.data.feeds import Feeds

_OBSERVED = 4
"""Inputs on which the numbers inside the model are looked at."""

_ABSOLUTE = 1e30
"""Numbers beyond it stand for infinity, as in masks, and may as well be the largest there is."""

_NORMAL = float(np.finfo(np.float16).smallest_normal)

_DIVIDING = {"Div": 1, "Log": 0, "Pow": 0, "Reciprocal": 0, "Sqrt": 0}
"""Operators for which a small operand, at this position, must be exact."""

_HEADROOM = 2.0
"""Other inputs may make larger numbers than those that were seen."""

_FAINT = 0.01
"""Relative L2 error of rounding to float16 from which on numbers are too small for it; else it is 0.0003."""

_CRUSHED = 0.5
"""The share of a tensor's numbers that 8 bits round to 0 from which on its range is too uneven."""


@dataclass(frozen=True)
class Numbers:
    """What was seen of a tensor's numbers.

    Attributes:
        overflow: Some are beyond float16, or near it.
        faint: Most of their energy is lost in float16.
        small: Some have fewer digits than others in float16, or vanish.
        crushed: 8 bits round most of them to 0.
    """

    overflow: bool = False
    faint: bool = False
    small: bool = False
    crushed: bool = False

    def __or__(self, other: Numbers) -> Numbers:
        return Numbers(
            self.overflow or other.overflow,
            self.faint or other.faint,
            self.small or other.small,
            self.crushed or other.crushed,
        )


def numbers(array: Array) -> Numbers:
    """Look at floating-point numbers; those that stand for infinity are left out."""
    x = np.asarray(array, np.float32).ravel()
    x = x[np.isfinite(x) & (x != 0) & (np.abs(x) < _ABSOLUTE)]
    if not x.size:
        return Numbers()
    size = np.abs(x)
    error = np.linalg.norm(halved(x).astype(np.float64) - x)
    step = (max(0.0, float(x.max())) - min(0.0, float(x.min()))) / 255
    return Numbers(
        overflow=bool(size.max() * _HEADROOM > LARGEST),
        faint=bool(error > _FAINT * np.linalg.norm(x.astype(np.float64))),
        small=bool(size.min() < _NORMAL),
        crushed=bool(np.mean(size < step / 2) > _CRUSHED),
    )


def seen(model: ir.Model, feeds: Feeds | None) -> dict[str, Numbers]:
    """What the values of the main graph are on some inputs; nothing of a model that does not run so."""
    found: dict[str, Numbers] = {}
    if feeds is None:
        return found
    names = [str(v.name) for node in model.graph for v in node.outputs if v.name]
    names += [str(v.name) for v in model.graph.inputs]
    try:
        observer = open_observer(model, names)
        for feed in feeds.first(_OBSERVED):
            for name, array in zip(observer.names, observer.run(feed), strict=True):
                if isinstance(array, np.ndarray) and array.dtype == np.float32:
                    found[name] = found.get(name, Numbers()) | numbers(array)
    except ModelError:
        return {}
    return found


def overflowing(model: ir.Model, activations: Mapping[str, Numbers]) -> dict[str, str]:
    """Nodes that read or make numbers beyond float16: their names for people, by an output's name."""
    return dict(_suspects(_with_constants(model, activations), lambda n: n.overflow))


def faint(model: ir.Model, activations: Mapping[str, Numbers]) -> dict[str, str]:
    """Nodes that read or make numbers too large or too small for float16, as `overflowing`.

    Behind a constant that is too small (the epsilon of a normalisation) are those that take its root or
    divide by it.
    """
    known = _with_constants(model, activations)
    found = dict(_suspects(known, lambda n: n.overflow or n.faint))
    added = {node for node, operands in known if any(v is None and n.faint for v, n in operands)}
    for node, operands in known:
        position = _DIVIDING.get(node.op_type)
        if position is None or position >= len(node.inputs):
            continue
        divisor = node.inputs[position]
        serialized = any(value is divisor and n.small for value, n in operands)
        if divisor is not None and (serialized or divisor.producer() in added):
            added.add(node)
            found.update(_named(node))
    return found


def crushed(model: ir.Model, activations: Mapping[str, Numbers]) -> dict[str, str]:
    """Nodes that read or make activations of too uneven a range for 8 bits, as `overflowing`."""
    return dict(_suspects(_known(model, activations), lambda n: n.crushed))


def of_types(model: ir.Model, op_types: Collection[str]) -> dict[str, str]:
    """Nodes of these operators, as `overflowing`."""
    return _all(model, lambda op_type: op_type in op_types)


def of_other_types(model: ir.Model, op_types: Collection[str]) -> dict[str, str]:
    """Nodes of all operators but these, as `overflowing`."""
    return _all(model, lambda op_type: op_type not in op_types)


def _all(model: ir.Model, test: Callable[[str], bool]) -> dict[str, str]:
    nodes = (node for node, _ in _known(model, {}) if test(node.op_type))
    return {name: title for node in nodes for name, title in _named(node).items()}


_Known = list[tuple[ir.Node, list[tuple[ir.Value | None, Numbers]]]]


def _known(model: ir.Model, activations: Mapping[str, Numbers]) -> _Known:
    """All nodes outside functions, each with what is known of its operands."""
    return [
        (node, [(v, activations[str(v.name)]) for v in _operands(node) if v.name in activations])
        for place in places(model)
        if place.function is None
        for node in place.graph
    ]


def _with_constants(model: ir.Model, activations: Mapping[str, Numbers]) -> _Known:
    """The same with constants, which have None for their value."""
    looked: dict[ir.Value, Numbers] = {}
    known = _known(model, activations)
    for node, operands in known:
        for value in node.inputs:
            tensor = None if value is None else ir.convenience.get_const_tensor(value)
            if value is None or tensor is None or tensor.dtype != ir.DataType.FLOAT:
                continue
            if value not in looked:
                looked[value] = numbers(tensor.numpy())
            operands.append((None, looked[value]))
    return known


def _suspects(known: _Known, test: Callable[[Numbers], bool]) -> Iterator[tuple[str, str]]:
    for node, operands in known:
        if node.op_type != "Constant" and any(test(n) for _, n in operands):
            yield from _named(node).items()


def _operands(node: ir.Node) -> Iterator[ir.Value]:
    yield from (v for v in (*node.inputs, *node.outputs) if v is not None and v.name)


def _named(node: ir.Node) -> dict[str, str]:
    output = next((str(v.name) for v in node.outputs if v.name), "")
    return {output: node.name or f"{node.op_type} of {output!r}"} if output else {}
