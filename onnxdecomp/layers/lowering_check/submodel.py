"""Small models of a few nodes, run in ONNX Runtime without a copy of their weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.layer import Array
from onnxdecomp.graph.attributes import as_attributes
from onnxdecomp.layers.replace import Rewritten


def of_new_nodes(
    rewritten: Rewritten,
    given: Sequence[tuple[ir.Value, Array]],
    kind: ir.DataType,
    opset: int,
    ir_version: int,
) -> ir.Model:
    """A model of the layer's new nodes only, with their constants and the given values as inputs."""
    inputs = [_as_input(source.name or "", array) for source, array in given]
    mapped = {id(source): value for (source, _), value in zip(given, inputs, strict=True)}
    by_name = {value.name: value for value in inputs}
    initializers = []
    nodes = []
    for node in _with_quantizers(rewritten.nodes):
        for operand in node.inputs:
            if operand is not None and id(operand) not in mapped:
                tensor = constant(operand)
                if tensor is None:  # rewriting the layer before has given it a new value since
                    mapped[id(operand)] = by_name[operand.name]
                    continue
                stored = ir.Value(
                    name=operand.name,
                    const_value=tensor,
                    type=ir.TensorType(tensor.dtype),
                    shape=ir.Shape(list(tensor.shape)),  # type: ignore[arg-type]
                )
                mapped[id(operand)] = stored
                initializers.append(stored)
        copy = ir.node(
            node.op_type,
            [None if v is None else mapped[id(v)] for v in node.inputs],
            # The kernel may round its activation where this allows it, which is not the nodes' error.
            attributes={name: attr for name, attr in node.attributes.items() if name != "accuracy_level"},
            domain=node.domain,
            num_outputs=len(node.outputs),
            name=node.name,
        )
        for out, own in zip(node.outputs, copy.outputs, strict=True):
            own.name = out.name
            mapped[id(out)] = own
        nodes.append(copy)
    outputs = _typed(nodes[-1], kind)
    return _model(inputs, outputs, nodes, initializers, opset, ir_version)


def _with_quantizers(nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """The nodes, behind those that quantize the activation for other layers as well."""
    own, found = set(nodes), list[ir.Node]()
    for operand in (operand for node in nodes for operand in node.inputs if operand is not None):
        above = operand.producer()
        if above is not None and above.op_type == "DynamicQuantizeLinear" and above not in own:
            own.add(above)
            found.append(above)
    return [*found, *nodes]


def _typed(node: ir.Node, kind: ir.DataType) -> list[ir.Value]:
    """The node's outputs that are not left out, as a model's outputs."""
    outputs = [out for out in node.outputs if out.name]
    for out in outputs:
        out.type = ir.TensorType(kind)
    return outputs


def constant(value: ir.Value) -> ir.TensorProtocol | None:
    """The numbers behind a value, also behind other nodes; None where it is computed."""
    from onnxdecomp.graph.constants import Constant, resolve

    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return tensor
    constant = resolve(value, ir_version=3)
    return ir.tensor(constant.array) if isinstance(constant, Constant) else None


def _model(
    inputs: list[ir.Value],
    outputs: list[ir.Value],
    nodes: list[ir.Node],
    initializers: list[ir.Value],
    opset: int,
    ir_version: int,
) -> ir.Model:
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=nodes,
        initializers=initializers,
        opset_imports={"": opset, **{node.domain: 1 for node in nodes if node.domain}},
        name="layer",
    )
    return ir.Model(graph, ir_version=max(ir_version, 4))


def run(model: ir.Model, feeds: dict[str, Array]) -> Array:
    """The model's output; several outputs flattened, one after the other.

    Raises:
        ModelError: ONNX Runtime does not take the model.
    """
    from onnxdecomp.runtime import session
    from onnxdecomp.runtime.shared_weights import share_weights

    weights = share_weights(model)
    opened = session.open_session(
        ir.to_proto(model).SerializeToString(), low_memory=True, integers=False, weights=weights
    )
    outputs = session.run(opened, feeds)
    return outputs[0] if len(outputs) == 1 else np.concatenate([np.ravel(out) for out in outputs])


def run_one(
    domain: str,
    op_type: str,
    attributes: Mapping[str, Any],
    operands: Sequence[tuple[str, Array] | None],
    given: Collection[str],
    outputs: Sequence[str],
    opset: int,
    ir_version: int,
) -> Array:
    """One operator in ONNX Runtime; the operands named in `given` are inputs, the others constants."""
    made = {
        name: _as_input(name, array) if name in given else _as_constant(name, array)
        for name, array in filter(None, operands)
    }
    node = ir.node(
        op_type,
        [None if operand is None else made[operand[0]] for operand in operands],
        # An empty list has no type, and says as much as no attribute.
        attributes=as_attributes({name: value for name, value in attributes.items() if value != ()}),
        domain=domain,
        outputs=[ir.Value(name=name) for name in outputs],
        name="dense",
    )
    inputs = [value for name, value in made.items() if name in given]
    constants = [value for name, value in made.items() if name not in given]
    floats = next(array.dtype for _, array in filter(None, operands) if array.dtype.kind == "f")
    typed = _typed(node, ir.DataType.from_numpy(floats))
    model = _model(inputs, typed, [node], constants, opset, ir_version)
    feeds = {name: array for name, array in filter(None, operands) if name in given}
    return run(model, feeds).astype(np.float64)


def _as_input(name: str, array: Array) -> ir.Value:
    return ir.Value(
        name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=ir.Shape(array.shape)
    )


def _as_constant(name: str, array: Array) -> ir.Value:
    value = _as_input(name, array)
    value.const_value = ir.tensor(np.ascontiguousarray(array), name=name)
    return value
