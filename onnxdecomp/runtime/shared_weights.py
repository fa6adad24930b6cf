"""Large constants shared with ONNX Runtime: a model that holds them would copy them thrice."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.layer import Array

_SHARED_BYTES = 1 << 16
"""Constants from this size on are shared."""


def share_weights(model: ir.Model) -> dict[str, Array]:
    """Take the large float32 constants out of the model; it then only says what they look like.

    Returns them by name, for `session.open_session(weights=…)`. Those that a caller may override stay.
    """
    weights = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.nbytes < _SHARED_BYTES:
            continue
        if value.is_graph_input():
            continue
        weights[name] = np.ascontiguousarray(tensor.numpy())
        shape = ir.Shape(weights[name].shape)
        value.const_value = ir.ExternalTensor(
            "shared", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name
        )
    return weights
