"""Conv, ConvTranspose and FusedConv as layers."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from onnxdecomp.core.chain import conv_output_size
from onnxdecomp.core.layer import Array, ConvSpec, Dim, Layer
from onnxdecomp.graph.attributes import attribute, dims, node_name
from onnxdecomp.layers.conv_layout import canonical_transposed
from onnxdecomp.layers.site import FLOATS, Scope, Site, working


def conv_site(node: ir.Node, scope: Scope) -> Site | str:
    """The site of a Conv, ConvTranspose or FusedConv node, or why it cannot be one."""
    constant = scope.constant(node.inputs[1])
    if isinstance(constant, str):
        return constant
    if constant.dtype not in FLOATS:
        return f"its weight has element type {constant.dtype}"
    if constant.array.ndim < 3:
        return f"its weight has {constant.array.ndim} dimensions; a convolution's has at least 3"
    transposed = node.op_type == "ConvTranspose"
    x = node.inputs[0]
    assert x is not None
    spec = _spec(node, constant.array, transposed, dims(x))
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
    return Site(
        layer,
        scope.place,
        (node,),
        x,
        weight_value,
        constant.root,
        bias_value,
        quantized="DequantizeLinear" in constant.via,
    )


def _spec(
    node: ir.Node, weight: Array, transposed: bool, input_shape: tuple[Dim, ...] | None
) -> ConvSpec | str:
    d = weight.ndim - 2
    ones = (1,) * d
    groups = int(attribute(node, "group", 1))
    if weight.shape[0] % groups:
        return f"{weight.shape[0]} channels do not divide into {groups} groups"
    auto_pad = str(attribute(node, "auto_pad", "NOTSET") or "NOTSET")
    pads: tuple[int, ...] | str = tuple(attribute(node, "pads", (0,) * (2 * d)))
    if auto_pad == "VALID":
        pads = (0,) * (2 * d)
    elif auto_pad != "NOTSET":
        pads = auto_pad
    spec = ConvSpec(
        strides=tuple(attribute(node, "strides", ones)),
        dilations=tuple(attribute(node, "dilations", ones)),
        pads=pads,
        groups=groups,
        transposed=transposed,
        output_padding=tuple(attribute(node, "output_padding", ())) if transposed else (),
    )
    wanted = attribute(node, "output_shape", ()) if transposed else ()
    return _padded_to(spec, tuple(wanted), weight.shape[2:], auto_pad, input_shape) if wanted else spec


def _padded_to(
    spec: ConvSpec,
    wanted: tuple[int, ...],
    kernel: tuple[int, ...],
    auto_pad: str,
    input_shape: tuple[Dim, ...] | None,
) -> ConvSpec | str:
    """A ConvTranspose with output_shape: with the padding that ONNX chooses for it.

    Where the output is to be larger than what the input reaches, output_padding says the same.
    """
    sizes = () if input_shape is None else input_shape[2:]
    fixed = [size for size in sizes if isinstance(size, int)]
    if len(fixed) != len(kernel):
        return "output_shape chooses its padding from the input's size, which is not fixed"
    d = len(kernel)
    unpadded = replace(spec, pads=(0,) * (2 * d))
    begins, ends, extra = [], [], list(spec.output_padding or (0,) * d)
    for axis, (size, k, target) in enumerate(zip(fixed, kernel, wanted[-d:], strict=True)):
        total = conv_output_size(size, k, unpadded, axis) - target
        if total < 0:
            extra[axis] -= total
            total = 0
            if extra[axis] >= max(spec.strides[axis], spec.dilations[axis]):
                return "its output_shape is larger than what it computes"
        smaller, larger = total // 2, total - total // 2
        begins.append(smaller if auto_pad == "SAME_UPPER" else larger)
        ends.append(larger if auto_pad == "SAME_UPPER" else smaller)
    return replace(spec, pads=(*begins, *ends), output_padding=tuple(extra) if any(extra) else ())
