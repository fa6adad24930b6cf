"""Shapes as inference tells them once the inputs' free sizes are bound: of graphs too long to be run for it.

ONNX Runtime takes time that grows with the square of the number of nodes to open a session, seconds from some
thousands on; inference takes a fraction of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxdecomp.data.random_inputs import bindings
from onnxdecomp.errors import OnnxDecompError
from onnxdecomp.graph.attributes import dims
from onnxdecomp.graph.traversal import places
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.runtime.session import TensorSpec

LONG = 1000
"""Nodes from which on a graph is long."""

_ROUNDS = 3
"""Sizes that are computed from values' shapes are numbers only after these are known."""


def is_long(model: ir.Model) -> bool:
    """Whether a model has so many nodes that it is not run for shapes alone."""
    return sum(1 for place in places(model) for _ in place.graph) > LONG


def bound_shapes(
    model: ir.Model,
    wanted: Mapping[ir.Node, int],
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> dict[ir.Node, tuple[int, ...]] | None:
    """The shape of one input of each node at the sizes that random inputs have; None if one is not told.

    Args:
        model: It stays as it is.
        wanted: Nodes, each with the place among the inputs that it has; all of the main graph.
        shapes: Of the model's inputs, by name.
    """
    if any(node.graph is not model.graph for node in wanted):
        return None
    copy = model.clone()
    counterparts = dict(zip(model.graph, copy.graph, strict=True))
    stored = copy.graph.initializers
    inputs = [value for value in copy.graph.inputs if value.name not in stored]
    if any(value.shape is None or value.dtype in (None, ir.DataType.STRING) for value in inputs):
        return None
    specs = [TensorSpec(str(v.name), dims(v) or (), v.dtype.numpy().name if v.dtype else "") for v in inputs]
    try:
        found = bindings(specs, lambda feed: None, count=1, shapes=shapes)
    except OnnxDecompError:  # judged elsewhere
        return None
    if isinstance(found, str):
        return None
    feed = found[0].feed(specs, (0,))
    for value in inputs:
        value.shape = ir.Shape(feed[str(value.name)].shape)
    for node in copy.graph:  # what is known of them is in terms of sizes that were free
        for out in node.outputs:
            out.shape = None
    for _ in range(_ROUNDS):
        _shapes_as_numbers(copy)
        infer_shapes(copy)
        told = {node: _sizes(counterparts[node], place) for node, place in wanted.items()}
        known = {node: sizes for node, sizes in told.items() if sizes is not None}
        if len(known) == len(told):
            return known
    return None


def _sizes(node: ir.Node, place: int) -> tuple[int, ...] | None:
    present = [value for value in node.inputs if value is not None]
    return _known(present[place]) if place < len(present) else None


def _known(value: ir.Value) -> tuple[int, ...] | None:
    """The shape of a value, if all of it is known."""
    shape = dims(value)
    sizes = tuple(dim for dim in shape or () if isinstance(dim, int))
    return sizes if shape is not None and len(sizes) == len(shape) else None


def _shapes_as_numbers(model: ir.Model) -> None:
    """Put the shapes of values that are known in the place of the nodes that read them off."""
    for node in tuple(model.graph):
        operand = node.inputs[0] if node.inputs else None
        if node.op_type != "Shape" or node.domain or node.attributes or operand is None:
            continue
        shape = _known(operand)
        if shape is None:
            continue
        constant = ir.node("Constant", [], attributes={"value": ir.tensor(np.array(shape, np.int64))})
        model.graph.insert_before(node, constant)
        node.outputs[0].replace_all_uses_with(constant.outputs[0], replace_graph_outputs=False)
