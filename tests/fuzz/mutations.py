"""Damage to a model's files: to bytes, to any field of the message, and to what readers trust most."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor as Descriptor  # type: ignore[import-untyped]
from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx import AttributeProto, TensorProto, numpy_helper

Rng: TypeAlias = np.random.Generator

_INTEGERS = (
    0,
    1,
    2,
    3,
    -1,
    -2,
    7,
    13,
    127,
    128,
    255,
    256,
    65536,
    2**31 - 1,
    -(2**31),
    2**40,
    2**62,
    2**63 - 1,
)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-40, 1e38, float("inf"), float("-inf"), float("nan"))
_TEXTS = (
    "",
    "x",
    "y",
    "w1",
    "/",
    "..",
    "../m.onnx",
    "a/b",
    "[bold]",
    "%s{}",
    "\n",
    "ä€🙂",
    "a" * 300,
    "Conv",
    "ai.onnx",
)
_TYPES = tuple(TensorProto.DataType.values())
_LOCATIONS = (
    "",
    ".",
    "..",
    "m.onnx",
    "../m.data",
    "/etc/passwd",
    "/dev/zero",
    "/proc/self/mem",
    "m.data/",
    "a\0b",
    "missing",
)


def damaged(files: Mapping[str, bytes], rng: Rng) -> tuple[dict[str, bytes], str]:
    """Damaged files, one or several times over, and what was done to them."""
    made, done = dict(files), []
    for _ in range(int(rng.choice((1, 1, 1, 2, 3)))):
        kind = pick(rng, (*_ON_BYTES, *_ON_MESSAGE, *_ON_MESSAGE))
        if kind in _ON_BYTES:
            name = pick(rng, sorted(made))
            made[name] = _ON_BYTES[kind](made[name], rng)
        else:
            model = onnx.ModelProto()
            try:
                model.ParseFromString(made["m.onnx"])
            except Exception:  # it was damaged beyond that before
                continue
            with suppress(Exception), np.errstate(all="ignore"):  # of what is damaged not all can be read
                _ON_MESSAGE[kind](model, rng)
            made["m.onnx"] = model.SerializeToString()
        done.append(kind)
    return made, ", ".join(done)


def pick(rng: Rng, items: Any) -> Any:
    """One of these."""
    items = list(items)
    return items[int(rng.integers(len(items)))]


def _flip(data: bytes, rng: Rng) -> bytes:
    made = bytearray(data)
    for _ in range(int(rng.integers(1, 9)) if made else 0):
        made[int(rng.integers(len(made)))] ^= 1 << int(rng.integers(8))
    return bytes(made)


def _overwrite(data: bytes, rng: Rng) -> bytes:
    at, length = _part(data, rng)
    return data[:at] + bytes(pick(rng, (b"\0", b"\xff", b"\x80", b"A"))) * length + data[at + length :]


def _cut(data: bytes, rng: Rng) -> bytes:
    at, length = _part(data, rng)
    return data[:at] + data[at + length :]


def _repeat(data: bytes, rng: Rng) -> bytes:
    at, length = _part(data, rng)
    return data[: at + length] + data[at:]


def _truncate(data: bytes, rng: Rng) -> bytes:
    return data[: int(rng.integers(len(data) + 1))]


def _part(data: bytes, rng: Rng) -> tuple[int, int]:
    return int(rng.integers(len(data) + 1)), int(rng.integers(1, 65))


def _any_field(model: onnx.ModelProto, rng: Rng) -> None:
    """Change one field of one message, wherever it stands."""
    message = pick(rng, _messages(model))
    descriptor = pick(rng, message.DESCRIPTOR.fields)
    if _repeated(descriptor):
        _change_list(getattr(message, descriptor.name), descriptor, rng)
    elif rng.random() < 0.3:
        message.ClearField(descriptor.name)
    elif descriptor.type == Descriptor.TYPE_MESSAGE:
        getattr(message, descriptor.name).SetInParent()
    else:
        setattr(message, descriptor.name, _value(descriptor, rng))


def _change_list(values: Any, descriptor: Descriptor, rng: Rng) -> None:
    count = len(values)
    at = int(rng.integers(count)) if count else 0
    how = pick(rng, ("remove", "repeat", "swap", "change", "add", "clear"))
    if how == "clear":
        del values[:]
    elif how == "remove" and count:
        del values[at]
    elif descriptor.type == Descriptor.TYPE_MESSAGE:
        if how == "add" or not count:
            values.add()
        else:
            other = type(values[at])()
            other.CopyFrom(values[int(rng.integers(count))])
            if how == "repeat":
                values.append(other)
            else:
                values[at].CopyFrom(other)
    elif how == "change" and count:
        values[at] = _value(descriptor, rng)
    else:
        values.append(values[at] if how == "repeat" and count else _value(descriptor, rng))


def _value(descriptor: Descriptor, rng: Rng) -> Any:
    match descriptor.type:
        case Descriptor.TYPE_STRING:
            return pick(rng, _TEXTS)
        case Descriptor.TYPE_BYTES:
            return bytes(rng.bytes(int(pick(rng, (0, 1, 4, 64, 300)))))
        case Descriptor.TYPE_FLOAT | Descriptor.TYPE_DOUBLE:
            return pick(rng, _FLOATS)
        case Descriptor.TYPE_ENUM:
            return int(pick(rng, [v.number for v in descriptor.enum_type.values]))
        case Descriptor.TYPE_INT32:
            return int(pick(rng, [v for v in _INTEGERS if -(2**31) <= v < 2**31]))
        case Descriptor.TYPE_UINT64:
            return int(pick(rng, [v for v in _INTEGERS if v >= 0]))
    return int(pick(rng, _INTEGERS))


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for descriptor, value in message.ListFields():
        if descriptor.type == Descriptor.TYPE_MESSAGE:
            for inner in value if _repeated(descriptor) else (value,):
                yield from _messages(inner)


def _repeated(descriptor: Descriptor) -> bool:
    known = getattr(descriptor, "is_repeated", None)  # since protobuf 6.31; before it there was `label`
    return bool(descriptor.label == Descriptor.LABEL_REPEATED if known is None else known)


def _all(model: onnx.ModelProto, kind: type[Message]) -> list[Any]:
    return [message for message in _messages(model) if isinstance(message, kind)]


def _dims(model: onnx.ModelProto, rng: Rng) -> None:
    """A stored tensor of another shape than its numbers have."""
    tensor = pick(rng, _all(model, TensorProto) or [TensorProto()])
    dims = [int(d) for d in tensor.dims] or [1]
    match pick(rng, ("swap", "set", "add", "drop", "huge")):
        case "swap":
            dims.reverse()
        case "set":
            dims[int(rng.integers(len(dims)))] = int(pick(rng, _INTEGERS))
        case "add":
            dims.append(int(pick(rng, (0, 1, 2, -1))))
        case "drop":
            dims.pop()
        case "huge":
            dims = [2**20, 2**20]
    del tensor.dims[:]
    tensor.dims.extend(dims)


def _reshaped(model: onnx.ModelProto, rng: Rng) -> None:
    """A stored tensor whose numbers fit its shape, but not the operator's other operands."""
    if tensors := [t for t in model.graph.initializer if t.HasField("raw_data") and len(t.dims)]:
        tensor = pick(rng, tensors)
        shape = [max(0, int(d) + int(rng.integers(-2, 3))) for d in tensor.dims]
        if rng.random() < 0.2:
            shape = shape[1:] or [1, 1]
        dtype = numpy_helper.to_array(tensor).dtype
        tensor.CopyFrom(numpy_helper.from_array(rng.standard_normal(shape).astype(dtype), tensor.name))


def _numbers(model: onnx.ModelProto, rng: Rng) -> None:
    """Numbers that linear algebra does not like: NaN, infinite, denormal, huge, all equal."""
    if tensors := [t for t in model.graph.initializer if t.data_type in (1, 10) and t.HasField("raw_data")]:
        tensor = pick(rng, tensors)
        array = numpy_helper.to_array(tensor).copy()
        value = np.asarray(pick(rng, _FLOATS)).astype(array.dtype)
        if array.size and rng.random() < 0.5:
            array.reshape(-1)[int(rng.integers(array.size))] = value
        elif rng.random() < 0.5:
            array[...] = value
        else:
            array = (array.astype(np.float64) * float(pick(rng, (1e-42, 1e-20, 1e20, 1e38)))).astype(
                array.dtype
            )
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _dtype(model: onnx.ModelProto, rng: Rng) -> None:
    """Another element type, of a tensor or of a declared value."""
    kinds = [*_all(model, TensorProto), *_all(model, onnx.TypeProto.Tensor)]
    if kinds:
        chosen = pick(rng, kinds)
        if isinstance(chosen, TensorProto):
            chosen.data_type = int(pick(rng, _TYPES))
        else:
            chosen.elem_type = int(pick(rng, _TYPES))


def _declared(model: onnx.ModelProto, rng: Rng) -> None:
    """Another size in a declared shape."""
    if dims := _all(model, onnx.TensorShapeProto.Dimension):
        dim = pick(rng, dims)
        if rng.random() < 0.3:
            dim.dim_param = pick(rng, _TEXTS)
        else:
            dim.dim_value = int(pick(rng, _INTEGERS))


def _attribute(model: onnx.ModelProto, rng: Rng) -> None:
    """Another value of an attribute, or one that the operator does not know."""
    nodes = _all(model, onnx.NodeProto)
    if not nodes:
        return
    node = pick(rng, nodes)
    if not node.attribute or rng.random() < 0.2:
        name = pick(rng, ("axis", "group", "pads", "strides", "dilations", "perm", "transB", "to", "alpha"))
        node.attribute.add(name=name, type=AttributeProto.INTS, ints=[int(pick(rng, _INTEGERS))] * 2)
        return
    attribute = pick(rng, node.attribute)
    attribute.i = int(pick(rng, _INTEGERS))
    attribute.f = pick(rng, _FLOATS)
    if attribute.ints:
        attribute.ints[int(rng.integers(len(attribute.ints)))] = int(pick(rng, _INTEGERS))
    if rng.random() < 0.1:
        attribute.type = int(pick(rng, AttributeProto.AttributeType.values()))


def _operator(model: onnx.ModelProto, rng: Rng) -> None:
    """Another operator, or one of another domain."""
    if nodes := _all(model, onnx.NodeProto):
        node = pick(rng, nodes)
        if rng.random() < 0.3:
            node.domain = pick(rng, ("com.microsoft", "ai.onnx", "local", "nobody"))
        else:
            node.op_type = pick(
                rng, [n.op_type for n in nodes] + ["Identity", "Nothing", "Softmax", "NonZero", "Loop"]
            )


def _wires(model: onnx.ModelProto, rng: Rng) -> None:
    """Inputs and outputs of nodes tied to other values."""
    if nodes := _all(model, onnx.NodeProto):
        names = [name for node in nodes for name in (*node.input, *node.output)] + ["", "unknown"]
        node = pick(rng, nodes)
        ends = pick(rng, (node.input, node.output))
        if ends and rng.random() < 0.7:
            ends[int(rng.integers(len(ends)))] = pick(rng, names)
        else:
            ends.append(pick(rng, names))


def _nodes(model: onnx.ModelProto, rng: Rng) -> None:
    """Nodes left out, doubled or out of order."""
    nodes = model.graph.node
    if nodes:
        at, other = int(rng.integers(len(nodes))), onnx.NodeProto()
        other.CopyFrom(nodes[at])
        if rng.random() < 0.6:
            del nodes[at]
        if rng.random() < 0.6:
            nodes.insert(int(rng.integers(len(nodes) + 1)), other)


def _opset(model: onnx.ModelProto, rng: Rng) -> None:
    """Another opset or IR version."""
    if model.opset_import and rng.random() < 0.7:
        entry = pick(rng, model.opset_import)
        entry.version = int(pick(rng, (0, 1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 18, 21, 23, 99, -1, 2**40)))
        if rng.random() < 0.2:
            entry.domain = pick(rng, ("", "ai.onnx", "com.microsoft", "nobody"))
    else:
        model.ir_version = int(pick(rng, (0, 1, 2, 3, 4, 7, 8, 10, 13, 99, -1)))


def _interface(model: onnx.ModelProto, rng: Rng) -> None:
    """Inputs, outputs and initializers under each other's names, or not there."""
    graph = model.graph
    parts = [part for part in (graph.input, graph.output, graph.initializer) if part]
    if parts:
        part = pick(rng, parts)
        at = int(rng.integers(len(part)))
        if rng.random() < 0.3:
            del part[at]
        else:
            names = [value.name for p in parts for value in p] + [
                n for node in graph.node for n in node.output
            ]
            part[at].name = pick(rng, names)


def _external(model: onnx.ModelProto, rng: Rng) -> None:
    """Entries of external data that lead elsewhere, or that lie."""
    tensors = _all(model, TensorProto)
    if not tensors:
        return
    outside = [tensor for tensor in tensors if tensor.external_data]
    tensor = pick(rng, outside or tensors)
    tensor.data_location = TensorProto.EXTERNAL
    if not tensor.external_data:
        tensor.external_data.add(key="location", value=pick(rng, _LOCATIONS))
    entry = pick(rng, tensor.external_data)
    values = _LOCATIONS if entry.key == "location" else (*map(str, _INTEGERS), "", "a", "1e3", "9" * 5000)
    entry.value = pick(rng, values)
    if rng.random() < 0.2:
        entry.key = pick(rng, ("offset", "length", "location", "checksum", "other"))


_ON_BYTES: dict[str, Callable[[bytes, Rng], bytes]] = {
    "flip": _flip,
    "overwrite": _overwrite,
    "cut": _cut,
    "repeat": _repeat,
    "truncate": _truncate,
}
_ON_MESSAGE: dict[str, Callable[[onnx.ModelProto, Rng], None]] = {
    "field": _any_field,
    "dims": _dims,
    "reshaped": _reshaped,
    "numbers": _numbers,
    "dtype": _dtype,
    "declared": _declared,
    "attribute": _attribute,
    "operator": _operator,
    "wires": _wires,
    "nodes": _nodes,
    "opset": _opset,
    "interface": _interface,
    "external": _external,
}
