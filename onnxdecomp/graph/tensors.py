"""The tensors of a model, independent of the file that they were parsed from."""

from __future__ import annotations

import copy

import onnx_ir as ir

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.traversal import slots


def own_memory(model: ir.Model) -> None:
    """Give every tensor that was parsed from a file memory of its own.

    As parsed, a single one keeps the whole file in memory, and each is written again in the field of the
    format that it came in: the same numbers would give different bytes.

    Raises:
        ModelError: A tensor does not hold what its type and shape say.
    """
    for slot in slots(model):
        parsed = slot.tensor
        if not isinstance(parsed, ir.serde.TensorProtoTensor):
            continue
        try:
            own = _own(parsed)
        except Exception as error:  # what NumPy, ml_dtypes and protobuf raise
            raise ModelError(f"{described(parsed)} does not hold that: {error}") from error
        slot.put(own)


def named(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """The same numbers under another name; the tensor, which copies of a model share, keeps its own."""
    own = _own(tensor) if isinstance(tensor, ir.serde.TensorProtoTensor) else copy.copy(tensor)
    own.name = name
    return own


def described(tensor: ir.TensorProtocol) -> str:
    """A tensor by its name, type and shape, which may be wrong."""
    shape = ", ".join(map(str, tensor.shape))
    try:
        dtype = str(tensor.dtype)
    except ValueError:  # a number that stands for no type
        dtype = "of no known type"
    return f"tensor {tensor.name!r} ({dtype}, [{shape}])"


def _own(parsed: ir.serde.TensorProtoTensor) -> ir.TensorProtocol:
    shape = tuple(parsed.shape.numpy())
    array = parsed.numpy()
    if array.shape != shape:
        raise ValueError(f"it has the shape {list(array.shape)}")
    own: ir.TensorProtocol
    if parsed.dtype == ir.DataType.STRING:
        own = ir.StringTensor(array.reshape(-1).tolist(), shape=ir.Shape(shape), name=parsed.name)
    else:
        own = ir.Tensor(array, parsed.dtype, shape=ir.Shape(shape), name=parsed.name)
    own.doc_string = parsed.doc_string
    own.metadata_props.update(parsed.metadata_props)
    return own
