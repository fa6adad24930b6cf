"""Reshapes that keep the first axis, and say so: 0 in place of a computed -1.

Both give the same shape. Behind -1 ONNX Runtime's inference does not know that the batch is the one that came
in, and its optimizer then fuses no Add of a residual with the LayerNormalization behind it
(onnxruntime/core/optimizer/skip_layer_norm_fusion.cc compares the sizes of both operands).
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.layer import Array
from onnxdecomp.graph.attributes import attribute, dims
from onnxdecomp.graph.constants import Memo, discard, initializer, resolve
from onnxdecomp.graph.traversal import unique_name, value_names


def keep_first_axes(model: ir.Model) -> int:
    """Put 0 for -1 where it is the first axis as it comes, in the main graph, in place; the nodes changed.

    Args:
        model: With shapes, see graph.shape_inference.
    """
    memo: Memo = {}
    taken = value_names(model)
    made: dict[tuple[int, ...], ir.Value] = {}
    changed = 0
    for node in tuple(model.graph):
        if node.domain not in ("", "ai.onnx") or node.op_type != "Reshape" or attribute(node, "allowzero", 0):
            continue
        old = node.inputs[1]
        assert old is not None
        found = resolve(old, ir_version=model.ir_version, memo=memo)
        if isinstance(found, str) or not _keeps(node, found.array):
            continue
        target = (0, *(int(size) for size in found.array[1:]))
        if target not in made:
            name = unique_name("shape", taken)
            made[target] = initializer(model.graph, ir.tensor(np.array(target, np.int64)), name)
        node.replace_input_with(1, made[target])
        discard(old)
        changed += 1
    return changed


def _keeps(node: ir.Node, target: Array) -> bool:
    """Whether the -1 of a target stands for the first axis of what is reshaped."""
    x = node.inputs[0]
    shape = None if x is None else dims(x)
    if target.ndim != 1 or target.size < 1 or target[0] != -1 or (target[1:] < 1).any() or not shape:
        return False
    rest = [size for size in shape[1:] if isinstance(size, int)]
    return len(rest) == len(shape) - 1 and math.prod(rest) == math.prod(target[1:].tolist())
