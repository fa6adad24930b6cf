"""What a layer with its chain's dense weight gives: the other side of the lowering check."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.chain import WEIGHTED, Chain
from onnxdecomp.core.layer import Array, ConvSpec, Layer
from onnxdecomp.layers.conv_layout import onnx_transposed
from onnxdecomp.layers.lower import MICROSOFT, activation
from onnxdecomp.layers.lowering_check.inputs import features_last
from onnxdecomp.layers.lowering_check.submodel import constant, run_one
from onnxdecomp.layers.replace import Rewritten
from onnxdecomp.layers.site import Site

_LARGEST_DENSE = 2**23
"""Elements from which a dense weight is not formed: it would take longer than all the rest of the check."""


def reference(rewritten: Rewritten, feeds: dict[str, Array], opset: int, ir_version: int) -> Array:
    """What the chain's dense weight gives, with the factors rounded as they are stored."""
    site, layer = rewritten.site, rewritten.site.layer
    chain = _rounded(rewritten.chain, layer.dtype)
    if site.form is not None:
        return _dense_operator(rewritten, chain, feeds, opset, ir_version)
    assert site.x.name is not None
    x = feeds[site.x.name]
    if layer.conv is not None:
        return _dense_conv(chain, site, layer.conv, feeds, opset, ir_version)
    assert site.linear is not None
    features = features_last(x, site).astype(np.float64)
    y: Any = _product(chain, layer, features)
    if chain.bias is not None:
        y = y + chain.bias
    if site.linear.left:
        y = np.swapaxes(y, -1, -2)
    if site.linear.addend is not None:
        assert site.linear.addend.name is not None
        y = y + site.linear.scale * feeds[site.linear.addend.name].astype(np.float64)
    if site.fused is not None:
        op_type, attributes = activation(site.fused)
        kind = np.float64 if layer.dtype == "float64" else np.float32
        x = np.asarray(y).astype(kind)
        return run_one("", op_type, attributes, [("x", x)], ("x",), ("y",), opset, ir_version)
    return np.asarray(y)


def _product(chain: Chain, layer: Layer, features: Array) -> Array:
    """The chain's weight applied to features [*lead, S]; of a very large one, step by step instead."""
    if layer.weight.size > _LARGEST_DENSE and not layer.is_stack:
        rows = chain.apply(features.reshape(-1, features.shape[-1]))
        return rows.reshape(*features.shape[:-1], -1)
    return features @ chain.dense().swapaxes(-1, -2).astype(np.float64)


def _dense_operator(
    rewritten: Rewritten, chain: Chain, feeds: dict[str, Array], opset: int, ir_version: int
) -> Array:
    """What the operator itself gives with the chain's dense weight."""
    site, before = rewritten.site, rewritten.before
    assert site.form is not None
    kind = np.float64 if site.layer.dtype == "float64" else np.float32
    operands: list[tuple[str, Array] | None] = []
    for position, operand in enumerate(before.inputs):
        if operand is None:
            operands.append(None)
            continue
        name = operand.name or ""
        if position == site.form.weight_at:
            name, array = "dense weight", site.form.stored(chain.dense())
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
        before.attributes,
        operands,
        feeds,
        tuple(f"out{k}" if name else "" for k, name in enumerate(before.outputs)),
        opset,
        ir_version,
    )


def _dense_conv(
    chain: Chain, site: Site, spec: ConvSpec, feeds: dict[str, Array], opset: int, ir_version: int
) -> Array:
    dense = chain.dense().astype(np.float32)
    weight = onnx_transposed(dense, spec.groups) if spec.transposed else dense
    given = {name: array.astype(np.float32) for name, array in feeds.items()}
    x, residual = site.x.name or "", site.fused.residual if site.fused is not None else None
    operands: list[tuple[str, Array] | None] = [(x, given[x]), ("dense weight", weight)]
    if chain.bias is not None:
        operands.append(("dense bias", chain.bias.astype(np.float32)))
    elif residual is not None:
        operands.append(None)
    if residual is not None:
        operands.append((residual.name or "", given[residual.name or ""]))
    attributes: dict[str, Any] = {
        "strides": list(spec.strides),
        "dilations": list(spec.dilations),
        "group": spec.groups,
    }
    attributes |= {"auto_pad": spec.pads} if isinstance(spec.pads, str) else {"pads": list(spec.pads)}
    if spec.output_padding:
        attributes["output_padding"] = list(spec.output_padding)
    if site.fused is not None:
        attributes |= site.fused.attributes
    op_type = "ConvTranspose" if spec.transposed else "Conv"
    domain, op_type = ("", op_type) if site.fused is None else (MICROSOFT, "FusedConv")
    return run_one(domain, op_type, attributes, operands, given, ("y",), opset, ir_version)


def _rounded(chain: Chain, dtype: str) -> Chain:
    """The chain with its factors as the model stores them."""
    if dtype in ("float32", "float64"):
        return chain
    half = np.dtype(ir.DataType.BFLOAT16.numpy() if dtype == "bfloat16" else dtype)
    steps = tuple(
        replace(s, weight=s.weight.astype(half).astype(np.float32)) if isinstance(s, WEIGHTED) else s
        for s in chain.steps
    )
    return replace(chain, steps=steps)
