"""Walking a model: all its graphs, the names taken in them, and the tensors that they store."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True, eq=False)
class Place:
    """A graph of a model and where it stands.

    Attributes:
        path: "" for the main graph, "If_3/then_branch" for a subgraph (nested ones joined by "/"),
            "function:domain::name" or "function:domain::name::overload" for a function's body.
        graph: The nodes; for a function the graph of its body.
        function: The function that the graph belongs to, also for subgraphs inside its body, or None.
    """

    path: str
    graph: ir.Graph
    function: ir.Function | None = None


def places(model: ir.Model) -> Iterator[Place]:
    """Every graph: the main one, the functions' bodies, and each directly before its subgraphs.

    A node without a name counts as "<op type>_<its position>" in the path of its subgraphs.
    """
    yield from _below(Place("", model.graph))
    for function in model.functions.values():
        name = "::".join(part for part in (function.domain, function.name, function.overload) if part)
        yield from _below(Place(f"function:{name}", function.graph, function))


def _below(place: Place) -> Iterator[Place]:
    yield place
    for position, node in enumerate(tuple(place.graph)):
        for key, graph in node_graphs(node):
            name = node.name or f"{node.op_type}_{position}"
            path = "/".join(part for part in (place.path, name, key) if part)
            yield from _below(Place(path, graph, place.function))


def node_graphs(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    """The subgraphs in a node's attributes, with the attributes' names."""
    for key, attr in node.attributes.items():
        if attr.is_ref():
            continue
        if attr.type == ir.AttributeType.GRAPH:
            yield key, attr.as_graph()
        elif attr.type == ir.AttributeType.GRAPHS:
            for index, graph in enumerate(attr.as_graphs()):
                yield f"{key}_{index}", graph


def operands(node: ir.Node) -> Iterator[ir.Value]:
    """The values that a node reads: its inputs, and what the nodes of its subgraphs read."""
    for value in node.inputs:
        if value is not None:
            yield value
    for _, graph in node_graphs(node):
        for inner in graph:
            yield from operands(inner)


def upstream(
    graph: ir.Graph,
    values: Iterable[ir.Value],
    known: Collection[ir.Value] = (),
    passes: Callable[[ir.Node], bool] = lambda _: True,
) -> set[ir.Node]:
    """The nodes of a graph that compute these values, from values that are known or are inputs.

    Args:
        graph: The graph.
        values: Of it.
        known: Where the walk ends.
        passes: Of a node, whether it counts and the walk goes on through it.
    """
    found: set[ir.Node] = set()
    todo = list(values)
    while todo:
        value = todo.pop()
        node = value.producer()
        # What a subgraph computes for itself is no node of the graph around it.
        if node is None or value in known or node in found or node.graph is not graph:
            continue
        if passes(node):
            found.add(node)
            todo += operands(node)
    return found


def value_names(model: ir.Model) -> set[str]:
    """The names of all values in all graphs and functions."""
    names: set[str] = set()
    for place in places(model):
        graph = place.graph
        found = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
        for node in graph:
            found += [*node.outputs, *(value for value in node.inputs if value is not None)]
        names.update(value.name for value in found if value.name)
    return names


def node_names(model: ir.Model) -> set[str]:
    """The names of all nodes in all graphs and functions."""
    return {node.name for place in places(model) for node in place.graph if node.name}


def unique_name(wanted: str, taken: set[str]) -> str:
    """`wanted`, or `wanted_1`, `wanted_2`, … if it is taken; the result is added to `taken`.

    Names of values must be unique over nested graphs, so `taken` starts as `value_names(model)`.
    """
    name, count = wanted, 0
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    taken.add(name)
    return name


@dataclass(frozen=True, eq=False)
class Slot:
    """A place that stores a tensor: an initializer or an attribute; `put` stores another there."""

    tensor: ir.TensorProtocol
    put: Callable[[ir.TensorProtocol], None]


def slots(model: ir.Model) -> Iterator[Slot]:
    """Every stored tensor, in a stable order: graph by graph, initializers, then attributes."""
    for place in places(model):
        for value in place.graph.initializers.values():
            if value.const_value is not None:
                yield Slot(value.const_value, _initializer_setter(value))
        for node in place.graph:
            for key, attr in tuple(node.attributes.items()):
                if not attr.is_ref() and attr.type == ir.AttributeType.TENSOR:
                    # Not as_tensor(): its check of the protocol takes longer than everything else here.
                    yield Slot(attr.value, _attribute_setter(node, key))


def _initializer_setter(value: ir.Value) -> Callable[[ir.TensorProtocol], None]:
    def put(tensor: ir.TensorProtocol) -> None:
        value.const_value = tensor

    return put


def _attribute_setter(node: ir.Node, key: str) -> Callable[[ir.TensorProtocol], None]:
    def put(tensor: ir.TensorProtocol) -> None:
        doc = node.attributes[key].doc_string
        node.attributes[key] = ir.Attr(key, ir.AttributeType.TENSOR, tensor, doc_string=doc)

    return put
