"""What a layer with its chain's dense weight gives: the other side of the lowering check."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array
from onnxdecomp.layers.lowering_check.submodel import constant, run_one
from onnxdecomp.layers.replace import Rewritten


def reference(rewritten: Rewritten, feeds: dict[str, Array], opset: int, ir_version: int) -> Array:
    """What the chain's dense weight gives, with the factors rounded as they are stored."""
    match = rewritten.match
    chain = _rounded(rewritten.chain, match.layer.dtype)
    known = match.adapter.reference(match, chain, feeds, opset, ir_version)
    return _dense_operator(rewritten, chain, feeds, opset, ir_version) if known is None else known


def _dense_operator(
    rewritten: Rewritten, chain: Chain, feeds: dict[str, Array], opset: int, ir_version: int
) -> Array:
    """What the operator itself gives with the chain's dense weight and bias."""
    before, layer, adapter = rewritten.before, rewritten.match.layer, rewritten.match.adapter
    kind = np.float64 if layer.dtype == "float64" else np.float32
    given = {adapter.weight_at: ("dense weight", adapter.stored(chain.dense(), layer))}
    if adapter.bias_at is not None and chain.bias is not None:
        given[adapter.bias_at] = ("dense bias", chain.bias)
    operands: list[tuple[str, Array] | None] = []
    for position in range(max(len(before.inputs), *(at + 1 for at in given))):
        operand = before.inputs[position] if position < len(before.inputs) else None
        name = "" if operand is None else operand.name or ""
        if position in given:
            name, array = given[position]
        elif operand is None:
            operands.append(None)
            continue
        elif name in feeds:
            array = feeds[name]
        else:
            tensor = constant(operand)
            assert tensor is not None
            array = tensor.numpy()
        integers = array.dtype.kind in "iu"
        operands.append((name, array if integers else array.astype(kind)))
    return run_one(
        before.domain,
        before.op_type,
        adapter.attributes(layer, before),
        operands,
        feeds,
        tuple(f"out{k}" if name else "" for k, name in enumerate(before.outputs)),
        opset,
        ir_version,
    )


def _rounded(chain: Chain, dtype: str) -> Chain:
    """The chain with its factors as the model stores them."""
    if dtype in ("float32", "float64"):
        return chain
    half = np.dtype(ir.DataType.BFLOAT16.numpy() if dtype == "bfloat16" else dtype)
    return chain.with_weights(lambda step: step.weight.astype(half).astype(np.float32))
