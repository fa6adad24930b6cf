"""Conv, ConvTranspose and FusedConv as layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.layer import Array, ConvSpec, Dim, Layer
from onnxdecomp.core.steps import Convolve
from onnxdecomp.graph.attributes import as_attributes, attribute, dims
from onnxdecomp.graph.stand_ins import unfuse
from onnxdecomp.layers.adapter import FeatureAxes, LayerAdapter, LayerMatch, OutputChannels, ParameterRoles
from onnxdecomp.layers.conv_layout import canonical_transposed, onnx_transposed
from onnxdecomp.layers.emitter import Emitter
from onnxdecomp.layers.fused import Fused
from onnxdecomp.layers.lower import lower_conv
from onnxdecomp.layers.scope import MICROSOFT, Scope, Snapshot, working

_RESIDUAL = 3
"""The position of a FusedConv's Z."""

_MOST_SPATIAL = 16


@dataclass(frozen=True, eq=False)
class Conv(LayerAdapter):
    """The adapter of convolutions.

    Attributes:
        fused: What a FusedConv does after the convolution.
    """

    operators = (("", "Conv"), ("", "ConvTranspose"), (MICROSOFT, "FusedConv"))
    has_rows = True
    feature_axis = 1
    bias_at = 2
    per_channel = frozenset(("Conv", "ConvTranspose"))

    fused: Fused | None = None
    follow: tuple[int, ...] = field(default=(_RESIDUAL,), kw_only=True)

    @classmethod
    def match(cls, node: ir.Node, scope: Scope) -> LayerMatch | str:
        source = scope.weight(node.inputs[1])
        if isinstance(source, str):
            return source
        if source.array.ndim < 3:
            return f"its weight has {source.array.ndim} dimensions; a convolution's has at least 3"
        x = node.inputs[0]
        assert x is not None
        shape = dims(x)
        if shape is not None and len(shape) != source.array.ndim:
            return f"its activation has {len(shape)} dimensions, its weight {source.array.ndim}"
        transposed = node.op_type == "ConvTranspose"
        spec = _spec(node, source.array, transposed, shape)
        if isinstance(spec, str):
            return spec
        bias_value = node.inputs[2] if len(node.inputs) > 2 else None
        bias = None
        if bias_value is not None:
            found = scope.constant(bias_value)
            if isinstance(found, str):
                return f"its bias is not constant: {found}"
            bias = working(found.array)
        return cls(Fused.of(node) if node.domain == MICROSOFT else None).layer_match(
            node,
            scope,
            x,
            source,
            canonical_transposed(source.array, spec.groups) if transposed else source.array,
            bias=bias,
            bias_value=bias_value,
            conv=spec,
            input_shape=shape,
            output_shape=dims(node.outputs[0]),
        )

    def obstacle(self, chain: Chain, layer: Layer) -> str | None:
        if self.fused is not None and not isinstance(chain.steps[-1], Convolve):
            return f"{layer.op_type} needs a chain that ends in a convolution"
        return None

    def lower(self, chain: Chain, match: LayerMatch, emit: Emitter) -> None:
        lower_conv(chain, match, emit)
        if self.fused is None:
            return
        last = emit.nodes[-1]
        last.domain, last.op_type = MICROSOFT, "FusedConv"
        last.attributes.update(as_attributes(self.fused.attributes))
        if self.fused.residual is not None:
            last.resize_inputs(_RESIDUAL + 1)
            last.replace_input_with(_RESIDUAL, self.fused.residual)

    @property
    def reads_as_stored(self) -> bool:
        return True

    def live(self, now: Callable[[ir.Value], ir.Value]) -> Conv:
        if self.fused is None or self.fused.residual is None:
            return self
        return replace(self, fused=replace(self.fused, residual=now(self.fused.residual)))

    def stored(self, weight: Array, layer: Layer) -> Array:
        assert layer.conv is not None
        return onnx_transposed(weight, layer.conv.groups) if layer.conv.transposed else weight

    def probe_inputs(self, layer: Layer, node: Snapshot, rng: np.random.Generator) -> dict[int, Array]:
        shape = _small_shape(layer)
        inputs = {0: rng.standard_normal(shape)}
        if self.fused is not None and self.fused.residual is not None:
            inputs[_RESIDUAL] = rng.standard_normal(dense_chain(layer).output_shape(shape))
        return inputs

    def attributes(self, layer: Layer, node: Snapshot) -> Mapping[str, Any]:
        spec = layer.conv
        if "output_shape" not in node.attributes or spec is None:
            return node.attributes
        # It would choose another padding for an input of another size.
        chosen = ("output_shape", "auto_pad", "output_padding")
        kept = {name: value for name, value in node.attributes.items() if name not in chosen}
        return kept | {"pads": spec.pads, "output_padding": spec.output_padding}

    def takes_bias(self, layer: Layer) -> bool:
        return True

    @property
    def is_plain(self) -> bool:
        return self.fused is None

    @property
    def fuses_activation(self) -> bool:
        return self.fused is None

    @classmethod
    def timed(cls, layer: Layer) -> Conv:
        return cls()

    @classmethod
    def output_channels(cls, node: ir.Node, shape: tuple[int, ...]) -> OutputChannels | None:
        if node.domain == MICROSOFT or len(shape) < 3:
            return None
        ones = (1,) * (len(shape) - 2)
        if node.op_type == "Conv":
            return OutputChannels(shape[0], len(shape), shape, (shape[0], 1, *ones))
        # [S, T/groups, *kernel]: the output channels of one group after those of another.
        groups = int(attribute(node, "group", 1))
        split = (groups, shape[0] // groups, *shape[1:])
        return OutputChannels(shape[1] * groups, len(shape), split, (groups, 1, shape[1], *ones))

    def feature_axes(self, node: ir.Node) -> FeatureAxes:
        transposed = node.op_type == "ConvTranspose"
        return FeatureAxes(1, 1, inputs=int(not transposed), outputs=int(transposed), bias=2)

    @classmethod
    def stand_in(cls, node: ir.Node) -> None:
        unfuse(node, "Conv")

    @classmethod
    def parameter_roles(cls, op_type: str) -> ParameterRoles:
        return ParameterRoles(weights=(1,), biases=(2,))

    @classmethod
    def is_matrix(cls, node: ir.Node, shape: Sequence[int]) -> bool:
        return int(attribute(node, "group", 1)) == 1

    @classmethod
    def fan_in(cls, node: ir.Node, shape: Sequence[int]) -> int:
        if node.op_type == "ConvTranspose":
            return max(1, shape[0] // int(attribute(node, "group", 1)) * math.prod(shape[2:]))
        return math.prod(shape[1:])


def _small_shape(layer: Layer) -> tuple[int, ...]:
    """A shape that the layer's activation could have, small enough to be quick."""
    spec = layer.conv
    assert spec is not None
    shape = list(layer.assumed_input_shape(batch=2))
    shape[0] = min(shape[0], 2)
    for axis, kernel in enumerate(layer.kernel):
        span = spec.dilations[axis] * (kernel - 1) + 1
        at_least = span + 2 * spec.strides[axis]
        if spec.transposed and not isinstance(spec.pads, str):
            # The padding is cut off the output, of which something must be left.
            at_least += spec.pads[axis] + spec.pads[axis + spec.spatial_rank]
        shape[2 + axis] = max(min(shape[2 + axis], _MOST_SPATIAL), at_least)
    return tuple(shape)


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
        total = unpadded.output_size(size, k, axis) - target
        if total < 0:
            extra[axis] -= total
            total = 0
            if extra[axis] >= max(spec.strides[axis], spec.dilations[axis]):
                return "its output_shape is larger than what it computes"
        smaller, larger = total // 2, total - total // 2
        begins.append(smaller if auto_pad == "SAME_UPPER" else larger)
        ends.append(larger if auto_pad == "SAME_UPPER" else smaller)
    return replace(spec, pads=(*begins, *ends), output_padding=tuple(extra) if any(extra) else ())
