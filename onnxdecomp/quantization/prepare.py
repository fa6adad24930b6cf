"""What a graph must be for ONNX Runtime's tools to take it."""

from __future__ import annotations

import contextlib
import re

import onnx_ir as ir

from onnxdecomp.calibration.activations import open_observer
from onnxdecomp.errors import ModelError
from onnxdecomp.graph.inherit import inherit_graph, inherit_model, inherit_node, inherit_value
from onnxdecomp.graph.shape_inference import declare_type
from onnxdecomp.graph.traversal import places, slots
from onnxdecomp.quantization.files import silent
from onnxdecomp.runtime.session import dtype_of

_OPTIONAL_SCALES = 13
"""The first opset in which a Resize may lack its scales."""


_QUANTIZED = re.compile(r"[Qq]uantize|QLinear|Integer|NBits|Bnb4|FpQ4|^Q[A-Z]")
"""What the names of operators on quantized numbers have in them, ONNX's and ONNX Runtime's own."""

_DOMAINS = ("", "ai.onnx", "com.microsoft")

_NARROW = {ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16"}


def require_float(model: ir.Model, kind: str) -> None:
    """Refuse a model that has fewer bits already.

    Args:
        model: The model.
        kind: As --quantize has it; "fp16" alone takes float16 weights.

    Raises:
        ModelError: It is quantized, or has weights in bfloat16, or in float16 where fewer are asked for.
    """
    if is_quantized(model):
        raise ModelError(
            f"the model is quantized already: --quantize {kind} is for floating-point models, --requantize "
            "stores the factors of quantized weights as int8"
        )
    found = {slot.tensor.dtype for slot in slots(model)}
    found |= {dtype for value in (*model.graph.inputs, *model.graph.outputs) if (dtype := value.dtype)}
    for dtype, name in _NARROW.items():
        if dtype in found and (kind != "fp16" or dtype != ir.DataType.FLOAT16):
            raise ModelError(
                f"the model has {name} weights or inputs: --quantize {kind} is for float32 models"
            )


def is_quantized(model: ir.Model) -> bool:
    """Whether a model computes with quantized numbers anywhere."""
    nodes = (node for place in places(model) for node in place.graph)
    return any(node.domain in _DOMAINS and bool(_QUANTIZED.search(node.op_type)) for node in nodes)


def raised(model: ir.Model, opset: int) -> ir.Model:
    """The model under a newer opset, by ONNX's own converter.

    Raises:
        ModelError: It cannot be converted.
    """
    from onnxscript.version_converter import ConvertVersionPass

    before = model.opset_imports.get("", 1)
    inputs = [(value.name, value) for value in model.graph.inputs]
    values = dict([*inputs, *((v.name, v) for node in model.graph for v in node.outputs)])
    known = {node.name: node for node in model.graph if node.name}
    try:
        with silent():
            made: ir.Model = ConvertVersionPass(opset, fallback=True)(model.clone()).model
    except Exception as error:
        raise ModelError(f"int8 needs opset {opset}, and raising it from {before} failed: {error}") from error
    if made.opset_imports.get("", 1) < opset:
        raise ModelError(
            f"int8 needs opset {opset}; the model has {before}, which ONNX's converter cannot raise"
        )
    inherit_model(made, model)
    inherit_graph(made.graph, model.graph)
    for value in (*made.graph.inputs, *(v for node in made.graph for v in node.outputs)):
        if (found := values.get(value.name)) is not None:
            inherit_value(value, found)
    for node in made.graph:
        if (old := known.get(node.name or "")) is not None:
            inherit_node(node, old)
    return made


def declare_types(model: ir.Model) -> None:
    """Declare the types of the main graph's values in place; what ONNX cannot infer is asked of ONNX Runtime.

    ONNX's inference ends at an operator of another domain. The quantizer then leaves activations behind it
    in floating point, and fails on the bias of a layer that reads one.
    """
    values = {str(out.name): out for node in model.graph for out in node.outputs if out.name}
    unknown = [name for name, value in values.items() if value.type is None]
    with contextlib.suppress(ModelError):  # what does not load is judged elsewhere
        for spec in open_observer(model, unknown, low_memory=True).outputs() if unknown else ():
            if spec.dtype in ("float16", "float32"):
                kind = ir.TensorType(ir.DataType.from_numpy(dtype_of(spec)))
                declare_type(values[spec.name], kind)
    for value in values.values():
        declare_type(value)


def choose_sizes(model: ir.Model) -> None:
    """Take the scales of a Resize away where it has sizes, in place.

    Until opset 12 they had to be there, and empty; later that is an error as soon as nobody sees that they
    are empty.
    """
    if model.opset_imports.get("", 1) < _OPTIONAL_SCALES:
        return
    for node in model.graph:
        if node.op_type == "Resize" and len(node.inputs) > 3 and None not in node.inputs[2:4]:
            node.replace_input_with(2, None)
