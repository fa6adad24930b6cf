"""What ends the whole process inside ONNX Runtime, where nobody can catch it: told before it runs.

Found by running the operators of ONNX's own tests on tensors without numbers, with attributes out of range,
and with inputs and outputs left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from onnxdecomp.core.layer import Array
from onnxdecomp.errors import ModelError, UsageError

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, ValueInfoProto

_EMPTY = {"LSTM": 0, "GRU": 0, "ConvTranspose": 0, "STFT": 2}
"""Operators that do not survive an input without numbers, and which."""
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
    if not any(_is(node, *_EMPTY) for body in bodies for node in body.node):
        return None
    found = _empty_operand(model)
    if found is None and any(map(_is_empty, model.graph.input)):
        found = _empty_operand(_inferred(model))
    return found


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
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(model)
    except Exception:  # what it trips over is judged elsewhere
        return model


def _empty_operand(model: ModelProto) -> str | None:
    """The first of these operators with an input that is declared, stored or inferred to be empty."""
    import onnx

    empty: set[str] = set()
    for body in _bodies(model.graph):
        assert isinstance(body, onnx.GraphProto)
        empty |= {value.name for value in (*body.input, *body.value_info) if _is_empty(value)}
        empty |= {tensor.name for tensor in body.initializer if 0 in tensor.dims}
        for node in body.node:
            at = _EMPTY.get(node.op_type)
            if at is not None and _is(node, *_EMPTY) and empty.intersection(node.input[at : at + 1]):
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
    return any(dim.HasField("dim_value") and not dim.dim_value for dim in value.type.tensor_type.shape.dim)
