"""Shapes of activations as they are in a run: for layers behind operators that no inference knows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibration.activations import Taps, open_taps
from onnxdecomp.core.layer import Array, Dim
from onnxdecomp.data.random_inputs import bindings, trial_of
from onnxdecomp.errors import OnnxDecompError
from onnxdecomp.layers.lowering_check.inputs import features_last
from onnxdecomp.layers.site import Site
from onnxdecomp.runtime.session import Feed


def with_seen_shapes(
    model: ir.Model, sites: Sequence[Site], shapes: Mapping[str, Sequence[int]] | None = None
) -> list[Site]:
    """The sites, those whose activation has an unknown shape told what it was in a run on random inputs.

    Args:
        model: The model.
        sites: Its layers.
        shapes: Shapes of inputs by name; free dimensions are bound as `random_inputs` does, the batch to 1.
    """
    sized = all(_known(value) for value in model.graph.inputs if not value.is_initializer())
    unknown = [site for site in sites if _asks(site, sized)]
    if not unknown:
        return list(sites)
    found = shapes_in_a_run(model, [str(site.x.name) for site in unknown], shapes)
    asked = {id(site) for site in unknown}
    return [
        replace(site, layer=replace(site.layer, seen_shape=_canonical(site, found[str(site.x.name)])))
        if id(site) in asked and str(site.x.name) in found
        else site
        for site in sites
    ]


def largest_value(model: ir.Model, feed: Feed) -> int:
    """Numbers in the largest value that a run of the model on this feed makes; 0 where it cannot be told."""
    tensors = [
        str(out.name)
        for node in model.graph
        for out in node.outputs
        if out.name and (out.type is None or isinstance(out.type, ir.TensorType))
    ]
    sizes = shapes_in_a_run(model, tensors, feed=feed).values()
    return max((math.prod(shape) for shape in sizes), default=0)


def shapes_in_a_run(
    model: ir.Model,
    names: Sequence[str],
    shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    feed: Feed | None = None,
) -> dict[str, tuple[int, ...]]:
    """The shapes of values of the main graph in one run; none where no run succeeds.

    The values themselves do not leave the run, so that it takes no more memory than any other.

    Args:
        model: The model.
        names: Of the values.
        shapes: Of inputs by name, which otherwise are bound as `random_inputs` does, the batch to 1.
        feed: The inputs, in place of random ones.
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
        taps = open_taps(copy, list(asked))
        if feed is not None:
            return _read(taps, taps.run(feed), asked)
        inputs = taps.specs()
        found = bindings(inputs, trial_of(taps.run), count=1, shapes=_of(shapes, inputs))
        if isinstance(found, str):
            return {}
        return _read(taps, taps.run(found[0].feed(inputs, (0,))), asked)
    except OnnxDecompError:  # judged elsewhere
        return {}


def _read(taps: Taps, seen: Sequence[Array], asked: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    return {asked[name]: tuple(map(int, shape)) for name, shape in zip(taps.names, seen, strict=True)}


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _of(
    shapes: Mapping[str, Sequence[int]] | None, inputs: Sequence[object]
) -> dict[str, Sequence[int]] | None:
    names = {getattr(spec, "name", None) for spec in inputs}
    return None if shapes is None else {name: shape for name, shape in shapes.items() if name in names}


def _known(value: ir.Value) -> bool:
    """Whether no size is free, but for the first."""
    return value.shape is not None and all(isinstance(dim, int) for dim in tuple(value.shape)[1:])


def _asks(site: Site, sized: bool) -> bool:
    """Whether the shape is unknown, and not only because the model's inputs leave it free."""
    if site.place.path or not (site.form is None or site.form.rows or site.layer.lookup):
        return False
    shape: tuple[Dim, ...] | None = site.layer.input_shape
    if site.layer.lookup and site.x.shape is None:
        return True
    if shape is None or (site.x.shape is None and site.layer.op_type in ("Gemm", "FusedGemm")):
        return True
    own = 1 if site.layer.conv is not None else len(shape) - 1
    return sized and any(dim is None for axis, dim in enumerate(shape) if axis not in (0, own))


def _canonical(site: Site, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The activation's shape as the layer's `input_shape` would have it."""
    if site.layer.lookup:
        return (*shape, site.layer.inputs)
    if site.linear is None:
        return shape
    return features_last(np.broadcast_to(np.float32(0), shape), site).shape
