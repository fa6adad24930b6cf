"""Models of one node, run in ONNX Runtime and in torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import helper

from onnxdecomp.core.layer import Array
from onnxdecomp.runtime.session import open_session, run
from onnxdecomp.training.autograd.network import Network

IR_VERSION = {7: 3, 9: 4, 11: 6, 13: 7, 18: 8, 20: 9, 21: 10, 22: 10, 23: 11, 24: 11}


def model(
    op_type: str,
    inputs: Sequence[Array | None],
    *,
    opset: int = 18,
    domain: str = "",
    outputs: int = 1,
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node; None is an input that is left out."""
    names = ["" if array is None else f"x{index}" for index, array in enumerate(inputs)]
    node = helper.make_node(op_type, names, [f"y{i}" for i in range(outputs)], domain=domain, **attributes)
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, inputs, strict=True)
        if array is not None
    ]
    made = [onnx.ValueInfoProto(name=f"y{i}") for i in range(outputs)]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "one", given, made)
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION.get(opset, 8))


def check(
    op_type: str,
    inputs: Sequence[Array | None],
    *,
    opset: int = 18,
    domain: str = "",
    outputs: int = 1,
    tolerance: float = 1e-5,
    **attributes: Any,
) -> None:
    """torch gives what ONNX Runtime gives: values, shapes and types."""
    made = model(op_type, inputs, opset=opset, domain=domain, outputs=outputs, **attributes)
    feed = {f"x{index}": array for index, array in enumerate(inputs) if array is not None}
    expected = run(open_session(made.SerializeToString()), feed)
    with torch.no_grad():
        found = Network(ir.from_proto(made))(feed)
    for ours, theirs in zip(found.values(), expected, strict=True):
        assert tuple(ours.shape) == theirs.shape
        assert str(ours.dtype).removeprefix("torch.") == str(theirs.dtype)
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=tolerance, atol=tolerance)
