"""float16 weights and activations: which values become so, and the Casts between them and the others."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.layer import Array
from onnxdecomp.data.comparable_outputs import DRAWING
from onnxdecomp.graph.inherit import inherit_value
from onnxdecomp.graph.shape_inference import as_declared
from onnxdecomp.graph.traversal import node_graphs, node_names, places, unique_name, value_names
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.quantization.files import checked, load_tools, unlist_initializers
from onnxdecomp.quantization.prepare import choose_sizes, require_float
from onnxdecomp.quantization.schemas import Signature, Signatures

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16

LARGEST = float(np.finfo(np.float16).max)
SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
_BLOCKED = DRAWING | {"EyeLike"}
"""Operators whose numbers have the type of their input unless an attribute says otherwise, which no schema
tells; and random numbers are drawn in float32."""


def fp16(model: ir.Model, keep: Collection[str] = ()) -> ir.Model:
    """The model in float16, with float32 inputs and outputs as before; it stays as it is.

    Operators that have no float16 form keep float32, with a Cast around them, and so do those that ONNX
    Runtime's own converter leaves, those that draw random numbers, what enters and leaves subgraphs, and
    functions. Weights beyond the range of float16 become its largest number, and what is too small for it
    its smallest, not 0.

    Args:
        model: In float32.
        keep: The nodes that stay in float32, by the name of an output.

    Raises:
        ModelError: The model is quantized already or in bfloat16, or what comes out does not run.
    """
    require_float(model, "fp16")
    copy = model.clone()
    choose_sizes(copy)
    unlist_initializers(copy)
    chosen = _chosen(copy, dict(_types(copy)), frozenset(keep))
    casts = _Casts(value_names(copy) | node_names(copy))
    graphs = [place.graph for place in places(copy) if place.function is None]
    for graph in graphs:
        _store_halves(graph, chosen)
    for value in chosen.values:
        _declare(value, HALF)
    for node in [node for graph in graphs for node in graph]:
        for position, operand in enumerate(node.inputs):
            wanted = (node, position) in chosen.slots
            if operand in chosen.floats and wanted != (operand in chosen.values):
                node.replace_input_with(position, casts.of(operand, HALF if wanted else FLOAT))
    for graph in graphs:
        for position, value in enumerate(graph.outputs):
            if value in chosen.values:
                graph.outputs[position] = casts.as_output(value)
    checked(copy, "its float16 form")
    return copy


def halved(array: Array) -> Array:
    """The numbers in float16: finite ones stay finite, and none becomes 0 that is not."""
    within = np.where(np.isfinite(array), np.clip(array, -LARGEST, LARGEST), array)
    rounded = within.astype(np.float16)
    vanished = (rounded == 0) & (array != 0)
    return np.where(vanished, np.copysign(np.float16(SMALLEST), array), rounded).astype(np.float16)


@dataclass(frozen=True, eq=False)
class _Chosen:
    """What of a model becomes float16.

    Attributes:
        floats: All values that are float32.
        values: Those that become float16 where they are made.
        slots: Inputs of nodes, by position, that are read as float16.
    """

    floats: frozenset[ir.Value]
    values: set[ir.Value] = field(default_factory=set)
    slots: set[tuple[ir.Node, int]] = field(default_factory=set)


def _types(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TypeProtocol]]:
    """The types of values as far as they are known; the model keeps what it declares."""
    infer_shapes(model)
    for place in places(model):
        if place.function is not None:
            continue
        values = [*place.graph.inputs, *place.graph.initializers.values()]
        for value in (*values, *(out for node in place.graph for out in node.outputs)):
            tensor = value.const_value
            found = ir.TensorType(tensor.dtype) if tensor is not None else value.type
            if found is not None:
                yield value, found
    as_declared(model)


def _chosen(model: ir.Model, types: dict[ir.Value, ir.TypeProtocol], keep: frozenset[str]) -> _Chosen:
    """Decide on every node; `types` is added to."""
    load_tools()
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

    blocked = _BLOCKED.union(DEFAULT_OP_BLOCK_LIST)
    signatures = Signatures(model.opset_imports)
    half: list[tuple[ir.Node, Signature]] = []
    for place in places(model):
        for node in place.graph if place.function is None else ():
            signature = signatures.of(node)
            if signature is None:
                continue
            _type_outputs(node, signature, types)
            kept = any(out.name in keep for out in node.outputs)
            if not kept and node.op_type not in blocked and _plain(node, signature, types):
                half.append((node, signature))
    floats = (v for v, kind in types.items() if isinstance(kind, ir.TensorType) and kind.dtype == FLOAT)
    found = _Chosen(frozenset(floats))
    for node, signature in half:
        _choose(node, signature, found)
    return found


def _type_outputs(node: ir.Node, signature: Signature, types: dict[ir.Value, ir.TypeProtocol]) -> None:
    """Find types that ONNX's inference does not know: several operands of an operator have the same."""
    known = {
        signature.input(at): types[v] for at, v in enumerate(node.inputs) if v is not None and v in types
    }
    for position, out in enumerate(node.outputs):
        name = signature.output(position)
        if out not in types and name in known:
            types[out] = known[name]
        elif out not in types and signature.is_float(name):
            types[out] = ir.TensorType(FLOAT)


def _plain(node: ir.Node, signature: Signature, types: dict[ir.Value, ir.TypeProtocol]) -> bool:
    """Whether a node computes tensors of known types from such, and holds no graph."""
    if any(True for _ in node_graphs(node)):
        return False
    operands = [(v, signature.input(at)) for at, v in enumerate(node.inputs) if v is not None]
    operands += [(v, signature.output(at)) for at, v in enumerate(node.outputs) if v.name]
    return all(
        isinstance(types.get(value), ir.TensorType) for value, name in operands if signature.takes_half(name)
    ) and not any(isinstance(types.get(value), ir.SequenceType | ir.OptionalType) for value, _ in operands)


def _choose(node: ir.Node, signature: Signature, found: _Chosen) -> None:
    """Let a node compute in float16: all operands of a type that may be float32 or float16."""
    names = set()
    for position, value in enumerate(node.inputs):
        if value in found.floats and signature.takes_half(signature.input(position)):
            found.slots.add((node, position))
            names.add(signature.input(position))
    to = node.attributes.get("to")
    if node.op_type == "Cast" and to is not None and not to.is_ref() and to.value == FLOAT:
        node.attributes["to"] = ir.AttrInt64("to", int(HALF), doc_string=to.doc_string)
        names.add(signature.output(0))
    for position, out in enumerate(node.outputs):
        if out in found.floats and signature.output(position) in names:
            found.values.add(out)


def _store_halves(graph: ir.Graph, chosen: _Chosen) -> None:
    """Store constants in float16 where nothing else reads them."""
    constants = [v for v in graph.initializers.values() if not v.is_graph_input()]
    constants += [
        node.outputs[0] for node in graph if node.op_type == "Constant" and "value" in node.attributes
    ]
    for value in constants:
        uses = value.uses()
        if value not in chosen.floats or not uses or value.is_graph_output():
            continue
        if all((use.node, use.idx) in chosen.slots for use in uses):
            producer = value.producer()
            if producer is None:
                assert value.const_value is not None
                value.const_value = _half_tensor(value.const_value)
            else:
                old = producer.attributes["value"]
                tensor = _half_tensor(old.as_tensor())
                producer.attributes["value"] = ir.AttrTensor("value", tensor, doc_string=old.doc_string)
            chosen.values.add(value)


def _half_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    made = ir.Tensor(halved(tensor.numpy()), name=tensor.name, doc_string=tensor.doc_string)
    made.metadata_props.update(tensor.metadata_props)
    return made


def _declare(value: ir.Value, dtype: ir.DataType) -> None:
    """Say of which type a value is, where the model says anything of it."""
    if value.type is not None:
        value.type = ir.TensorType(dtype, denotation=value.type.denotation)


@dataclass(frozen=True, eq=False)
class _Casts:
    """The Casts of a model, one for each value and type."""

    taken: set[str]
    made: dict[tuple[ir.Value, ir.DataType], ir.Value] = field(default_factory=dict)

    def of(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """A value in another type; the Cast stands where the value is made."""
        if (value, dtype) not in self.made:
            name = unique_name(f"{value.name}_fp{16 if dtype == HALF else 32}", self.taken)
            node = ir.node("Cast", [value], attributes={"to": int(dtype)}, name=name)
            node.outputs[0].name = name
            home, producer = value.graph, value.producer()
            assert isinstance(home, ir.Graph)
            if producer is not None:
                home.insert_after(producer, node)
            else:
                home.insert_before(home[0], node)
            self.made[value, dtype] = node.outputs[0]
        return self.made[value, dtype]

    def as_output(self, value: ir.Value) -> ir.Value:
        """The float32 form of a graph's output that is made in float16, under the output's name."""
        made = self.of(value, FLOAT)
        name = value.name
        value.name = unique_name(f"{name}_fp16", self.taken)
        made.name = name
        inherit_value(made, value)
        _declare(made, FLOAT)
        value.doc_string = None
        value.metadata_props.clear()
        value.meta.clear()
        return made
