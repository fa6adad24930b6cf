"""check: the model that leaves the pipeline is valid, and has what came in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxdecomp.errors import DefectError
from onnxdecomp.graph import maps
from onnxdecomp.graph.traversal import node_graphs, places
from onnxdecomp.pipeline.base import Interface, Need, Pass, PassContext, PassResult
from onnxdecomp_passes._skeleton import skeleton

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Check(Pass):
    """Raise ModelError if the model is not valid any more; change nothing.

    Checked on the graph itself: values defined before they are used, and names unique. Checked against
    what came into the pipeline: inputs, outputs, opsets and IR version. Then by onnx's checker, without
    weights. Where it objects but ONNX Runtime loads the model, a note says so: there are such models.
    """

    name: ClassVar[str] = "check"
    summary: ClassVar[str] = "Check that the model is valid and has the interface of the one that came in"

    @property
    def needs(self) -> frozenset[Need]:
        """What came in."""
        return frozenset(("interface",))

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        known = context.interface
        for problem in (*_interface(model, known), *_names(model, known), *_dangling(model)):
            raise _bug(problem)
        objection = _objection(model)
        if objection is None:
            return PassResult(model, modified=False)
        refusal = _refusal(model)
        if refusal is not None:
            raise _bug(f"{objection}; {refusal}")
        note = f"onnx's checker objects to the model, which ONNX Runtime loads: {objection}"
        return PassResult(model, modified=False, notes=(note,))


def _bug(problem: str) -> DefectError:
    return DefectError(f"the result is not valid: {problem} (this is a bug in onnxdecomp, please report)")


def _interface(model: ir.Model, came_in: Interface | None) -> Iterator[str]:
    if came_in is None:
        return
    graph = model.graph
    inputs = tuple(v.name for v in graph.inputs if v.name not in graph.initializers)
    outputs = tuple(v.name for v in graph.outputs)
    pairs = (
        ("inputs", came_in.inputs, inputs),
        ("outputs", came_in.outputs, outputs),
        ("opsets", dict(came_in.opsets), dict(model.opset_imports)),
        ("IR version", came_in.ir_version, model.ir_version),
    )
    for what, before, after in pairs:
        if before != after:
            yield f"its {what} were {before} and are {after}"


def _names(model: ir.Model, came_in: Interface | None) -> Iterator[str]:
    count = Counter(node.name for place in places(model) for node in place.graph if node.name)
    allowed = came_in.shared_names if came_in is not None else frozenset()
    for name, times in count.items():
        if times > 1 and name not in allowed:
            yield f"{times} nodes are named {name!r}"
    for place in places(model):
        made = Counter(v.name for node in place.graph for v in node.outputs if v.name)
        made.update(v.name for v in {*place.graph.inputs, *place.graph.initializers.values()} if v.name)
        for name, times in made.items():
            if times > 1:
                yield f"{times} values of one graph are named {name!r}"


def _dangling(model: ir.Model) -> Iterator[str]:
    yield from _undefined(model.graph, set())
    for function in model.functions.values():
        yield from _undefined(function.graph, set())


def _undefined(graph: ir.Graph, outer: set[ir.Value]) -> Iterator[str]:
    defined = {*outer, *graph.inputs, *graph.initializers.values()}
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in defined:
                yield f"node {node.name!r} reads {value.name!r}, which nothing before it defines"
        for _, inner in node_graphs(node):
            yield from _undefined(inner, defined)
        defined.update(node.outputs)
    for value in graph.outputs:
        if value not in defined:
            yield f"nothing defines the output {value.name!r}"


def _objection(model: ir.Model) -> str | None:
    """What onnx's checker says of the model without its weights; None if nothing."""
    import onnx
    import onnx_ir as ir

    proto = ir.to_proto(skeleton(model).model)
    maps.put_back(proto, maps.kept(model))
    standard = [node for node in proto.graph.node if node.domain in ("", "ai.onnx")]
    unknown = [node for node in standard if not onnx.defs.has(node.op_type)]
    if unknown:
        # The checker prints to stdout about experimental operators of old models (Crop, ImageScaler),
        # which ONNX Runtime has; of operators in foreign domains it makes no fuss.
        proto.opset_import.append(onnx.helper.make_opsetid("unchecked", 1))
        for node in unknown:
            node.domain = "unchecked"
    try:
        onnx.checker.check_model(proto, full_check=False)
    except onnx.checker.ValidationError as error:
        return " ".join(str(error).split())[:300]
    return None


def _refusal(model: ir.Model) -> str | None:
    """What ONNX Runtime says of the model without its weights; None if it loads."""
    import onnx_ir as ir
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # What only the packing of weights trips over came in so: the original was not opened with it either.
    options.add_session_config_entry("session.disable_prepacking", "1")
    data = ir.to_proto(skeleton(model).model).SerializeToString()
    try:
        ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        return " ".join(str(error).split())[:300]
    return None
