"""What callers of a model rely on: names, order, types and shapes of its inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnxdecomp.core.layer import Dim
from onnxdecomp.errors import ModelError
from onnxdecomp.runtime.fatal import fatal
from onnxdecomp.runtime.regular_files import require_regular

if TYPE_CHECKING:
    from onnx import TypeProto, ValueInfoProto


@dataclass(frozen=True)
class Port:
    """An input or output as the file declares it; `shape` is None where it declares none."""

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None


@dataclass(frozen=True)
class Interface:
    """The inputs that must be fed, those with a default (an initializer of that name), and the outputs.

    Before IR version 4 every weight was listed as an input, and none could be fed: those are left out.
    """

    inputs: tuple[Port, ...]
    optional: tuple[Port, ...]
    outputs: tuple[Port, ...]


def interface_of(model: str | Path | bytes) -> Interface:
    """Read from the file; external data are not touched.

    Raises:
        ModelError: The file is missing or not a model, or ONNX Runtime would not survive it.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        if isinstance(model, bytes):
            proto = onnx.load_model_from_string(model)
        else:
            require_regular(Path(model))
            proto = onnx.load(model, load_external_data=False)
    except OSError as error:
        raise ModelError(f"cannot read {model!s}: {error.strerror}") from error
    except DecodeError as error:
        raise ModelError(f"{model!s} is not an ONNX model") from error
    if (reason := fatal(proto)) is not None:
        raise ModelError(f"{'the model' if isinstance(model, bytes) else model}: {reason}")
    graph = proto.graph
    weights = {tensor.name for tensor in graph.initializer}
    weights |= {tensor.values.name for tensor in graph.sparse_initializer}
    optional = [value for value in graph.input if value.name in weights and proto.ir_version >= 4]
    return Interface(
        tuple(_port(value) for value in graph.input if value.name not in weights),
        tuple(map(_port, optional)),
        tuple(map(_port, graph.output)),
    )


def differences(original: Interface, new: Interface) -> tuple[str, ...]:
    """What a caller of the original would notice, a phrase each; () where nothing.

    A dimension must keep its size or its symbolic name. A shape or a type that the original left out
    altogether may be there in the new model.
    """
    return (
        *_compare("input", original.inputs, new.inputs),
        *_compare("output", original.outputs, new.outputs),
    )


def lost_defaults(original: Interface, new: Interface) -> tuple[str, ...]:
    """Names of inputs with a default that the new model no longer lets the caller override."""
    kept = {port.name for port in new.optional}
    return tuple(port.name for port in original.optional if port.name not in kept)


def _compare(kind: str, before: tuple[Port, ...], after: tuple[Port, ...]) -> list[str]:
    names, others = [port.name for port in before], [port.name for port in after]
    found = [f"{kind} {name!r} is missing" for name in names if name not in others]
    found += [f"{kind} {name!r} is new" for name in others if name not in names]
    if not found and names != others:
        found.append(f"{kind}s are ordered {', '.join(others)} instead of {', '.join(names)}")
    by_name = {port.name: port for port in after}
    for old in before:
        new = by_name.get(old.name)
        if new is None:
            continue
        if old.dtype and new.dtype != old.dtype:
            found.append(f"{kind} {old.name!r} is {new.dtype} instead of {old.dtype}")
        if old.shape is not None and new.shape != old.shape:
            shapes = f"{_text(new.shape)} instead of {_text(old.shape)}"
            found.append(f"{kind} {old.name!r} has shape {shapes}")
    return found


def _text(shape: tuple[Dim, ...] | None) -> str:
    if shape is None:
        return "unknown"
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def _port(value: ValueInfoProto) -> Port:
    return Port(value.name, *_type(value.type))


def _type(proto: TypeProto) -> tuple[str, tuple[Dim, ...] | None]:
    """A type's name and shape; of a sequence or an optional value, those of what it holds."""
    match proto.WhichOneof("value"):
        case "tensor_type":
            tensor = proto.tensor_type
            shape = tuple(_dim(dim) for dim in tensor.shape.dim) if tensor.HasField("shape") else None
            return _element(tensor.elem_type), shape
        case "sequence_type":
            name, shape = _type(proto.sequence_type.elem_type)
            return f"sequence({name})", shape
        case "optional_type":
            name, shape = _type(proto.optional_type.elem_type)
            return f"optional({name})", shape
    return _type_text(proto), None


def _dim(dim: object) -> Dim:
    param, value = str(dim.dim_param), int(dim.dim_value)  # type: ignore[attr-defined]
    if param:
        return param
    known = dim.HasField("dim_value") and value >= 0  # type: ignore[attr-defined]
    return value if known else None


def _element(elem_type: int) -> str:
    from onnx import TensorProto

    known = elem_type in TensorProto.DataType.values()
    name = str(TensorProto.DataType.Name(elem_type)).lower() if known else f"type {elem_type}"
    return "" if name == "undefined" else name


def _type_text(proto: TypeProto) -> str:
    return " ".join(str(proto).split())
