"""Fewer bits for weights and activations, by ONNX Runtime's own tools: `int8` and `fp16`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def quantized_roughly(model: ir.Model, precision: str, provider: str) -> ir.Model:
    """A model that takes as long to run as the quantized one; its outputs are of no use.

    Args:
        model: Stays as it is.
        precision: "int8", "fp16", or "float": then it is the model itself.
        provider: Where it will run, a short name.

    Raises:
        ModelError: The model cannot be quantized.
    """
    if precision == "int8":
        from onnxdecomp.quantization.int8 import rough
        from onnxdecomp.quantization.scheme import scheme_for

        return rough(model, scheme_for(provider))
    if precision == "fp16":
        from onnxdecomp.quantization.half import fp16

        return fp16(model)
    return model
