"""Sparse tensors made dense when a model is loaded, as ONNX Runtime does: what is not listed is 0."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from onnxdecomp.errors import ModelError

_MOST = 2 << 30
"""Bytes of a tensor from which on a file could not hold it."""


def densify(proto: onnx.ModelProto) -> None:
    """Put a dense tensor in the place of each sparse initializer and constant, in subgraphs, too.

    Raises:
        ModelError: Indices do not fit the shape, or the dense tensor would be larger than a file can be.
    """
    for graph in _graphs(proto):
        graph.initializer.extend(_dense(sparse, sparse.values.name) for sparse in graph.sparse_initializer)
        del graph.sparse_initializer[:]
    for node in _nodes(proto):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
                tensor = _dense(attribute.sparse_tensor, node.output[0] if node.output else "")
                attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    yield proto.graph
    for node in _nodes(proto):
        for attribute in node.attribute:
            yield from ([attribute.g] if attribute.HasField("g") else [])
            yield from attribute.graphs


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Those of all graphs and functions."""
    left = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    while left:
        node = left.pop()
        yield node
        for attribute in node.attribute:
            left += [*(attribute.g.node if attribute.HasField("g") else ())]
            left += [inner for graph in attribute.graphs for inner in graph.node]


def _dense(sparse: onnx.SparseTensorProto, name: str) -> onnx.TensorProto:
    """The tensor, by the name of the sparse one; its indices are positions in it, or coordinates."""
    shape = tuple(sparse.dims)
    if onnx.TensorProto.EXTERNAL in (sparse.values.data_location, sparse.indices.data_location):
        raise ModelError(f"the sparse tensor {name!r} cannot lie in another file")
    try:
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        if math.prod(shape) * max(values.itemsize, 1) > _MOST:
            raise ModelError(
                f"the sparse tensor {name!r} would be larger than the 2 GiB that an ONNX file can have"
            )
        if indices.ndim == 2:
            indices = np.ravel_multi_index(tuple(indices.T), shape)
        if values.shape != indices.shape or (indices < 0).any():
            raise ValueError("as many indices as values are wanted, of 0 and more")
        dense = np.full(math.prod(shape), "" if values.dtype == object else 0, values.dtype)
        dense[indices] = values
        return numpy_helper.from_array(dense.reshape(shape), name)
    except (ValueError, TypeError, IndexError) as error:
        raise ModelError(f"the sparse tensor {name!r} is damaged: {error}") from error
