"""Small models for the tests of passes, and ONNX Runtime's answer to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    weights: Mapping[str, Array],
    *,
    opset: int = 17,
    ir_version: int = 8,
    listed: Sequence[str] = (),
    dtype: int = onnx.TensorProto.FLOAT,
    **more: Any,
) -> onnx.ModelProto:
    """A model; `listed` are the weights that are graph inputs, too."""
    given = [helper.make_tensor_value_info(name, dtype, list(shape)) for name, shape in inputs.items()]
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    given += [
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in stored
        if tensor.name in listed
    ]
    made = [helper.make_tensor_value_info(name, dtype, None) for name in outputs]
    graph = helper.make_graph(nodes, "test", given, made, stored)
    imports = more.pop("opset_imports", [helper.make_opsetid("", opset)])
    result = helper.make_model(graph, ir_version=ir_version, opset_imports=imports, **more)
    shaped = onnx.shape_inference.infer_shapes(result).graph.output
    for value, known in zip(result.graph.output, shaped, strict=True):
        value.CopyFrom(known)
    return result


def run(subject: onnx.ModelProto | ir.Model, feeds: Mapping[str, Array]) -> list[Array]:
    """The outputs in ONNX Runtime, on the graph as it is."""
    proto = ir.to_proto(subject) if isinstance(subject, ir.Model) else subject
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    return [np.asarray(out) for out in session.run(None, dict(feeds))]


def close(actual: Array, expected: Array, tolerance: float) -> bool:
    """Whether the largest difference is at most `tolerance` of the largest number."""
    scale = float(np.abs(expected).max(initial=1e-6))
    return actual.shape == expected.shape and bool(
        np.abs(actual - expected).max(initial=0) <= tolerance * scale
    )


def op_types(subject: ir.Model) -> Counter[str]:
    """How many nodes of each type the main graph has."""
    return Counter(node.op_type for node in subject.graph)
