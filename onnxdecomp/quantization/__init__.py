"""Fewer bits for weights and activations: int8 in three ways, int4 in blocks, and fp16."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def quantized_roughly(model: ir.Model, precision: str, provider: str, keep: Collection[str] = ()) -> ir.Model:
    """A model that takes as long to run as the quantized one; its outputs are of no use.

    Args:
        model: Stays as it is.
        precision: The kernels, as `onnxdecomp.quantization.kinds.kernels` names them; "float" for the model
            itself.
        provider: Where it will run, a short name.
        keep: Nodes that stay in floating point, by name or output.

    Raises:
        ModelError: The model cannot be quantized.
    """
    if precision == "float":
        return model
    if precision == "fp16":
        from onnxdecomp.quantization.half import fp16

        return fp16(model)
    from onnxdecomp.quantization.kinds import storage_of

    storage = storage_of(precision, provider)
    if storage is not None:
        from onnxdecomp.quantization.products import stored

        return stored(model, storage, keep)
    from onnxdecomp.quantization.int8 import rough
    from onnxdecomp.quantization.scheme import scheme_for

    return rough(model, scheme_for(provider))
