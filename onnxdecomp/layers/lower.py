"""The one place where a chain becomes ONNX nodes."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.steps import (
    BlockMatMul,
    Convolve,
    LeftMatMul,
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
from onnxdecomp.layers.adapter import Site
from onnxdecomp.layers.conv_layout import onnx_transposed
from onnxdecomp.layers.emitter import Emitter


def emit_conv(chain: Chain, site: Site, emit: Emitter) -> None:
    """The nodes of a chain on [N, C, *spatial]."""
    x = site.x
    rank = len(site.layer.kernel)
    names = labels(chain)
    for index, (step, label) in enumerate(zip(chain.steps, names, strict=True)):
        if isinstance(step, Convolve):
            last = index == len(chain.steps) - 1
            bias = emit.bias(chain, own_bias(site, chain)) if last else None
            x = _convolve(step, x, label, emit, bias)
        elif isinstance(step, RegroupBatch):
            x = emit.add(
                "Reshape", [x, emit.integers([-1, step.channels] + [0] * rank, f"{label}.shape")], label
            )
        elif isinstance(step, RegroupSpatial):
            shape = emit.integers([0, step.channels, -1] + [0] * (rank - 1), f"{label}.shape")
            x = emit.add("Reshape", [x, shape], label)
        elif isinstance(step, Pad | Slice):
            x = _resize(step, x, 2 + rank, label, emit)
        elif isinstance(step, PermuteChannels):
            order = emit.integers(list(step.order), f"{label}.order")
            x = emit.add("Gather", [x, order], label, axis=1)
        else:
            raise TypeError(f"{type(step).__name__} is no step on [N, C, *spatial]")
    if chain.bias is not None and not isinstance(chain.steps[-1], Convolve):
        bias = emit.bias(chain, own_bias(site, chain), (-1,) + (1,) * rank)
        assert bias is not None
        emit.add("Add", [x, bias], "bias")


def _convolve(step: Convolve, x: ir.Value, label: str, emit: Emitter, bias: ir.Value | None) -> ir.Value:
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


def emit_step(
    step: Step, x: ir.Value, rank: int | None, label: str, emit: Emitter, left: bool = False
) -> ir.Value:
    """The node of one step on features; `rank` counts the axes of an activation with one feature axis."""
    if isinstance(step, MatMul):
        if not left and (made := emit.product(step, x, label)) is not None:
            return made
        array = step.weight.swapaxes(-1, -2) if left else step.weight
        weight = emit.weight(array, label, axis=array.ndim - (2 if left else 1))
        return emit.add("MatMul", [weight, x] if left else [x, weight], label)
    return _rearrange(step, x, rank, label, emit)


def _rearrange(step: Step, x: ir.Value, rank: int | None, label: str, emit: Emitter) -> ir.Value:
    if rank is None:
        raise ModelError(f"{emit.name}: the rank of its activation is unknown; use a method without reshapes")
    lead = rank - 1
    if isinstance(step, Reshape):
        shape = emit.integers([0] * lead + list(step.target), f"{label}.shape")
        return emit.add("Reshape", [x, shape], label)
    if isinstance(step, LeftMatMul):
        return emit.add("MatMul", [emit.weight(step.weight, label, axis=0), x], label)
    if isinstance(step, Pad | Slice):
        return _resize(step, x, rank, label, emit)
    if isinstance(step, BlockMatMul):
        # One row at a time against each block would be slow: the blocks go before the last leading axis.
        perm = (*range(lead - 1), lead, lead - 1, lead + 1)
        weight = emit.weight(step.weight, label, axis=2)
        x = _transpose(x, perm, f"{label}_blocks", emit)
        x = emit.add("MatMul", [x, weight], label)
        return _transpose(x, perm, f"{label}_rows", emit)
    if isinstance(step, Transpose):
        return _transpose(x, step.axes(lead + len(step.perm)), label, emit)
    raise TypeError(f"{type(step).__name__} is no step on features")


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


def _resize(step: Pad | Slice, x: ir.Value, rank: int, label: str, emit: Emitter) -> ir.Value:
    """Zeros after one axis of `rank`, or its first elements only; attributes became inputs over time."""
    axis = step.axis % rank
    if isinstance(step, Pad):
        pads = [0] * (2 * rank)
        pads[rank + axis] = step.missing
        if emit.opset < 11:
            return emit.add("Pad", [x], label, pads=tuple(pads))
        return emit.add("Pad", [x, emit.integers(pads, f"{label}.pads")], label)
    if emit.opset < 10:
        return emit.add("Slice", [x], label, axes=(axis,), starts=(0,), ends=(step.size,))
    bounds = [
        emit.integers([value], f"{label}.{name}")
        for name, value in (("starts", 0), ("ends", step.size), ("axes", axis))
    ]
    return emit.add("Slice", [x, *bounds], label)


def labels(chain: Chain) -> list[str]:
    """The steps' own labels, else first, step2, …, last."""
    count = len(chain.steps)
    usual = ["first", *(f"step{k}" for k in range(2, count)), "last"] if count > 1 else ["last"]
    return [step.label or name for step, name in zip(chain.steps, usual, strict=True)]


def own_bias(site: Site, chain: Chain) -> ir.Value | None:
    """The value of the layer's bias, where the chain has the same numbers."""
    return site.bias if chain.bias is site.layer.bias else None
