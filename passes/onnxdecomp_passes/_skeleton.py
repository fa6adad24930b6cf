"""A model without its weights: what tools that copy, fold or choke on weights are given instead.

Every large tensor becomes a graph input of the same name, type and shape, and is put back afterwards
from the model that it was taken from. So nothing large is copied, folded, renamed or written to a file,
memory stays small, and models above protobuf's 2 GB limit work as small ones do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxdecomp.graph.traversal import places, slots, unique_name, value_names

LARGE = 1024
"""Elements above which a tensor is a weight, and not a bias, a shape or a normalisation's parameter."""

_PLAIN_INITIALIZERS = 4
"""From this IR version on, initializers need not be graph inputs; those that are can be overridden."""


@dataclass(frozen=True)
class Weight:
    """A tensor that was taken out."""

    tensor: ir.TensorProtocol
    name: str
    nested: bool
    """Whether it stood in a subgraph, and goes back into the one that uses it."""


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A model without weights.

    Attributes:
        model: A clone whose `weights` are graph inputs, after the model's own inputs.
        weights: What was taken out, by the name of the graph input that stands for it.
        inputs: Names of the original's graph inputs, initializers among them included.
    """

    model: ir.Model
    weights: dict[str, Weight] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()


def skeleton(model: ir.Model) -> Skeleton:
    """Take every tensor out that is large, or that whoever runs the model may override.

    Tensors inside functions stay: a function sees only its own inputs.
    """
    clone = model.clone()
    graph = clone.graph
    result = Skeleton(clone, inputs=tuple(v.name or "" for v in graph.inputs))
    overridable = model.ir_version is None or model.ir_version >= _PLAIN_INITIALIZERS
    for value in list(graph.initializers.values()):
        tensor, name = value.const_value, value.name
        assert name is not None
        if tensor is None:
            continue
        given = value.is_graph_input()
        if (given and overridable) or tensor.size > LARGE:
            del graph.initializers[name]
            _become_input(graph, value, tensor)
            result.weights[name] = Weight(tensor, name, nested=False)
        elif given:
            graph.inputs.remove(value)
    _take_nested(result)
    for slot in slots(clone):
        # What little is left is not worth a data file beside a temporary one.
        if isinstance(slot.tensor, ir.ExternalTensor):
            slot.put(ir.Tensor(slot.tensor.numpy().copy(), dtype=slot.tensor.dtype, name=slot.tensor.name))
    for value in (*graph.inputs, *graph.outputs):
        # Some exporters write -1 for a free dimension, and shape inference would calculate with it.
        if value.shape is not None:
            value.shape = ir.Shape([None if isinstance(d, int) and d < 0 else d for d in value.shape])
    if not overridable:
        clone.ir_version = _PLAIN_INITIALIZERS
    return result


def _take_nested(result: Skeleton) -> None:
    """Take out Constant nodes, and what subgraphs store, too."""
    graph = result.model.graph
    taken = value_names(result.model)
    for inner, value, tensor in list(_large_tensors(result.model)):
        nested = inner is not graph
        own = value.name or "weight"
        # A name may be used once in each of several subgraphs.
        name = unique_name(own, taken) if nested else own
        stand_in = ir.Value(name=name)
        _become_input(graph, stand_in, tensor)
        value.replace_all_uses_with(stand_in, replace_graph_outputs=True)
        result.weights[name] = Weight(tensor, own, nested)
        producer = value.producer()
        if producer is None:
            del inner.initializers[own]
        else:
            inner.remove(producer, safe=True)


def put_back(taken: Skeleton, simplified: ir.Model, ir_version: int | None) -> ir.Graph:
    """The graph of `simplified`, which came of the skeleton, with the weights that it still uses.

    Raises:
        ValueError: One of the model's own inputs is gone, or a weight is an input no longer.
    """
    graph = simplified.graph
    arrived = {value.name or "": value for value in graph.inputs}
    graph.inputs.clear()
    for name, weight in taken.weights.items():
        if name not in arrived:
            kind = "input" if name in taken.inputs else "weight"
            raise ValueError(f"the {kind} {name!r} is gone")
        value = arrived[name]
        if value.uses() or value.is_graph_output() or name in taken.inputs:
            _restore(graph, value, weight, keep=name in taken.inputs)
    for name in taken.inputs:
        present = arrived.get(name) or graph.initializers.get(name)
        if present is not None:
            graph.inputs.append(present)
        elif name not in taken.model.graph.initializers:
            raise ValueError(f"the input {name!r} is gone")
    if ir_version is not None and ir_version < _PLAIN_INITIALIZERS:
        listed = set(graph.inputs)
        graph.inputs.extend(v for v in graph.initializers.values() if v not in listed)
    return graph


def _become_input(graph: ir.Graph, value: ir.Value, tensor: ir.TensorProtocol) -> None:
    value.const_value = None
    value.dtype = tensor.dtype
    value.shape = ir.Shape([int(size) for size in tensor.shape.numpy()])
    if not value.is_graph_input():
        graph.inputs.append(value)


def _large_tensors(clone: ir.Model) -> Iterator[tuple[ir.Graph, ir.Value, ir.TensorProtocol]]:
    """Constant nodes of the main graph; Constant nodes and initializers of subgraphs."""
    for place in places(clone):
        if place.function is not None:
            continue
        inner = place.graph
        for node in inner:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and "value" in node.attributes:
                attribute = node.attributes["value"]
                if attribute.is_ref() or attribute.type != ir.AttributeType.TENSOR:
                    continue
                tensor = attribute.as_tensor()
                # An output of a subgraph must be made in the subgraph.
                if tensor.size > LARGE and not node.outputs[0].is_graph_output():
                    yield inner, node.outputs[0], tensor
        if inner is not clone.graph:
            for value in inner.initializers.values():
                stored = value.const_value
                given = value.is_graph_output() or value.is_graph_input()
                if stored is not None and stored.size > LARGE and not given:
                    yield inner, value, stored


def _restore(graph: ir.Graph, value: ir.Value, weight: Weight, keep: bool) -> None:
    home = graph
    if weight.nested:
        users = {use.node.graph for use in value.uses()}
        only = users.pop() if len(users) == 1 else None
        if isinstance(only, ir.Graph):
            home = only
            names = {
                v.name for n in home for v in (*n.inputs, *n.outputs) if v is not None and v is not value
            }
            if weight.name not in names and weight.name not in home.initializers:
                value.name = weight.name
    value.const_value = weight.tensor
    home.register_initializer(value)
