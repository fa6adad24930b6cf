"""simplify: let onnxsim or onnxscript's optimizer clean the graph up, and believe neither."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from onnxdecomp.errors import UsageError
from onnxdecomp.graph import maps
from onnxdecomp.graph.inherit import inherit_graph, inherit_node, inherit_value, replace_props
from onnxdecomp.graph.traversal import node_graphs, places, unique_name
from onnxdecomp.pipeline.base import Pass, PassContext, PassResult, option
from onnxdecomp.runtime import temporary_files
from onnxdecomp_passes._skeleton import LARGE, put_back, skeleton

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

WORKER = "onnxdecomp_passes._simplify_worker"
_LARGEST = 512 << 20
"""Bytes that a model without its weights may have (what functions hold stays in it)."""
_TOOL_KEYS = ("pkg.onnxscript.", "onnxsim.")
"""What the tools write into metadata of their own accord."""
_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class Simplify(Pass):
    """Run a simplifier in a process of its own and take its result only if it passes the checks.

    The tool sees the model without weights (see _skeleton.py). What comes back must have the same
    inputs, outputs and opsets, must still have the custom operators, and must compute the same on random
    inputs. Where one tool fails the other is tried, and then the model is left as it is; a note says so.
    """

    name: ClassVar[str] = "simplify"
    summary: ClassVar[str] = "Clean the graph up with onnxsim or onnxscript's optimizer, checked"

    tool: Literal["onnxsim", "onnxscript", "none"] = option("onnxsim", "which simplifier to try first")
    timeout_s: float = option(60.0, "seconds that a simplifier may take")

    def __post_init__(self) -> None:
        if self.timeout_s <= 0:
            raise UsageError(f"simplify's timeout_s must be positive, not {self.timeout_s}")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        if self.tool == "none":
            return PassResult(model, modified=False, record={"tool": "none"})
        tools, notes = _tools(model, self.tool)
        for tool in tools:
            try:
                graph = _simplified(model, tool, self.timeout_s)
            except _UnusableError as reason:
                notes.append(f"{tool} could not be used: {reason}")
                continue
            modified = _signature(graph) != _signature(model.graph)
            record: dict[str, object] = {"tool": tool, "nodes_before": len(model.graph)}
            if modified:
                model.graph = graph
            return PassResult(model, modified, tuple(notes), record={**record, "nodes_after": len(graph)})
        notes.append("the model is left as it is")
        return PassResult(model, modified=False, notes=tuple(notes), record={"tool": "none"})


class _UnusableError(Exception):
    """Why a tool's result is not taken."""


def _tools(model: ir.Model, wanted: str) -> tuple[list[str], list[str]]:
    """The tools to try in order, and notes about those that are not."""
    if wanted == "onnxscript":
        return ["onnxscript"], []
    if model.functions:
        reason = "the model has functions of its own, which onnxsim may remove"
    elif any(True for node in model.graph for _ in node_graphs(node)):
        reason = "the model has control flow, which onnxsim would unroll"
    else:
        return ["onnxsim", "onnxscript"], []
    return ["onnxscript"], [f"{reason}; onnxscript's optimizer is used in its place"]


def _simplified(model: ir.Model, tool: str, timeout_s: float) -> ir.Graph:
    """The graph of the simplified model, with the weights, names and metadata of the original."""
    import onnx_ir as ir

    bare = skeleton(model)
    try:
        proto = ir.to_proto(bare.model)
        maps.put_back(proto, maps.kept(model))
        data = proto.SerializeToString()
    except Exception as error:  # protobuf's own limit raises what its version pleases
        raise _UnusableError(f"the graph cannot be written without its weights: {error}") from error
    if len(data) > _LARGEST:
        raise _UnusableError(f"the graph has {len(data) >> 20} MB without its weights")
    try:
        made = _parse(_run_worker(tool, data, timeout_s))
        maps.take_out(made)
        result = ir.from_proto(made)
        graph = put_back(bare, result, model.ir_version)
    except ValueError as error:
        raise _UnusableError(str(error)) from error
    _check(model, result)
    _restore(model, graph)
    return graph


def _run_worker(tool: str, data: bytes, timeout_s: float) -> bytes:
    """What the worker makes of a serialised model."""
    with temporary_files.folder() as folder:
        source, target, log = (folder / name for name in ("in.onnx", "out.onnx", "log"))
        source.write_bytes(data)
        # The worker must find what this process found, however its path was made.
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-m", WORKER, tool, str(source), str(target)]
        with log.open("wb") as stderr:
            try:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    env=environment,
                    timeout=timeout_s,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise _UnusableError(f"it took more than {timeout_s:g} s") from error
            except OSError as error:
                raise _UnusableError(f"it could not be started: {error}") from error
        if done.returncode < 0:
            raise _UnusableError(f"it crashed (signal {-done.returncode})")
        if done.returncode != 0 or not target.is_file():
            lines = log.read_text(errors="replace").strip().splitlines() or ["it failed without a word"]
            raise _UnusableError(lines[-1][:300])
        return target.read_bytes()


def _parse(data: bytes) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.load_from_string(data)
    except Exception as error:  # protobuf's DecodeError, whichever protobuf it is
        raise _UnusableError("what it wrote is not an ONNX model") from error


def _check(model: ir.Model, result: ir.Model) -> None:
    """Refuse a result that is no stand-in for the model."""
    graph = result.graph
    required = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    arrived = [value for value in graph.inputs if value.name not in graph.initializers]
    for kind, before, after in (
        ("inputs", required, arrived),
        ("outputs", model.graph.outputs, graph.outputs),
    ):
        if [v.name for v in before] != [v.name for v in after]:
            raise _UnusableError(f"the {kind} are not the same in its result")
        for one, two in zip(before, after, strict=True):
            if one.type is not None and two.type is not None and one.type != two.type:
                raise _UnusableError(f"the type of {one.name!r} is not the same in its result")
    for domain, version in result.opset_imports.items():
        if _opset(model, domain) not in (version, None) or (
            _opset(model, domain) is None and any(node.domain == domain for node in graph)
        ):
            raise _UnusableError(f"its result needs opset {version} of {domain or 'ai.onnx'}")
    lost = _custom(model) - _custom(result)
    if lost:
        raise _UnusableError(
            f"operators of other domains are gone from its result: {', '.join(sorted(lost))}"
        )
    for operator in _custom(result) - _custom(model):
        raise _UnusableError(f"its result has an operator that the model did not: {operator}")


def _opset(model: ir.Model, domain: str) -> int | None:
    for name in _STANDARD if domain in _STANDARD else (domain,):
        if name in model.opset_imports:
            return model.opset_imports[name]
    return None


def _custom(model: ir.Model) -> set[str]:
    nodes = (node for place in places(model) if place.function is None for node in place.graph)
    return {f"{node.domain}::{node.op_type}" for node in nodes if node.domain not in _STANDARD}


def _restore(model: ir.Model, graph: ir.Graph) -> None:
    """Give the graph what tools lose or make up: names, metadata, doc strings and declared shapes."""
    old = model.graph
    replace_props(graph.opset_imports, old.opset_imports)
    interface = {value.name or "": value for value in (*old.inputs, *old.outputs)}
    for value in (*graph.inputs, *graph.outputs):
        before = interface.get(value.name or "")
        if before is not None:
            inherit_value(value, before)
    for name, value in graph.initializers.items():
        if (before := old.initializers.get(name)) is not None:
            inherit_value(value, before)
            if _tensor_signature(value.const_value) == _tensor_signature(before.const_value):
                value.const_value = before.const_value  # with what is written about it
    _restore_nodes(old, graph)
    inherit_graph(graph, old)
    functions = {node.name for f in model.functions.values() for node in _nodes(f.graph) if node.name}
    _part_names(graph, functions, allowed={node.name for node in _nodes(old)})


def _restore_nodes(old: ir.Graph, graph: ir.Graph) -> None:
    by_name = {node.name: node for node in _nodes(old) if node.name}
    by_output = {_first_output(node): node for node in _nodes(old)}
    values = {value.name: value for node in _nodes(old) for value in node.outputs if value.name}
    taken = {node.name for node in _nodes(graph)}
    for node in _nodes(graph):
        before = by_name.get(node.name or "") or by_output.get(_first_output(node))
        if before is not None and before.op_type == node.op_type:
            # A tool may rename a node as it rewrites it.
            if before.name and before.name not in taken:
                node.name = before.name
                taken.add(node.name)
            inherit_node(node, before)
        else:
            kept = {k: v for k, v in node.metadata_props.items() if not k.startswith(_TOOL_KEYS)}
            replace_props(node.metadata_props, kept)
        for value in node.outputs:
            known = values.get(value.name or "")
            if not value.is_graph_output():
                # What a tool infers may be wrong, and would then be wrong in the file.
                value.shape = None
            if known is not None:
                inherit_value(value, known)
            else:
                value.metadata_props.clear()


def _part_names(graph: ir.Graph, taken: set[str], allowed: set[str | None]) -> None:
    """Rename nodes that a tool made under a name that another node has, in whatever subgraph."""
    names = taken | {node.name for node in _nodes(graph) if node.name}
    for node in _nodes(graph):
        if node.name and node.name in taken and node.name not in allowed:
            node.name = unique_name(node.name, names)
        taken.add(node.name or "")


def _nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        yield node
        for _, inner in node_graphs(node):
            yield from _nodes(inner)


def _first_output(node: ir.Node) -> str | None:
    return next((value.name for value in node.outputs if value.name), None)


def _signature(graph: ir.Graph) -> object:
    """What makes two graphs the same to a reader: nodes, wiring, constants."""
    stored = {name: _tensor_signature(value.const_value) for name, value in graph.initializers.items()}
    return tuple(_node_signature(node) for node in graph), stored


def _node_signature(node: ir.Node) -> object:
    operands = tuple(None if value is None else value.name for value in node.inputs)
    results = tuple(value.name for value in node.outputs)
    attributes = {name: _attribute_signature(node.attributes[name]) for name in node.attributes}
    return node.domain, node.op_type, node.name, operands, results, attributes


def _attribute_signature(attribute: ir.Attr) -> object:
    import onnx_ir as ir

    if attribute.is_ref():
        return attribute.ref_attr_name
    if attribute.type == ir.AttributeType.GRAPH:
        return _signature(attribute.as_graph())
    if attribute.type == ir.AttributeType.GRAPHS:
        return [_signature(inner) for inner in attribute.as_graphs()]
    if attribute.type == ir.AttributeType.TENSOR:
        return _tensor_signature(attribute.as_tensor())
    return ir.to_proto(attribute).SerializeToString(deterministic=True)


def _tensor_signature(tensor: ir.TensorProtocol | None) -> object:
    import onnx_ir as ir

    if tensor is None or tensor.size > LARGE:
        return id(tensor)  # never copied
    if tensor.dtype == ir.DataType.STRING:
        return tensor.numpy().tolist()
    return tensor.dtype, tuple(tensor.shape), tensor.tobytes()
