"""Layers without numbers, and small models, for the tests of this folder."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from onnxdecomp.core.layer import Array, ConvSpec, Layer
from onnxdecomp.layers.shapes import infer_shapes


def zeros(*shape: int) -> Array:
    """Zeros without memory."""
    return np.broadcast_to(np.zeros((), np.float32), shape)


def conv(outputs: int, inputs: int, kernel: int = 3, **spec: Any) -> Layer:
    """A 2-D convolution."""
    known: dict[str, Any] = {"strides": (1, 1), "dilations": (1, 1), "pads": (kernel // 2,) * 4} | spec
    groups = known.get("groups", 1)
    op_type = "ConvTranspose" if known.get("transposed") else "Conv"
    weight = zeros(outputs, inputs // groups, kernel, kernel)
    return Layer("conv", op_type, weight, zeros(outputs), ConvSpec(**known))


def linear(outputs: int, inputs: int, op_type: str = "Gemm") -> Layer:
    """A fully connected layer."""
    return Layer("fc", op_type, zeros(outputs, inputs), zeros(outputs))


def model(nodes: list[Any], weights: dict[str, Array], shape: tuple[int | str, ...], output: str) -> ir.Model:
    """A model of float32 nodes from the input "x", its shapes inferred."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made = ir.from_proto(proto)
    infer_shapes(made)
    return made


def weight(*shape: int) -> Array:
    """Seeded numbers for an initializer."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)
