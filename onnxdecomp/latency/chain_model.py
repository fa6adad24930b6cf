"""A tiny model of one chain, at the shape that its layer really has, to be timed.

Around it stand neighbours that cost next to nothing: a 1x1 convolution from one channel, whose output comes
in blocks of channels as another convolution's would (see onnxdecomp.latency.context), and a pooling that
reads one element of each channel, so that little goes in and out of the model. `frame_model` is the same
without the chain: what to subtract.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.core.steps import Shape
from onnxdecomp.graph.attributes import as_attributes
from onnxdecomp.graph.traversal import Place
from onnxdecomp.latency.context import ALONE, Neighbours
from onnxdecomp.layers.adapter import LayerAdapter, LayerMatch
from onnxdecomp.layers.registry import timed
from onnxdecomp.layers.replace import Rewriter
from onnxdecomp.runtime.shared_weights import share_weights

OPSET, IR_VERSION = 17, 8

_PERIOD = 1 << 14
"""Numbers drawn; longer arrays repeat them, which no kernel notices and is quicker."""


def refusal(layer: Layer) -> str | None:
    """Why the latency of this layer cannot be measured alone, a phrase for people; None where it can."""
    adapter = _adapter(layer)
    return adapter if isinstance(adapter, str) else None


def _adapter(layer: Layer) -> LayerAdapter | str:
    return timed(layer) or f"the latency of {layer.op_type} is not measured alone"


@dataclass(frozen=True, eq=False)
class SerializedModel:
    """A serialised model, and the numbers of its large initializers by name (see session.open_session)."""

    model: bytes
    weights: Mapping[str, Array]

    @property
    def inputs(self) -> dict[str, tuple[Shape, np.dtype[Any]]]:
        """The shapes and types of what it is fed."""
        import onnx

        found = {}
        for value in onnx.load_model_from_string(self.model).graph.input:
            kind = value.type.tensor_type
            shape = tuple(dim.dim_value for dim in kind.shape.dim)
            found[value.name] = (shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        return found


def chain_model(
    chain: Chain, layer: Layer, input_shape: Shape, around: Neighbours = ALONE
) -> SerializedModel | str:
    """A model of the chain in the layer's place; the reason where there can be none.

    The numbers of the chain's factors and bias are not used: it may be an outline (methods.base.outline).
    A product with the constant on the left is timed as the same one with the constant on the right.

    Args:
        chain: What to time; `plan.plan.dense_chain` gives the layer itself.
        layer: The layer that it stands for.
        input_shape: The layer's activation, all sizes known; for a linear layer with the features last.
        around: What stands around it.
    """
    adapter = _adapter(layer)
    if isinstance(adapter, str):
        return adapter
    frame = _Frame(_data_type(layer), layer.conv is not None)
    x = frame.source(input_shape, around.before)
    weight = ir.Value(name="weight")
    slot = ir.node("Conv" if layer.conv is not None else "MatMul", [x, weight], name="layer")
    slot.outputs[0].name = "layer_output"
    frame.nodes.append(slot)
    shape = chain.output_shape(input_shape)
    y = frame.activation(around.activation, slot.outputs[0], shape)
    frame.sink(y, shape, around.after)
    model = frame.model()
    alone = replace(layer, name="layer", graph="", input_shape=input_shape)
    match = LayerMatch(alone, Place("", model.graph), (slot,), x, weight, weight, adapter)
    if reason := adapter.obstacle(chain, alone):
        return reason
    Rewriter(model).replace(match, filled(chain), {})
    return _serialized(model)


def frame_model(layer: Layer, input_shape: Shape, around: Neighbours = ALONE) -> SerializedModel | str:
    """The neighbours alone: what a model by `chain_model` takes without its chain."""
    if reason := refusal(layer):
        return reason
    frame = _Frame(_data_type(layer), layer.conv is not None)
    frame.sink(frame.source(input_shape, around.before), input_shape, around.before)
    return _serialized(frame.model())


def filled(chain: Chain) -> Chain:
    """The chain with seeded random numbers that keep activations of about one: no zeros, no denormals."""
    drawn = chain.with_weights(lambda step: noise(step.weight.shape, 1 / math.sqrt(step.fan_in)))
    return drawn if chain.bias is None else replace(drawn, bias=noise(chain.bias.shape))


def noise(shape: Shape, scale: float = 1.0) -> Array:
    """Seeded normal numbers in float32."""
    drawn = np.random.default_rng(0).standard_normal(_PERIOD, np.float32)
    return np.resize(drawn * np.float32(scale), shape)


def quantized_model(serialized: SerializedModel, precision: str, provider: str) -> SerializedModel:
    """The same model with the kernels of another precision.

    Raises:
        ModelError: It cannot be quantized.
    """
    import onnx

    from onnxdecomp.quantization import quantized_roughly
    from onnxdecomp.quantization.int8 import rough_proto
    from onnxdecomp.quantization.kinds import STATIC
    from onnxdecomp.quantization.scheme import scheme_for

    model = ir.from_proto(onnx.load_model_from_string(serialized.model))
    for name, array in serialized.weights.items():
        model.graph.initializers[name].const_value = ir.Tensor(array, name=name)
    if precision == STATIC:  # all types are known, so no file is needed
        return SerializedModel(
            rough_proto(ir.to_proto(model), model, scheme_for(provider)).SerializeToString(), {}
        )
    return _serialized(quantized_roughly(model, precision, provider))


def _serialized(model: ir.Model) -> SerializedModel:
    """The model, its large numbers beside it: in it they would take thrice the memory."""
    weights = share_weights(model)
    return SerializedModel(bytes(ir.to_proto(model).SerializeToString()), weights)


def _data_type(layer: Layer) -> ir.DataType:
    bfloat = layer.dtype == "bfloat16"
    return ir.DataType.BFLOAT16 if bfloat else ir.DataType.from_numpy(np.dtype(layer.dtype))


@dataclass(eq=False)
class _Frame:
    """The graph around a chain, while it is built."""

    dtype: ir.DataType
    conv: bool
    nodes: list[ir.Node] = field(default_factory=list)
    inputs: list[ir.Value] = field(default_factory=list)
    outputs: list[ir.Value] = field(default_factory=list)
    constants: list[ir.Value] = field(default_factory=list)

    def source(self, shape: Shape, blocked: bool) -> ir.Value:
        """The activation: the model's input, or a convolution of one channel."""
        cheap = self.conv and blocked
        x = self._value("x", (shape[0], 1, *shape[2:]) if cheap else shape)
        self.inputs.append(x)
        if not cheap:
            return x
        ones = (1,) * (len(shape) - 2)
        return self._add("Conv", [x, self._constant(noise((shape[1], 1, *ones)))], shape)

    def activation(self, name: str | None, x: ir.Value, shape: Shape) -> ir.Value:
        if name is None:
            return x
        bounds = [self._constant(np.array(bound, np.float32)) for bound in (0, 6)] if name == "Clip" else []
        return self._add(name, [x, *bounds], shape)

    def sink(self, y: ir.Value, shape: Shape, blocked: bool) -> None:
        """An output that is small, so that what leaves the model costs nothing."""
        if not self.conv:
            bounds = [self._constant(np.full(len(shape), bound)) for bound in (0, 1)]
            self.outputs.append(self._add("Slice", [y, *bounds], (1,) * len(shape)))
            return
        spatial = shape[2:]
        ones = (1,) * len(spatial)
        # Asked for the indices too, pooling does not take blocks: the output is put in order before.
        self.outputs.append(
            self._add(
                "MaxPool", [y], (*shape[:2], *ones), 1 if blocked else 2, kernel_shape=ones, strides=spatial
            )
        )

    def model(self) -> ir.Model:
        graph = ir.Graph(
            self.inputs,
            self.outputs,
            nodes=self.nodes,
            initializers=self.constants,
            opset_imports={"": OPSET},
            name="tiny",
        )
        return ir.Model(graph, ir_version=IR_VERSION)

    def _add(
        self, op_type: str, inputs: Sequence[ir.Value], shape: Shape, outputs: int = 1, **attributes: Any
    ) -> ir.Value:
        name = f"frame{len(self.nodes)}"
        first = self._value(f"{name}_output", shape)
        further = [
            ir.Value(name=f"{name}_indices", type=ir.TensorType(ir.DataType.INT64))
            for _ in range(outputs - 1)
        ]
        self.nodes.append(
            ir.node(
                op_type, inputs, attributes=as_attributes(attributes), outputs=[first, *further], name=name
            )
        )
        return first

    def _constant(self, array: Array) -> ir.Value:
        kind = self.dtype.numpy() if array.dtype.kind == "f" else array.dtype
        tensor = ir.Tensor(np.ascontiguousarray(array.astype(kind)), name=f"constant{len(self.constants)}")
        value = ir.Value(
            name=tensor.name,
            const_value=tensor,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
        )
        self.constants.append(value)
        return value

    def _value(self, name: str, shape: Shape) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(self.dtype), shape=ir.Shape(shape))
