"""What a graph must be for ONNX Runtime's tools to take it."""

from __future__ import annotations

import onnx_ir as ir

from onnxdecomp.errors import ModelError
from onnxdecomp.graph.inherit import inherit_graph, inherit_model, inherit_node, inherit_value
from onnxdecomp.quantization.files import silent

_OPTIONAL_SCALES = 13
"""The first opset in which a Resize may lack its scales."""


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
