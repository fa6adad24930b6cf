"""What ends the whole process inside ONNX Runtime, where nobody can catch it: told before it runs.

Found by running the operators of ONNX's own tests on tensors without numbers, and with attributes out of
range.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from onnxdecomp.core.layer import Array
from onnxdecomp.errors import UsageError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

_EMPTY = ("LSTM", "GRU", "ConvTranspose")
"""Operators that do not survive a first input without numbers."""


def fatal(model: ModelProto) -> str | None:
    """Why ONNX Runtime would not survive this model, as far as it can be told without running it."""
    graphs = list(_graphs(model.graph))
    for graph in graphs:
        for node in graph.node:
            low = [a.i for a in node.attribute if a.name == "batch_dims" and a.i < 0]
            if low and _is(node, "GatherND"):
                what = f"batch_dims of GatherND {node.name!r} is {low[0]}"
                return f"{what}, and ONNX Runtime ends the process then"
    risky = any(_is(node, *_EMPTY) for graph in graphs for node in graph.node)
    if risky and any(map(_is_empty, model.graph.input)):
        return _empty_input(model)
    return None


def refuse_fatal_feed(model: Path, feed: Mapping[str, Array]) -> None:
    """Refuse inputs without numbers where the model does not survive them.

    Raises:
        UsageError: It does not.
    """
    if all(array.size for array in feed.values()):
        return
    import onnx

    proto = onnx.load(model, load_external_data=False)
    for value in proto.graph.input:
        if value.name in feed:
            shape = feed[value.name].shape
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, shape))
    del proto.graph.value_info[:]
    if (reason := fatal(proto)) is not None:
        raise UsageError(f"{model} does not run on inputs without numbers: {reason}")


def _empty_input(model: ModelProto) -> str | None:
    """The first of these operators whose input is empty; None where ONNX's shape inference finds none."""
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:  # what it trips over is judged elsewhere
        return None
    empty: set[str] = set()
    for graph in _graphs(inferred.graph):
        empty |= {value.name for value in (*graph.input, *graph.value_info) if _is_empty(value)}
        for node in graph.node:
            if _is(node, *_EMPTY) and node.input and node.input[0] in empty:
                return (
                    f"the input {node.input[0]!r} of {node.op_type} {node.name!r} has a size of 0, and ONNX "
                    "Runtime ends the process then"
                )
    return None


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph, then those in its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)


def _is(node: NodeProto, *operators: str) -> bool:
    return node.op_type in operators and node.domain in ("", "ai.onnx")


def _is_empty(value: ValueInfoProto) -> bool:
    return any(dim.HasField("dim_value") and not dim.dim_value for dim in value.type.tensor_type.shape.dim)
