"""The straightforward way to compress a network: onnx.helper and TensorLy's own functions.

Every Conv with a kernel above 1x1 becomes three by `partial_tucker` (HOOI from an SVD, TensorLy's
default number of iterations and tolerance); every 1x1 Conv, Gemm and MatMul becomes two by its truncated
SVD. What `layers` leaves out stays: groups, shared weights, weights that are no initializers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array: TypeAlias = NDArray[Any]
Ranks: TypeAlias = dict[str, tuple[int, ...]]
"""Per node: (out, in) of a Tucker decomposition, (rank,) of an SVD. A node that is not there stays."""


def layers(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, Array]]:
    """The nodes that `compress` can decompose, with their weights."""
    uses = Counter(name for node in model.graph.node for name in node.input)
    weights = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if uses[tensor.name] == 1
    }
    axes = {"Conv": 4, "Gemm": 2, "MatMul": 2}
    found = []
    for node in model.graph.node:
        weight = weights.get(node.input[1]) if node.op_type in axes else None
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        special = {"group": 1, "transA": 0, "alpha": 1.0}
        plain = all(attributes.get(name, usual) == usual for name, usual in special.items())
        if weight is not None and weight.ndim == axes[node.op_type] and plain:
            found.append((node, weight))
    return found


def compress(source: Path, target: Path, ranks: Ranks) -> None:
    """Write the model with the nodes of `ranks` decomposed."""
    model = onnx.load(source)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.name not in ranks:
            nodes.append(node)
            continue
        stored = weights.pop(node.input[1])
        chain = {"Conv": _conv, "Gemm": _gemm, "MatMul": _matmul}[node.op_type]
        made, factors = chain(node, numpy_helper.to_array(stored), ranks[node.name])
        nodes += made
        for name, factor in factors.items():
            weights[name] = numpy_helper.from_array(np.ascontiguousarray(factor), name)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.initializer[:]
    model.graph.initializer.extend(weights.values())
    onnx.save(model, target)


def _conv(
    node: onnx.NodeProto, weight: Array, ranks: tuple[int, ...]
) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """1x1, core, 1x1; or 1x1 with the stride and 1x1."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if len(ranks) == 1:
        left, right = _svd(weight[:, :, 0, 0], ranks[0])
        factors = [right[:, :, None, None], left[:, :, None, None]]
        settings: list[dict[str, Any]] = [attributes, {}]
    else:
        from tensorly.decomposition import partial_tucker

        (core, (last, first)), _ = partial_tucker(
            weight, rank=list(ranks), modes=[0, 1], init="svd", svd="truncated_svd"
        )
        factors = [first.T[:, :, None, None], core, last[:, :, None, None]]
        settings = [{}, attributes, {}]
    make: Callable[..., onnx.NodeProto] = helper.make_node
    nodes, named, value = [], {}, node.input[0]
    for i, (factor, setting) in enumerate(zip(factors, settings, strict=True)):
        final = i == len(factors) - 1
        name = f"{node.name}.{i}"
        named[f"{name}.weight"] = factor
        output = node.output[0] if final else f"{name}.out"
        bias = list(node.input[2:]) if final else []
        nodes.append(make("Conv", [value, f"{name}.weight", *bias], [output], name=name, **setting))
        value = output
    return nodes, named


def _gemm(
    node: onnx.NodeProto, weight: Array, ranks: tuple[int, ...]
) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """Two Gemm with transB=1."""
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    left, right = _svd(weight if transposed else weight.T, ranks[0])
    first, last, middle = f"{node.name}.0.weight", f"{node.name}.1.weight", f"{node.name}.0.out"
    nodes = [
        helper.make_node("Gemm", [node.input[0], first], [middle], name=f"{node.name}.0", transB=1),
        helper.make_node(
            "Gemm", [middle, last, *node.input[2:]], node.output, name=f"{node.name}.1", transB=1
        ),
    ]
    return nodes, {first: right, last: left}


def _matmul(
    node: onnx.NodeProto, weight: Array, ranks: tuple[int, ...]
) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """Two MatMul."""
    left, right = _svd(weight, ranks[0])
    first, last, middle = f"{node.name}.0.weight", f"{node.name}.1.weight", f"{node.name}.0.out"
    nodes = [
        helper.make_node("MatMul", [node.input[0], first], [middle], name=f"{node.name}.0"),
        helper.make_node("MatMul", [middle, last], node.output, name=f"{node.name}.1"),
    ]
    return nodes, {first: left, last: right}


def _svd(matrix: Array, rank: int) -> tuple[Array, Array]:
    """Left [T, rank] and right [rank, S] whose product is the best of that rank."""
    from tensorly.tenalg import svd_interface

    u, values, v = svd_interface(matrix, method="truncated_svd", n_eigenvecs=rank)
    return u * values, v
