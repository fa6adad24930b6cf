"""Pins: what the original has chosen and drawn, given to every model that is compared with it.

A detector picks boxes by their scores, and a compressed one picks others: row by row their heads have nothing
to do with each other any more. With the original's choice both compute the same boxes, however many there
are. Random numbers that a model draws are pinned in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from onnxdecomp.calibration.activations import open_observer
from onnxdecomp.core.layer import Array
from onnxdecomp.data.comparable_outputs import CHOOSING, DRAWING
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.graph.traversal import node_graphs, upstream
from onnxdecomp.runtime.session import Feed

_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)

HELD = 128 << 20
"""Bytes of pinned values. Where they take more, nothing is pinned."""


def pinned(model: ir.Model) -> tuple[str, ...]:
    """The values of the main graph that say which rows there are, or that are drawn at random."""
    found = (
        value
        for node in model.graph
        if node.domain in ("", "ai.onnx")
        for value in _pins(node)
        if value.name and _computed(model.graph, value)
    )
    return tuple(dict.fromkeys(str(value.name) for value in found))


def _pins(node: ir.Node) -> Iterator[ir.Value]:
    """What a node says about which rows there are: integers that come of floating-point numbers."""
    match node.op_type:
        case "NonZero" | "NonMaxSuppression":
            yield node.outputs[0]
        case "Unique":
            yield from (out for out in node.outputs if out.dtype in _INTEGERS)
        case "Compress" if node.inputs[1] is not None:
            yield node.inputs[1]
        case "TopK":
            yield node.outputs[1]
            if len(node.inputs) > 1 and node.inputs[1] is not None:
                yield node.inputs[1]
        case "Cast":
            (made,) = node.outputs
            given = None if node.inputs[0] is None else node.inputs[0].dtype
            counts = given is not None and (given == ir.DataType.BOOL or given.is_floating_point())
            if counts and made.dtype in _INTEGERS:
                yield made
        case kind if kind in DRAWING:
            yield node.outputs[0]


def _computed(graph: ir.Graph, value: ir.Value) -> bool:
    """Whether a value is computed at all, and neither constant nor handed in."""
    node = value.producer()
    return node is not None and node.graph is graph and ir.convenience.get_const_tensor(value) is None


def chosen(model: ir.Model) -> dict[str, str]:
    """The outputs of a model that pinned values take part in, each with how models are compared there."""
    pins = set(pinned(model))
    found: dict[str, str] = {}
    for output in model.graph.outputs:
        before = upstream(model.graph, [output])
        kinds = {node.op_type for node in before if any(out.name in pins for out in node.outputs)}
        if kinds & DRAWING:
            found[str(output.name)] = "with the random numbers that the original drew"
        elif before and any(node.op_type in CHOOSING for node in before) and kinds:
            found[str(output.name)] = "on the rows that the original chose: they depend on the data"
    return found


def loose(value: ir.Value) -> bool:
    """Whether rows are chosen or numbers drawn before a value of the main graph where nothing is pinned."""
    node = value.producer()
    graph = None if node is None else node.graph
    if not isinstance(graph, ir.Graph):
        return False
    return any(_loose(node) for node in upstream(graph, [value]))


def _loose(node: ir.Node) -> bool:
    """In a subgraph, or in a Dropout that trains, whose draw is no value of its own."""
    if node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None:
        return True
    inside = (inner for _, graph in node_graphs(node) for inner in graph)
    return any(inner.op_type in DRAWING | CHOOSING or _loose(inner) for inner in inside)


def pins_of(
    model: ir.Model, feeds: Feeds, *, batch: int, provider: str = "cpu", threads: int = 0
) -> tuple[Feed, ...]:
    """The pinned values of a model for each batch of inputs; () where there are none, or too many.

    Raises:
        ModelError: ONNX Runtime fails on the model.
    """
    names = pinned(model)
    if not names:
        return ()
    observer = open_observer(model, names, provider=provider, threads=threads)
    held: list[Feed] = []
    size = 0
    for feed in feeds.batches(batch):
        held.append(dict(zip(observer.names, observer.run(feed), strict=True)))
        size += sum(array.nbytes for array in held[-1].values())
        if size > HELD:
            return ()
    return tuple(held)


def present(model: ir.Model, pins: Sequence[Feed]) -> list[Feed]:
    """The pins that a model has: quantization may have done away with some, or given them another type."""
    types = {str(out.name): out.dtype for node in model.graph for out in node.outputs}
    return [{name: array for name, array in one.items() if _fits(types.get(name, 0), array)} for one in pins]


def _fits(found: ir.DataType | int | None, array: Array) -> bool:
    return found is None or found == ir.DataType.from_numpy(array.dtype)
