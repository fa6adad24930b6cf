"""What ends the whole process inside ONNX Runtime, where nobody can catch it: told before it runs.

Found by running the operators of ONNX's own tests on tensors without numbers, with attributes out of range,
and with inputs and outputs left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxdecomp.core.layer import Array
from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.runtime.regular_files import require_regular

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, ValueInfoProto

_HIDDEN = "onnxdecomp.hidden"
"""The domain of operators that inference is kept from understanding."""
_SMALL = 128
"""Numbers of a tensor that inference is shown."""
_EMPTY = {"LSTM": 0, "GRU": 0, "ConvTranspose": 0, "STFT": 2}
"""Operators that do not survive an input without numbers, and which."""
_SURVIVED = {"LSTM": 0}
"""The axis that may have a size of 0 all the same: an LSTM without steps, as at the start of a sequence."""
_SHRINKING = (
    *("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "MaxUnpool"),
    *("Pad", "Resize", "Upsample", "Tile", "OneHot"),
)
"""Operators whose output comes out with a size below 0 where attributes or constants are wrong."""
_NAMED_INPUTS = {"Sum": 0, "Min": 0, "Max": 0, "Mean": 0, "LayerNormalization": 2}
_NAMED_OUTPUTS = {"Split": 0, "Loop": 0, "BatchNormalization": 1}
"""Operators whose inputs or outputs, from that one on, may not be there under an empty name."""


def fatal(model: ModelProto) -> str | None:
    """Why ONNX Runtime would not survive this model, as far as it can be told without running it."""
    bodies = [body for whole in (model.graph, *model.functions) for body in _bodies(whole)]
    for body in bodies:
        for node in body.node:
            if (reason := _fatal_alone(node)) is not None:
                return f"{node.op_type} {node.name!r} {reason}, and ONNX Runtime ends the process then"
    found = None
    if any(_is(node, *_EMPTY) for body in bodies for node in body.node):
        found = _empty_operand(model)
        if found is None and any(map(_is_empty, model.graph.input)):
            found = _empty_operand(_inferred(model))
    return found or impossible_slice(model)


def impossible_slice(model: ModelProto) -> str | None:
    """Where a Slice reads what cannot be: a kernel is larger than what it slides over, or a scale below 0.

    ONNX's shape inference does not survive that either.
    """
    nodes = [node for body in _bodies(model.graph) for node in body.node]
    if not (any(_is(node, "Slice") for node in nodes) and any(_is(node, *_SHRINKING) for node in nodes)):
        return None
    made = {
        value.name: min(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for body in _bodies(_inferred(model).graph)
        for value in body.value_info
        if value.type.tensor_type.shape.dim
    }
    for node in nodes:
        if _is(node, "Slice") and node.input and made.get(node.input[0], 0) < 0:
            return (
                f"Slice {node.name!r} has an input, {node.input[0]!r}, with a size of {made[node.input[0]]}, "
                "and ONNX Runtime ends the process then"
            )
    return None


def _fatal_alone(node: NodeProto) -> str | None:
    """What is fatal about a node, whatever its inputs hold."""
    if not _is(node, "GatherND", *_NAMED_INPUTS, *_NAMED_OUTPUTS):
        return None
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "GatherND" and attributes.get("batch_dims", 0) < 0:
        return f"has batch_dims {attributes['batch_dims']}"
    if (first := _NAMED_INPUTS.get(node.op_type)) is not None and "" in node.input[first:]:
        return "has an input without a name (leave it out)"
    if node.op_type == "BatchNormalization" and not attributes.get("training_mode"):
        return None
    if (first := _NAMED_OUTPUTS.get(node.op_type)) is not None and "" in node.output[first:]:
        return "has an output without a name (give it one)"
    return None


def refuse_fatal(model: Path, *, on_cpu: bool) -> None:
    """Refuse a model that ONNX Runtime would not survive; what is no ONNX model is another's to say.

    Args:
        on_cpu: Whether it is to run on the CPU provider.

    Raises:
        ModelError: It would not, or the file is a pipe or a device.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    require_regular(model)
    try:
        proto = _read(model)
    except (OSError, DecodeError):
        return
    if (reason := fatal(proto)) is not None:
        raise ModelError(f"{model}: {reason}")
    if on_cpu:
        refuse_fatal_on_cpu(model)


def refuse_fatal_on_cpu(model: str | Path | bytes) -> None:
    """Refuse what other providers may well run, and ONNX Runtime's CPU provider does not survive.

    Raises:
        ModelError: The model has an Attention without a bias.
    """
    for body in _bodies(_read(model).graph):
        for node in body.node:
            if node.op_type == "Attention" and node.domain == "com.microsoft" and not any(node.input[2:3]):
                raise ModelError(
                    f"{_label(model)}: Attention {node.name!r} has no bias, and ONNX Runtime's CPU provider "
                    "ends the process then; give it one of zeros"
                )


def refuse_fatal_feed(model: str | Path | bytes, feed: Mapping[str, Array]) -> None:
    """Refuse inputs without numbers where the model does not survive them.

    Raises:
        UsageError: It does not.
    """
    if all(array.size for array in feed.values()):
        return
    from onnx.helper import make_tensor_value_info

    proto = _read(model)
    for value in proto.graph.input:
        if value.name in feed:
            shape = feed[value.name].shape
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(make_tensor_value_info(value.name, kind, shape))
    del proto.graph.value_info[:]
    if (reason := fatal(proto)) is not None:
        raise UsageError(f"{_label(model)} does not run on inputs without numbers: {reason}")


def _inferred(model: ModelProto) -> ModelProto:
    """The model without large weights, its shapes inferred up to every Slice."""
    import onnx

    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.opset_import.append(onnx.helper.make_opsetid(_HIDDEN, 1))
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    light.graph.node.extend(model.graph.node)
    for tensor in model.graph.initializer:
        kept = light.graph.initializer.add(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        if math.prod(tensor.dims) <= _SMALL:
            kept.CopyFrom(tensor)
    for body in _bodies(light.graph):
        for node in body.node:
            if _is(node, "Slice"):
                node.domain = _HIDDEN
    for value in light.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.ClearField("dim_value")
    try:
        return onnx.shape_inference.infer_shapes(light)
    except Exception:  # what it trips over is judged elsewhere
        return light


def _empty_operand(model: ModelProto) -> str | None:
    """The first of these operators with an input that is declared, stored or inferred to be empty."""
    import onnx

    empty: dict[str, list[int]] = {}
    for body in _bodies(model.graph):
        assert isinstance(body, onnx.GraphProto)
        for value in (*body.input, *body.value_info):
            empty[value.name] = _zeros(value)
        empty |= {tensor.name: _places(tensor.dims) for tensor in body.initializer}
        for node in body.node:
            at = _EMPTY.get(node.op_type)
            if at is None or not _is(node, *_EMPTY) or not node.input[at:]:
                continue
            if any(axis != _SURVIVED.get(node.op_type) for axis in empty.get(node.input[at], ())):
                return (
                    f"{node.op_type} {node.name!r} has an input, {node.input[at]!r}, with a size of 0, and "
                    "ONNX Runtime ends the process then"
                )
    return None


def _read(model: str | Path | bytes) -> ModelProto:
    import onnx

    if isinstance(model, bytes):
        return onnx.load_model_from_string(model)
    return onnx.load(model, load_external_data=False)


def _label(model: str | Path | bytes) -> str:
    return "the model" if isinstance(model, bytes) else str(model)


def _bodies(body: GraphProto | FunctionProto) -> Iterator[GraphProto | FunctionProto]:
    """A graph, or a function, then the graphs in its nodes."""
    yield body
    for node in body.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _bodies(attribute.g)
            for inner in attribute.graphs:
                yield from _bodies(inner)


def _is(node: NodeProto, *operators: str) -> bool:
    return node.op_type in operators and node.domain in ("", "ai.onnx")


def _is_empty(value: ValueInfoProto) -> bool:
    return bool(_zeros(value))


def _zeros(value: ValueInfoProto) -> list[int]:
    """The axes with a size of 0."""
    dims = value.type.tensor_type.shape.dim
    return _places([dim.dim_value if dim.HasField("dim_value") else 1 for dim in dims])


def _places(sizes: Sequence[int]) -> list[int]:
    return [axis for axis, size in enumerate(sizes) if not size]
