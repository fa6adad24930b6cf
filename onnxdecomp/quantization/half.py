"""float16 weights and activations, by the converter that ONNX Runtime keeps for its own models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.walk import places
from onnxdecomp.quantization.files import converted, load_tools
from onnxdecomp.quantization.prepare import choose_sizes

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx
    import onnx_ir as ir


def fp16(model: ir.Model) -> ir.Model:
    """The model in float16, with float32 inputs and outputs as before; it stays as it is.

    Operators that have no float16 form keep float32, with a Cast around them. Numbers beyond the range of
    float16 become its largest, and the verification shows what that costs.

    Raises:
        ModelError: The model has functions of its own, the converter fails, or what it wrote does not run.
    """
    import onnx

    if any(place.function is not None for place in places(model)):
        raise ModelError(
            "fp16: the model has functions of its own, whose bodies the converter leaves as they are"
        )
    convert_model = _converter()
    copy = model.clone()
    choose_sizes(copy)

    def convert(source: Path, target: Path) -> None:
        made = convert_model(str(source), keep_io_types=True)
        onnx.save(made, target, save_as_external_data=made.ByteSize() > 1 << 30)

    return converted(copy, "ONNX Runtime's float16 converter", convert)


def _converter() -> Callable[..., onnx.ModelProto]:
    load_tools()
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16  # type: ignore[no-any-return]
