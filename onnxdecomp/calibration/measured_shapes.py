"""Shapes of activations as they are in a run: for layers whose sizes no inference tells."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibration.activations import Observer, open_observer
from onnxdecomp.calibration.bound_shapes import bound_shapes, is_long
from onnxdecomp.calibration.reachability import place_of, shapes_read
from onnxdecomp.core.layer import Array
from onnxdecomp.data.random_inputs import bindings, trial_of
from onnxdecomp.errors import OnnxDecompError
from onnxdecomp.graph.attributes import dims
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.runtime.memory import give_back
from onnxdecomp.runtime.session import Feed

_SECONDS = 5
"""Of the search for random inputs that the model runs on."""


def with_seen_shapes(
    model: ir.Model, matched: Sequence[LayerMatch], shapes: Mapping[str, Sequence[int]] | None = None
) -> list[LayerMatch]:
    """The matches; where inference does not tell all sizes, with those of one run on random inputs.

    If one layer needs the run, all layers whose sizes the model leaves free have those of the run, so that
    their costs are at one and the same size of the inputs. Layers that did not run, or on nothing, stay as
    they are: other inputs may bring rows to them.

    Args:
        model: The model.
        matched: Its layers, in any graph.
        shapes: Shapes of inputs by name; free dimensions are bound as `random_inputs` does, the batch to 1.
    """
    symbols = {dim for value in model.graph.inputs for dim in dims(value) or () if isinstance(dim, str)}
    if not any(_asks(match, symbols) for match in matched):
        return list(matched)
    unknown = {match.nodes[0]: place_of(match) for match in matched if _observable(match) and _free(match)}
    told = bound_shapes(model, unknown, shapes) if is_long(model) else None
    found = _in_a_run(model, unknown, shapes) if told is None else told
    return [
        replace(match, layer=replace(match.layer, seen_shape=_canonical(match, found[match.nodes[0]])))
        if math.prod(found.get(match.nodes[0], (0,)))
        else match
        for match in matched
    ]


def _in_a_run(
    model: ir.Model, wanted: Mapping[ir.Node, int], shapes: Mapping[str, Sequence[int]] | None
) -> dict[ir.Node, tuple[int, ...]]:
    """What these inputs of nodes are like in one run on random inputs; nothing where none succeeds."""
    try:
        outputs = [str(value.name) for value in model.graph.outputs]
        observer = open_observer(model, outputs, low_memory=True)
        inputs = observer.specs()
        found = bindings(
            inputs, trial_of(observer.run), count=1, shapes=_of(shapes, inputs), seconds=_SECONDS
        )
        del observer  # two sessions would hold the model's weights twice
        return {} if isinstance(found, str) else shapes_read(model, wanted, found[0].feed(inputs, (0,)))
    except OnnxDecompError:  # judged elsewhere
        return {}
    finally:
        give_back()


def largest_value(model: ir.Model, feed: Feed) -> int:
    """Numbers in the largest value that a run of the model on this feed makes; 0 where it cannot be told."""
    tensors = [
        str(out.name)
        for node in model.graph
        for out in node.outputs
        if out.name and (out.type is None or isinstance(out.type, ir.TensorType))
    ]
    sizes = shapes_in_a_run(model, tensors, feed).values()
    return max((math.prod(shape) for shape in sizes), default=0)


def shapes_in_a_run(model: ir.Model, names: Sequence[str], feed: Feed) -> dict[str, tuple[int, ...]]:
    """The shapes of values of the main graph in a run on this feed; none where it fails.

    The values themselves do not leave the run, so that it takes no more memory than any other.
    """
    copy = model.clone()
    values = {value.name: value for value in _values(copy.graph)}
    asked = {}
    for place, name in enumerate(dict.fromkeys(names)):
        node = ir.node("Shape", [values[name]], name=f"onnxdecomp/shape_{place}")
        node.outputs[0].name = f"onnxdecomp/shape_{place}/out"
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape([None])
        copy.graph.append(node)
        asked[str(node.outputs[0].name)] = name
    try:
        observer = open_observer(copy, list(asked), low_memory=True)
        return _read(observer, observer.run(feed), asked)
    except OnnxDecompError:  # judged elsewhere
        return {}


def _read(observer: Observer, seen: Sequence[Array], asked: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    return {asked[name]: tuple(map(int, shape)) for name, shape in zip(observer.names, seen, strict=True)}


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _of(
    shapes: Mapping[str, Sequence[int]] | None, inputs: Sequence[object]
) -> dict[str, Sequence[int]] | None:
    names = {getattr(spec, "name", None) for spec in inputs}
    return None if shapes is None else {name: shape for name, shape in shapes.items() if name in names}


def _observable(match: LayerMatch) -> bool:
    """Whether the shape of the activation tells that of the canonical one."""
    return match.adapter.has_rows or match.layer.lookup


def _free(match: LayerMatch) -> bool:
    """Whether the shape has any size that is no number, or only by assumption."""
    shape = match.layer.input_shape
    return shape is None or match.x.shape is None or not all(isinstance(dim, int) for dim in shape)


def _asks(match: LayerMatch, symbols: Collection[str]) -> bool:
    """Whether a size is unknown, and not one that the model's inputs leave free."""
    if not _observable(match):
        return False
    shape = match.layer.input_shape
    # Of an input of unknown shape a Gemm says that it has two axes: that is an assumption.
    if shape is None or (match.x.shape is None and (match.layer.lookup or len(shape) == 2)):
        return True
    own = 1 if match.layer.conv is not None else len(shape) - 1
    batch = 0 if match.layer.conv is not None else None  # rows may be those of all positions
    return any(
        not isinstance(dim, int) and dim not in symbols
        for axis, dim in enumerate(shape)
        if axis not in (batch, own)
    )


def _canonical(match: LayerMatch, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The activation's shape as the layer's `input_shape` would have it."""
    if match.layer.lookup:
        return (*shape, match.layer.inputs)
    return match.adapter.rows(np.broadcast_to(np.float32(0), shape)).shape
