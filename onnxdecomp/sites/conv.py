"""Conv and ConvTranspose as layers."""

from __future__ import annotations

import onnx_ir as ir

from onnxdecomp.layer import Array, ConvSpec, Layer
from onnxdecomp.sites.base import FLOATS, Scope, Site, attribute, dims, node_name, working


def conv_site(node: ir.Node, scope: Scope) -> Site | str:
    """The site of a Conv or ConvTranspose node, or why it cannot be one."""
    constant = scope.constant(node.inputs[1])
    if isinstance(constant, str):
        return constant
    if constant.dtype not in FLOATS:
        return f"its weight has element type {constant.dtype}"
    if constant.array.ndim < 3:
        return f"its weight has {constant.array.ndim} dimensions; a convolution's has at least 3"
    transposed = node.op_type == "ConvTranspose"
    spec = _spec(node, constant.array, transposed)
    if isinstance(spec, str):
        return spec
    weight = canonical_transposed(constant.array, spec.groups) if transposed else constant.array
    bias_value = node.inputs[2] if len(node.inputs) > 2 else None
    bias = None
    if bias_value is not None:
        found = scope.constant(bias_value)
        if isinstance(found, str):
            return f"its bias is not constant: {found}"
        bias = working(found.array)
    x = node.inputs[0]
    assert x is not None
    weight_value = node.inputs[1]
    assert weight_value is not None
    layer = Layer(
        name=node_name(node),
        op_type=node.op_type,
        weight=working(weight),
        bias=bias,
        conv=spec,
        graph=scope.place.path,
        input_shape=dims(x),
        output_shape=dims(node.outputs[0]),
        dtype=constant.dtype,
    )
    return Site(layer, scope.place, (node,), x, weight_value, constant.root, bias_value)


def _spec(node: ir.Node, weight: Array, transposed: bool) -> ConvSpec | str:
    d = weight.ndim - 2
    ones = (1,) * d
    groups = int(attribute(node, "group", 1))
    if weight.shape[0] % groups:
        return f"{weight.shape[0]} channels do not divide into {groups} groups"
    if attribute(node, "output_shape", None):
        return "output_shape chooses its padding from the input's size"
    auto_pad = str(attribute(node, "auto_pad", "NOTSET") or "NOTSET")
    pads: tuple[int, ...] | str = tuple(attribute(node, "pads", (0,) * (2 * d)))
    if auto_pad == "VALID":
        pads = (0,) * (2 * d)
    elif auto_pad != "NOTSET":
        pads = auto_pad
    return ConvSpec(
        strides=tuple(attribute(node, "strides", ones)),
        dilations=tuple(attribute(node, "dilations", ones)),
        pads=pads,
        groups=groups,
        transposed=transposed,
        output_padding=tuple(attribute(node, "output_padding", ())) if transposed else (),
    )


def canonical_transposed(weight: Array, groups: int) -> Array:
    """ONNX's ConvTranspose weight [S, T/groups, *kernel] as the canonical [T, S/groups, *kernel]."""
    s, t, *kernel = weight.shape
    split = weight.reshape(groups, s // groups, t, *kernel)
    return split.swapaxes(1, 2).reshape(groups * t, s // groups, *kernel)


def onnx_transposed(weight: Array, groups: int) -> Array:
    """The canonical [T, S/groups, *kernel] as ONNX's ConvTranspose weight [S, T/groups, *kernel]."""
    t, s, *kernel = weight.shape
    split = weight.reshape(groups, t // groups, s, *kernel)
    return split.swapaxes(1, 2).reshape(groups * s, t // groups, *kernel)
