"""One model of several, of which a run takes one: many are timed in one session.

On a graphics card a session costs far more than what is timed in it. ONNX Runtime's trace of kernels is no
way around that: without a build of its own it tells when kernels were launched there, and not how long they
took. So the models become the leaves of a tree of `If` nodes, whose conditions are inputs: every run takes
as many of them, and what they cost goes with the frame that is taken off. A run that is recorded (CUDA
graphs) has no branches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxdecomp.core.layer import Array
from onnxdecomp.latency.chain_model import IR_VERSION, OPSET, SerializedModel, noise

if TYPE_CHECKING:
    import onnx


def branched(models: Sequence[SerializedModel]) -> tuple[bytes, list[dict[str, Array]]]:
    """The model whose branches are these, serialised; and what it is fed to run each of them.

    Args:
        models: Of one output each, as `chain_model` makes them. Inputs of equal shapes and types are one.
    """
    import onnx
    from onnx import helper

    inputs: dict[tuple[tuple[int, ...], str], onnx.ValueInfoProto] = {}
    leaves, opsets = [], dict[str, int]()
    for index, model in enumerate(models):
        proto = onnx.load_model_from_string(model.model)
        opsets |= {opset.domain: opset.version for opset in proto.opset_import}
        renamed = {}
        for value in proto.graph.input:
            shape, dtype = model.inputs[value.name]
            own = inputs.setdefault((shape, str(dtype)), _named(value, f"x{len(inputs)}"))
            renamed[value.name] = own.name
        leaves.append(_leaf(proto.graph, model, renamed, f"b{index}"))
    depth = math.ceil(math.log2(max(len(models), 2)))
    filler = min(leaves, key=lambda leaf: leaf.ByteSize())
    leaves += [filler] * (2**depth - len(leaves))  # so that all are equally deep
    top = _tree(leaves, 0)
    conditions = [helper.make_tensor_value_info(f"take{k}", onnx.TensorProto.BOOL, []) for k in range(depth)]
    graph = helper.make_graph(list(top.node), "branches", [*inputs.values(), *conditions], list(top.output))
    imports = [helper.make_opsetid(*opset) for opset in ({"": OPSET} | opsets).items()]
    made = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
    common = {value.name: noise(shape).astype(np.dtype(dtype)) for (shape, dtype), value in inputs.items()}
    feeds = [common | _taking(index, depth) for index in range(len(models))]
    return bytes(made.SerializeToString()), feeds


def _taking(index: int, depth: int) -> dict[str, Array]:
    """The conditions under which a branch is taken: the digits of its number, the highest first."""
    return {f"take{k}": np.array(not index >> (depth - 1 - k) & 1) for k in range(depth)}


def _tree(leaves: Sequence[onnx.GraphProto], depth: int) -> onnx.GraphProto:
    from onnx import helper

    if len(leaves) == 1:
        return leaves[0]
    middle = len(leaves) // 2
    then, other = _tree(leaves[:middle], depth + 1), _tree(leaves[middle:], depth + 1)
    output = _named(then.output[0], f"of_{then.output[0].name}")
    output.type.tensor_type.ClearField("shape")  # each has its own
    node = helper.make_node("If", [f"take{depth}"], [output.name], then_branch=then, else_branch=other)
    return helper.make_graph([node], output.name, [], [output])


def _leaf(
    graph: onnx.GraphProto, model: SerializedModel, renamed: dict[str, str], prefix: str
) -> onnx.GraphProto:
    """The graph as a branch: its inputs come from outside, and its names are its own.

    Its weights lie in it, where ONNX Runtime packs them as those of a whole model.
    """
    import onnx
    from onnx import helper, numpy_helper

    def name(own: str) -> str:
        return renamed.get(own) or (f"{prefix}_{own}" if own else "")

    nodes, weights = [], []
    for node in graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = name(node.name)
        copy.input[:] = map(name, node.input)
        copy.output[:] = map(name, node.output)
        nodes.append(copy)
    for tensor in graph.initializer:
        if tensor.name in model.weights:
            weights.append(numpy_helper.from_array(model.weights[tensor.name], name(tensor.name)))
        else:
            weights.append(_named(tensor, name(tensor.name)))
    known = [_named(value, name(value.name)) for value in graph.value_info]
    outputs = [_named(value, name(value.name)) for value in graph.output]
    return helper.make_graph(nodes, prefix, [], outputs, weights, value_info=known)


def _named(proto: Any, name: str) -> Any:
    """A copy by another name."""
    copy = type(proto)()
    copy.CopyFrom(proto)
    copy.name = name
    return copy
