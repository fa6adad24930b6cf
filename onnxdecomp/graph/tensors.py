"""The tensors of a model, independent of the file that they were parsed from."""

from __future__ import annotations

import onnx_ir as ir

from onnxdecomp.graph.walk import slots


def own_memory(model: ir.Model) -> None:
    """Give every tensor that was parsed from a file memory of its own.

    As parsed, a single one keeps the whole file in memory, and each is written again in the field of the
    format that it came in: the same numbers would give different bytes.
    """
    for slot in slots(model):
        parsed = slot.tensor
        if not isinstance(parsed, ir.serde.TensorProtoTensor):
            continue
        if parsed.dtype == ir.DataType.STRING:
            strings = parsed.numpy().reshape(-1).tolist()
            own: ir.TensorProtocol = ir.StringTensor(strings, shape=ir.Shape(parsed.shape), name=parsed.name)
        else:
            own = ir.Tensor(parsed.numpy(), parsed.dtype, shape=ir.Shape(parsed.shape), name=parsed.name)
        own.doc_string = parsed.doc_string
        own.metadata_props.update(parsed.metadata_props)
        slot.put(own)
