"""The shapes that the layers of a model see when its inputs have given shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxdecomp.calibration.measured_shapes import with_seen_shapes
from onnxdecomp.core.steps import Shape
from onnxdecomp.errors import UsageError
from onnxdecomp.graph.traversal import places
from onnxdecomp.layers.find import find
from onnxdecomp.layers.shapes import infer_shapes


def input_shapes(model: ir.Model, shapes: Mapping[str, Sequence[int]]) -> dict[tuple[str, str], Shape]:
    """The shape of each layer's activation by (graph, layer), the model's inputs bound to `shapes` by name.

    What cannot be inferred is assumed as Layer.assumed_input_shape does. The model is left as it is.

    Raises:
        UsageError: The model has no input of that name, or one of another rank.
    """
    bound = model.clone()
    inputs = {value.name: value for value in bound.graph.inputs}
    for name, shape in shapes.items():
        value = inputs.get(name)
        if value is None or (value.shape is not None and len(value.shape) != len(shape)):
            raise UsageError(f"the model has no input {name!r} of {len(shape)} dimensions")
        value.shape = ir.Shape([int(size) for size in shape])
    for place in places(bound):
        for node in place.graph:
            for output in node.outputs:
                _free(output)
    infer_shapes(bound)
    # What is a layer to the caller only because initializers are frozen is wanted too.
    matched = with_seen_shapes(bound, find(bound, freeze=True)[0], shapes)
    return {(s.layer.graph, s.layer.name): s.layer.assumed_input_shape() for s in matched}


def _free(value: ir.Value) -> None:
    """Forget sizes that are not numbers: they follow from the inputs' sizes now."""
    if value.shape is not None:
        value.shape = ir.Shape([dim if isinstance(dim, int) else None for dim in value.shape])
