"""Two layers that mix channels only, one right after the other, are one: their product.

Where nothing stands between a chain's last factor and the layer behind it, or the first factor of its chain,
one kernel does the work of two. It is done where that takes no more numbers, and so no more multiplications:
two factors around a narrow rank stay two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.layer import Array
from onnxdecomp.graph.attributes import attribute
from onnxdecomp.graph.constants import discard, initializer
from onnxdecomp.graph.traversal import unique_name, value_names

MERGED = "pkg.onnxdecomp.merged"
"""The key of a merged node's metadata: the node that is gone."""

_FLOATS = frozenset((ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE))


def mergeable(model: ir.Model, may: Callable[[ir.Node, ir.Node], bool] = lambda a, b: True) -> bool:
    """Whether there is anything to merge; as for `merge_pointwise`."""
    return any(_pair(node, may) is not None for node in model.graph)


@dataclass(frozen=True)
class Merged:
    """A pair that became one.

    Attributes:
        first: The node that is gone.
        weights, biases: Numbers that are stored no more; fewer biases than before, or as many.
    """

    first: ir.Node
    weights: int
    biases: int


def merge_pointwise(
    model: ir.Model, may: Callable[[ir.Node, ir.Node], bool] = lambda a, b: True
) -> tuple[Merged, ...]:
    """Merge what can be merged in the main graph; the pairs.

    Convolutions of one position, with any strides and groups, and products of an activation and a constant
    matrix. The first is gone, the second stays with its name and output. Computed in float64 and stored in
    the weight's own type. Weights that others read, that callers may override, or that are outputs stay.

    Args:
        model: Changed in place.
        may: Whether two nodes, the first and the one behind it, may be merged.
    """
    taken = value_names(model)
    done = []
    for second in list(model.graph):
        while (pair := _pair(second, may)) is not None:
            done.append(_merge(model.graph, *pair, taken))
    return tuple(done)


@dataclass(frozen=True, eq=False)
class _Mixing:
    """A node as a matrix over channels.

    Attributes:
        node: The node.
        weight: [groups, out, in], of each group.
        bias: [groups * out], or None.
        strides: By spatial axis; () for a product.
        ones: The kernel's shape.
    """

    node: ir.Node
    weight: Array
    bias: Array | None
    strides: tuple[int, ...] = ()
    ones: tuple[int, ...] = ()

    @property
    def groups(self) -> int:
        return int(self.weight.shape[0])


def _pair(second: ir.Node, may: Callable[[ir.Node, ir.Node], bool]) -> tuple[_Mixing, _Mixing, int] | None:
    """The node and the one before it, and the groups of both together, where they are better one."""
    between = second.inputs[0] if second.inputs else None
    first = None if between is None else between.producer()
    if between is None or first is None or first.graph is not second.graph or first.op_type != second.op_type:
        return None
    if between.is_graph_output() or len(list(between.uses())) != 1 or not may(first, second):
        return None
    one, two = _mixing(first), _mixing(second)
    if one is None or two is None or first.inputs[1].dtype != second.inputs[1].dtype:  # type: ignore[union-attr]
        return None
    groups = math.gcd(one.groups, two.groups)
    wide = one.weight.shape[2] * one.groups, two.weight.shape[1] * two.groups
    fewer = wide[0] * wide[1] // groups <= one.weight.size + two.weight.size  # then MACs are, too
    return (one, two, groups) if fewer else None


def _mixing(node: ir.Node) -> _Mixing | None:
    if node.domain not in ("", "ai.onnx") or any(a.is_ref() for a in node.attributes.values()):
        return None
    constants = [_constant(value) for value in node.inputs[1:]]
    if not constants or any(array is None for array in constants):
        return None
    weight, bias = constants[0], constants[1] if len(constants) > 1 else None
    assert weight is not None
    if node.op_type == "MatMul":
        return _Mixing(node, weight.T[None], None) if weight.ndim == 2 else None
    if node.op_type != "Conv" or math.prod(weight.shape[2:]) != 1 or weight.ndim < 3:
        return None
    padding = attribute(node, "auto_pad", "NOTSET")
    if any(attribute(node, "pads", ())) or padding not in ("NOTSET", "VALID"):  # a border has no bias
        return None
    groups, ones = int(attribute(node, "group", 1)), weight.shape[2:]
    strides = tuple(int(s) for s in attribute(node, "strides", (1,) * len(ones)))
    return _Mixing(node, weight.reshape(groups, -1, weight.shape[1]), bias, strides, ones)


def _constant(value: ir.Value | None) -> Array | None:
    """The numbers of an initializer that only this node reads."""
    if value is None or not value.is_initializer() or value.is_graph_input() or value.is_graph_output():
        return None
    tensor = value.const_value
    if tensor is None or tensor.dtype not in _FLOATS or len(list(value.uses())) != 1:
        return None
    return np.asarray(tensor.numpy())


def _merge(graph: ir.Graph, one: _Mixing, two: _Mixing, groups: int, taken: set[str]) -> Merged:
    """Put the product into the second node, and take the first one out."""
    first, second = one.node, two.node
    product = _blocks(two.weight, groups) @ _blocks(one.weight, groups)
    bias = two.bias
    if one.bias is not None:
        moved = (_blocks(two.weight, groups) @ one.bias.reshape(groups, -1, 1)).reshape(-1)
        bias = moved if bias is None else bias + moved
    dtype = first.inputs[1].const_value.dtype.numpy()  # type: ignore[union-attr]
    if two.ones:
        weight = product.reshape(-1, product.shape[2], *two.ones)
        strides = tuple(a * b for a, b in zip(one.strides, two.strides, strict=True))
        second.attributes["strides"] = ir.AttrInt64s("strides", strides)
        second.attributes["group"] = ir.AttrInt64("group", groups)
    else:
        weight = product[0].T

    def put(position: int, array: Array, was: ir.Value | None) -> None:
        name = unique_name(f"{'bias' if was is None else was.name}_merged", taken)
        tensor = ir.Tensor(np.ascontiguousarray(array.astype(dtype)), name=name)
        second.replace_input_with(position, initializer(graph, tensor, name))

    old = list(second.inputs)
    put(1, weight, old[1])
    if bias is not None:
        if len(old) < 3:
            second.resize_inputs(3)
        put(2, bias, second.inputs[2] or first.inputs[2])
    second.replace_input_with(0, first.inputs[0])
    second.metadata_props[MERGED] = first.name or ""
    for value in old:
        if value is not None:
            discard(value)
    stored = [0 if b is None else b.size for b in (one.bias, two.bias, bias)]
    return Merged(first, one.weight.size + two.weight.size - product.size, stored[0] + stored[1] - stored[2])


def _blocks(weight: Array, groups: int) -> Array:
    """[groups, out, in] of fewer groups: each a matrix of several blocks along its diagonal."""
    own, rows, columns = weight.shape
    each = own // groups
    wide = np.zeros((groups, each, rows, each, columns))
    for k in range(each):
        wide[:, k, :, k] = weight.reshape(groups, each, rows, columns)[:, k]
    return wide.reshape(groups, each * rows, each * columns)
