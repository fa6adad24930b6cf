"""The one place where the steps of a chain become ONNX nodes: one function for each kind of step."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import onnx_ir as ir

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Layer
from onnxdecomp.core.steps import (
    BlockMatMul,
    Convolve,
    LeftMatMul,
    Lookup,
    MatMul,
    Pad,
    PermuteChannels,
    RegroupBatch,
    RegroupSpatial,
    Reshape,
    Slice,
    Step,
    Transpose,
)
from onnxdecomp.errors import ModelError
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.conv_layout import onnx_transposed
from onnxdecomp.layers.emitter import Emitter
from onnxdecomp.layers.lower_quantized import looked_up, product


def lower_conv(chain: Chain, match: LayerMatch, emit: Emitter) -> None:
    """The nodes of a chain on [N, C, *spatial]; a convolution that comes last takes the bias."""
    x, d = match.x, len(match.layer.kernel)
    *before, (last, name) = zip(chain.steps, labels(chain), strict=True)
    for step, label in before:
        x = lower(step, x, 2 + d, label, emit)
    if isinstance(last, Convolve):
        convolve(last, x, name, emit, emit.bias(chain, own_bias(match, chain)))
        return
    x = lower(last, x, 2 + d, name, emit)
    bias = emit.bias(chain, own_bias(match, chain), (-1,) + (1,) * d)
    if bias is not None:
        emit.add("Add", [x, bias], "bias")


def lower_linear(chain: Chain, layer: Layer, x: ir.Value, emit: Emitter) -> ir.Value:
    """Emit a chain on `x`, its features on the last axis, without the bias; what the last node gives."""
    rank = None if layer.input_shape is None else len(layer.input_shape)
    for step, label in zip(chain.steps, labels(chain), strict=True):
        x = lower(step, x, rank, label, emit)
    return x


@singledispatch
def lower(step: Step, x: ir.Value, rank: int | None, label: str, emit: Emitter) -> ir.Value:
    """Emit the nodes of one step.

    Args:
        step: The step.
        x: The activation that it is applied to.
        rank: The axes of [N, C, *spatial], or of an activation with one axis of features; None: not known.
        label: What its nodes and its factor are called after the layer.
        emit: What takes the nodes.

    Returns:
        The last node's output.

    Raises:
        ModelError: The step needs the rank, which is not known.
    """
    raise NotImplementedError(f"no nodes for {type(step).__name__}")


@lower.register
def _(step: Convolve, x: ir.Value, rank: int | None, label: str, emit: Emitter) -> ir.Value:
    return convolve(step, x, label, emit)


def convolve(
    step: Convolve, x: ir.Value, label: str, emit: Emitter, bias: ir.Value | None = None
) -> ir.Value:
    """Emit a convolution with its bias."""
    spec = step.spec
    array = onnx_transposed(step.weight, spec.groups) if spec.transposed else step.weight
    weight = emit.weight(array, label, axis=1 if spec.transposed else 0)
    attributes: dict[str, Any] = {
        "kernel_shape": tuple(int(k) for k in step.weight.shape[2:]),
        "strides": spec.strides,
        "dilations": spec.dilations,
        "group": spec.groups,
    }
    if isinstance(spec.pads, str):
        attributes["auto_pad"] = spec.pads
    else:
        attributes["pads"] = spec.pads
    if spec.transposed and spec.output_padding:
        attributes["output_padding"] = spec.output_padding
    inputs = [x, weight] if bias is None else [x, weight, bias]
    return emit.add("ConvTranspose" if spec.transposed else "Conv", inputs, label, **attributes)


@lower.register
def _(step: RegroupBatch, x: ir.Value, rank: int | None, label: str, emit: Emitter) -> ir.Value:
    shape = [-1, step.channels] + [0] * (_known(rank, emit) - 2)
    return emit.add("Reshape", [x, emit.integers(shape, f"{label}.shape")], label)


@lower.register
def _(step: RegroupSpatial, x: ir.Value, rank: int | None, label: str, emit: Emitter) -> ir.Value:
    shape = [0, step.channels, -1] + [0] * (_known(rank, emit) - 3)
    return emit.add("Reshape", [x, emit.integers(shape, f"{label}.shape")], label)


@lower.register
def _(step: PermuteChannels, x: ir.Value, rank: int | None, label: str, emit: Emitter) -> ir.Value:
    return emit.add("Gather", [x, emit.integers(list(step.order), f"{label}.order")], label, axis=1)


@lower.register
def _(step: MatMul, x: ir.Value, rank: int | None, label: str, emit: Emitter) -> ir.Value:
    if emit.multiplies is not None and not step.is_stack:
        return product(emit.multiplies, step, x, label, emit)
    return emit.add("MatMul", [x, emit.weight(step.weight, label, axis=step.weight.ndim - 1)], label)


@lower.register
def _(step: LeftMatMul, x: ir.Value, rank: int | None, label: str, emit: Emitter) -> ir.Value:
    return emit.add("MatMul", [emit.weight(step.weight, label, axis=step.weight.ndim - 2), x], label)


@lower.register
def _(step: BlockMatMul, x: ir.Value, rank: int | None, label: str, emit: Emitter) -> ir.Value:
    # One row at a time against each block would be slow: the blocks go before the last leading axis.
    lead = _known(rank, emit) - 1
    perm = (*range(lead - 1), lead, lead - 1, lead + 1)
    weight = emit.weight(step.weight, label, axis=2)
    x = _transpose(x, perm, f"{label}_blocks", emit)
    x = emit.add("MatMul", [x, weight], label)
    return _transpose(x, perm, f"{label}_rows", emit)


@lower.register
def _(step: Lookup, x: ir.Value, rank: int | None, label: str, emit: Emitter) -> ir.Value:
    if emit.multiplies is not None:
        return looked_up(emit.multiplies, step, x, label, emit)
    if not emit.quantize:
        return emit.add("Gather", [emit.weight(step.weight, label, axis=1), x], label, axis=0)
    # The rows that are read are dequantized, not the table.
    table, scales = emit.quantized(step.weight, label, axis=1)
    rows = emit.add("Gather", [table, x], label, axis=0)
    rows.dtype = ir.DataType.INT8
    return emit.dequantized(rows, scales, label, axis=-1)


@lower.register
def _(step: Reshape, x: ir.Value, rank: int | None, label: str, emit: Emitter) -> ir.Value:
    shape = [0] * (_known(rank, emit) - 1) + list(step.target)
    return emit.add("Reshape", [x, emit.integers(shape, f"{label}.shape")], label)


@lower.register
def _(step: Transpose, x: ir.Value, rank: int | None, label: str, emit: Emitter) -> ir.Value:
    return _transpose(x, step.axes(_known(rank, emit) - 1 + len(step.perm)), label, emit)


@lower.register
def _(step: Pad, x: ir.Value, rank: int | None, label: str, emit: Emitter) -> ir.Value:
    rank = _known(rank, emit)
    pads = [0] * (2 * rank)
    pads[rank + step.axis % rank] = step.missing
    if emit.opset < 11:
        return emit.add("Pad", [x], label, pads=tuple(pads))
    return emit.add("Pad", [x, emit.integers(pads, f"{label}.pads")], label)


@lower.register
def _(step: Slice, x: ir.Value, rank: int | None, label: str, emit: Emitter) -> ir.Value:
    axis = step.axis % _known(rank, emit)
    if emit.opset < 10:
        return emit.add("Slice", [x], label, axes=(axis,), starts=(0,), ends=(step.size,))
    bounds = [
        emit.integers([value], f"{label}.{name}")
        for name, value in (("starts", 0), ("ends", step.size), ("axes", axis))
    ]
    return emit.add("Slice", [x, *bounds], label)


def _known(rank: int | None, emit: Emitter) -> int:
    if rank is None:
        raise ModelError(f"{emit.name}: the rank of its activation is unknown; use a method without reshapes")
    return rank


def _transpose(x: ir.Value, perm: tuple[int, ...], label: str, emit: Emitter) -> ir.Value:
    """A Transpose; one that comes straight after another is one with it, or nothing."""
    before = emit.nodes[-1] if emit.nodes else None
    if before is not None and before.op_type == "Transpose" and before.outputs[0] is x:
        inner = before.inputs[0]
        assert inner is not None
        first = before.attributes["perm"].as_ints()
        perm = tuple(first[axis] for axis in perm)
        before.replace_input_with(0, None)
        emit.nodes.pop()
        x = inner
    return x if perm == tuple(range(len(perm))) else emit.add("Transpose", [x], label, perm=perm)


def labels(chain: Chain) -> list[str]:
    """The steps' own labels, else first, step2, …, last."""
    count = len(chain.steps)
    usual = ["first", *(f"step{k}" for k in range(2, count)), "last"] if count > 1 else ["last"]
    return [step.label or name for step, name in zip(chain.steps, usual, strict=True)]


def own_bias(match: LayerMatch, chain: Chain) -> ir.Value | None:
    """The value of the layer's bias, where the chain has the same numbers."""
    return match.bias if chain.bias is match.layer.bias else None
