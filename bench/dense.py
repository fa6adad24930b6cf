"""The dense weights that a written ONNX file stands for, read back from its nodes alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]


def weight_error(original: Path, new: Path, layers: Iterable[str]) -> float:
    """sqrt(sum |What - W|^2 / sum |W|^2) over the named Conv and Gemm nodes of the original.

    Args:
        original: The model with the dense layers.
        new: The model in which each is a chain from the same input to the same output value.
        layers: Names of nodes of the original.
    """
    before, after = _Graph(original), _Graph(new)
    lost = total = 0.0
    for name in layers:
        node = before.by_name[name]
        weight = before.matrix_or_kernel(node)
        chain = after.chain(node.output[0], node.input[0])
        product = after.matrix_or_kernel(chain[0])
        for step in chain[1:]:
            product = _compose(after.matrix_or_kernel(step), product)
        lost += float(np.sum(np.square(product.reshape(weight.shape) - weight, dtype=np.float64)))
        total += float(np.sum(np.square(weight, dtype=np.float64)))
    return math.sqrt(lost / total)


def _compose(later: Array, earlier: Array) -> Array:
    """The weight [T, S, *kernel] of a layer [R, S, *k1] followed by one [T, R, *k2], one of them 1x1."""
    t, r = later.shape[:2]
    s = earlier.shape[1]
    left, right = later.reshape(t, r, -1), earlier.reshape(r, s, -1)
    if left.shape[2] > 1 and right.shape[2] > 1:
        raise ValueError("two kernels above 1x1 in one chain")
    product: Array = np.einsum("trk,rsl->tskl", left, right, optimize=True)
    kernel = later.shape[2:] if left.shape[2] > 1 else earlier.shape[2:]
    return product.reshape(t, s, *kernel)


class _Graph:
    def __init__(self, path: Path) -> None:
        graph = onnx.load(path).graph
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._producer = {output: node for node in graph.node for output in node.output}
        self.by_name = {node.name: node for node in graph.node}

    def chain(self, output: str, start: str) -> list[onnx.NodeProto]:
        """The nodes from the value `start` to the value `output`, first to last."""
        nodes: list[onnx.NodeProto] = []
        while output != start:
            node = self._producer[output]
            if node.op_type != "Add" or node.input[1] not in self._weights:
                nodes.append(node)
            output = node.input[0]
        return nodes[::-1]

    def matrix_or_kernel(self, node: onnx.NodeProto) -> Array:
        """The node's weight as [T, S, *kernel]."""
        weight: Array = numpy_helper.to_array(self._weights[node.input[1]])
        if node.op_type == "Conv":
            return weight
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Gemm" and attributes.get("transB"):
            return weight
        if node.op_type in ("Gemm", "MatMul"):
            return weight.T
        raise ValueError(f"{node.name} is a {node.op_type}")
