"""Names that a tool cannot collide with: a model under neutral ones, and its own given back afterwards.

Converters derive names from those that they find (`x_QuantizeLinear_Output`, `b_quantized`), which the model
may use itself; and they need names where there are none, different ones in all graphs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxdecomp.graph.inherit import inherit_graph, inherit_model, inherit_node, inherit_value
from onnxdecomp.graph.tensors import named
from onnxdecomp.graph.traversal import node_names, places, unique_name, value_names

_OURS = re.compile(r"[vn]\d{6,}")


@dataclass(frozen=True, eq=False)
class Neutral:
    """A model under neutral names; functions keep theirs, which nobody else sees.

    Attributes:
        model: The copy. An output of its main graph that no node makes is an Identity's.
        original: What it was made from.
        values, nodes: Those of `original`, by their names in the copy.
        copied: What the outputs made by such an Identity are copies of, both by their names in the copy.
    """

    model: ir.Model
    original: ir.Model
    values: dict[str, ir.Value] = field(default_factory=dict)
    nodes: dict[str, ir.Node] = field(default_factory=dict)
    copied: dict[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, str]:
        """The names of the inputs in the copy, by their own."""
        pairs = zip(self.original.graph.inputs, self.model.graph.inputs, strict=True)
        return {str(old.name): str(new.name) for old, new in pairs}

    def renamed(self, names: Iterable[str], outputs: Iterable[str] = ()) -> set[str]:
        """The main graph's nodes of these names, and those that make these values, in the copy."""
        wanted, made = set(names), set(outputs)
        main = self.original.graph
        return {
            name
            for name, node in self.nodes.items()
            if node.graph is main and (node.name in wanted or any(v.name in made for v in node.outputs))
        }

    def restore(self, made: ir.Model) -> None:
        """Give what a tool made of the copy the names of the original, and what is written there, in place.

        Names that the tool derived get the original's in the place of the neutral ones.
        """
        inherit_model(made, self.original)
        self._uncopy(made.graph)
        values = value_names(self.original) | value_names(made)
        nodes = node_names(self.original) | node_names(made)
        for place in list(places(made)):
            if place.function is not None:
                continue
            graph = place.graph
            for value in dict.fromkeys((*graph.inputs, *graph.initializers.values())):
                self._restore_value(value, values)
            for node in graph:
                for value in node.outputs:
                    if value.name:
                        self._restore_value(value, values)
                if (before := self.nodes.get(node.name or "")) is not None:
                    node.name = before.name
                    if node.op_type == before.op_type:
                        inherit_node(node, before)
                elif node.name:
                    node.name = unique_name(self._derived(node.name), nodes)
        inherit_graph(made.graph, self.original.graph)

    def _restore_value(self, value: ir.Value, taken: set[str]) -> None:
        before = self.values.get(value.name or "")
        if not value.is_graph_output() and value.const_value is None:
            # What the tool's shape inference has found need not be in the file.
            value.shape = value.type = None
        if before is not None:
            value.name = before.name
            inherit_value(value, before)
        else:
            value.name = unique_name(self._derived(str(value.name)), taken)

    def _derived(self, name: str) -> str:
        known = {**self.nodes, **self.values}
        return _OURS.sub(lambda found: str(getattr(known.get(found[0]), "name", None) or found[0]), name)

    def _uncopy(self, graph: ir.Graph) -> None:
        """Make an output the input or initializer again that it is a copy of."""
        sources = {value.name: value for value in (*graph.inputs, *graph.initializers.values())}
        for position, output in enumerate(list(graph.outputs)):
            source, node = sources.get(self.copied.get(output.name or "")), output.producer()
            if source is not None and node is not None:
                graph.outputs[position] = source
                graph.remove(node, safe=True)


def neutral(model: ir.Model) -> Neutral:
    """A copy under neutral names; the model stays as it is."""
    made = Neutral(model.clone(), model)
    count = 0
    for old, new in zip(places(model), places(made.model), strict=True):
        if old.function is not None:
            continue
        for before, value in zip(_values(old.graph), _values(new.graph), strict=True):
            if before.name:
                count += 1
                if value.const_value is not None:
                    value.const_value = named(value.const_value, f"v{count:06}")
                value.name = f"v{count:06}"
                made.values[value.name] = before
        for known, renamed in zip(old.graph, new.graph, strict=True):
            count += 1
            renamed.name = f"n{count:06}"
            made.nodes[renamed.name] = known
    graph = made.model.graph
    for position, output in enumerate(list(graph.outputs)):
        if output.producer() is None:
            count += 1
            node = ir.node("Identity", [output], name=f"n{count:06}")
            node.outputs[0].name = f"v{count:06}"
            node.outputs[0].type, node.outputs[0].shape = output.type, output.shape
            graph.append(node)
            graph.outputs[position] = node.outputs[0]
            made.copied[node.outputs[0].name] = str(output.name)
    return made


def _values(graph: ir.Graph) -> list[ir.Value]:
    listed = dict.fromkeys((*graph.inputs, *graph.initializers.values()))
    return [*listed, *(value for node in graph for value in node.outputs)]
