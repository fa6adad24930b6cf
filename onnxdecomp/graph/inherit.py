"""What a user wrote about a model, its graphs, nodes and values, given to those that stand in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import onnx_ir as ir

from onnxdecomp.graph.load import inherit
from onnxdecomp.graph.traversal import node_graphs

_ORIGIN = "onnxdecomp.origin"


def inherit_value(new: ir.Value, old: ir.Value) -> None:
    """Give a value the doc string, metadata, quantization annotation, type and shape of the one before it.

    A graph's outputs are what its author has said to callers: a shape that is left open stays so.
    """
    new.type = new.type if old.type is None else old.type
    if old.shape is not None or (new.is_graph_output() and old.is_graph_output()):
        new.shape = old.shape
    new.doc_string = old.doc_string
    replace_props(new.metadata_props, old.metadata_props)
    # Here onnx_ir keeps the quantization annotation, and `infer_shapes` what was declared.
    new.meta.clear()
    new.meta.update(old.meta)


def inherit_node(new: ir.Node, old: ir.Node) -> None:
    """Give a node the doc strings, its attributes' too, metadata and devices of the one before it."""
    new.doc_string = old.doc_string
    replace_props(new.metadata_props, old.metadata_props)
    new.device_configurations = old.device_configurations
    for key, attr in old.attributes.items():
        now = new.attributes.get(key)
        if attr.doc_string and now is not None and not now.doc_string and now.type == attr.type:
            now.doc_string = attr.doc_string


def inherit_graph(new: ir.Graph, old: ir.Graph) -> None:
    """Give a graph and those inside it the names, doc strings, metadata and source of what they were.

    Subgraphs belong to each other where the nodes that hold them have one name.
    """
    new.name, new.doc_string = old.name, old.doc_string
    replace_props(new.metadata_props, old.metadata_props)
    new.meta.update(old.meta)
    before = {(node.name, key): graph for node, key, graph in _inner(old)}
    for node, key, graph in _inner(new):
        if node.name and (found := before.get((node.name, key))) is not None:
            inherit_graph(graph, found)


def inherit_model(new: ir.Model, old: ir.Model) -> None:
    """Give a model the header, metadata and source of the one before it, and the opsets that it lacks."""
    inherit(new, old)
    new.ir_version = old.ir_version
    new.producer_name, new.producer_version = old.producer_name, old.producer_version
    new.doc_string, new.domain, new.model_version = old.doc_string, old.domain, old.model_version
    new.device_configurations = old.device_configurations
    replace_props(new.metadata_props, old.metadata_props)
    new.meta.update(old.meta)
    for domain, version in old.opset_imports.items():
        new.opset_imports.setdefault(domain, version)


def replace_props(target: MutableMapping[str, Any], source: Mapping[str, Any]) -> None:
    """Make `target` equal to `source`, in place."""
    if target != source:
        target.clear()
        target.update(source)


def _inner(graph: ir.Graph) -> Iterator[tuple[ir.Node, str, ir.Graph]]:
    for node in graph:
        for key, inner in node_graphs(node):
            yield node, key, inner


def copied(copy: ir.Value, original: ir.Value) -> None:
    """Have a value say that it was another one as the model came in."""
    copy.meta[_ORIGIN] = origin(original)


def origin(value: ir.Value) -> str:
    """The name that a value had before there were copies of it."""
    return str(value.meta.get(_ORIGIN, value.name))
