"""Models put together of nodes and weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from onnxdecomp.core.layer import Array
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.find import find
from onnxdecomp.layers.shapes import infer_shapes

FLOAT = TensorProto.FLOAT

Dims = Sequence[int | str | None]
Ports = Sequence[onnx.ValueInfoProto | str] | Mapping[str, Dims | None]
"""Inputs or outputs: as they are, or names with shapes, or names alone, whose types ONNX infers."""


def value(name: str, shape: Dims | None, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    """An input or output; None is an unknown shape or size."""
    return helper.make_tensor_value_info(name, dtype, shape)


def node(op_type: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node named by its first output; inputs and outputs are names with blanks between."""
    name = attributes.pop("name", outputs.split(maxsplit=1)[0])
    return helper.make_node(op_type, inputs.split(), outputs.split(), name=name, **attributes)


def conv(name: str, x: str, y: str, **attributes: Any) -> onnx.NodeProto:
    """A Conv of the initializers name.w and name.b."""
    return helper.make_node("Conv", [x, f"{name}.w", f"{name}.b"], [y], name=name, **attributes)


def gemm(operands: list[str], **attributes: Any) -> onnx.NodeProto:
    """A Gemm called layer, to y."""
    return helper.make_node("Gemm", operands, ["y"], name="layer", **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Ports,
    outputs: Ports = ("y",),
    weights: Mapping[str, Array] | None = None,
    *,
    dtype: int = FLOAT,
    opset: int = 17,
    ir_version: int = 8,
    listed: Iterable[str] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    **header: Any,
) -> onnx.ModelProto:
    """A model of these nodes and initializers.

    Args:
        nodes, inputs, outputs, weights: What it is made of.
        dtype: Of the inputs and outputs that are given by name.
        opset, ir_version: Its header; a domain other than ONNX's own has version 1.
        listed: Weights that are graph inputs, too.
        functions: The model's own.
        header: Further arguments of helper.make_model.
    """
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
    wanted = set(listed)
    also = [value(tensor.name, tensor.dims, tensor.data_type) for tensor in stored if tensor.name in wanted]
    graph = helper.make_graph(
        list(nodes), "g", [*_ports(inputs, dtype), *also], _ports(outputs, dtype), stored
    )
    versions = {"": opset} | dict.fromkeys(
        sorted({*_domains(nodes), *(f.domain for f in functions)} - {""}), 1
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    options = {"opset_imports": imports, "ir_version": ir_version, "functions": functions, **header}
    made = helper.make_model(graph, **options)
    if any(isinstance(port, str) for port in outputs) and not isinstance(outputs, Mapping):
        known = {port.name: port for port in onnx.shape_inference.infer_shapes(made).graph.output}
        for port in made.graph.output:
            port.CopyFrom(known[port.name])
    return made


def _ports(given: Ports, dtype: int) -> list[onnx.ValueInfoProto]:
    if isinstance(given, Mapping):
        return [value(name, shape, dtype) for name, shape in given.items()]
    return [value(port, None, dtype) if isinstance(port, str) else port for port in given]


def _domains(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    for one in nodes:
        yield one.domain
        for attribute in one.attribute:
            yield from _domains(attribute.g.node)


def loaded(proto: onnx.ModelProto) -> ir.Model:
    """As a model is before its layers are looked for: with the shapes of its activations."""
    made = ir.from_proto(proto)
    infer_shapes(made)
    return made


def from_x(
    nodes: Sequence[onnx.NodeProto], weights: Mapping[str, Array], shape: Dims, *outputs: str
) -> ir.Model:
    """From x of that shape to the outputs (y if none is named), loaded."""
    return loaded(model(nodes, {"x": shape}, outputs or ["y"], weights))


def match_of(model: ir.Model, name: str = "layer") -> LayerMatch:
    """The layer of that name."""
    return next(match for match in find(model)[0] if match.layer.name == name)


def saved(made: onnx.ModelProto, path: Path, data: str | None = None) -> Path:
    """In a file, as onnx itself writes it; with `data`, every tensor in the file of that name beside it."""
    if data is None:
        onnx.save(made, path)
    else:
        onnx.save(made, path, save_as_external_data=True, location=data, size_threshold=0)
    return path
