"""The constant behind a value: which numbers an operator's weight has, however the graph stores them."""

from __future__ import annotations

import math
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from onnxdecomp.core.layer import Array
from onnxdecomp.graph.tensors import named
from onnxdecomp.graph.traversal import node_graphs

MAX_BYTES = 2 << 30
"""Larger results are not evaluated: they would fill the memory to no purpose."""

EVALUATED = frozenset(
    """
    Abs Add Cast CastLike Clip Concat ConstantOfShape DequantizeLinear Div Dropout Exp Expand Flatten
    Floor Gather Gemm Identity Log MatMul Max Min Mul Neg Pow QuantizeLinear Reciprocal ReduceMax
    ReduceMean ReduceProd ReduceSum Reshape Round Shape Sign Size Slice Split Sqrt Squeeze Sub Tile
    Transpose Unsqueeze Where
    """.split()  # noqa: SIM905 - a column of 45 strings is no easier to read
)
"""Operators of the ONNX domain that are evaluated on constants: deterministic and cheap.

Dropout only as it is in inference, where it is the identity.
"""

OVERRIDABLE = (
    "an initializer that is also a graph input may be overridden; --freeze-initializers treats it as constant"
)


@dataclass(frozen=True, eq=False)
class Constant:
    """The numbers behind a value.

    Attributes:
        array: The numbers; bfloat16, float8 and float4 as float32, 4-bit and 2-bit integers as int8 or
            uint8. Read-only where it maps the file.
        dtype: Name of the element type that the value has in the graph ("bfloat16", "float32", …).
        root: The value that stores the numbers: an initializer or the output of a Constant.
        via: The types of the operators passed on the way from the root to the value.
    """

    array: Array
    dtype: str
    root: ir.Value
    via: frozenset[str] = frozenset()


Memo: TypeAlias = MutableMapping[ir.Value, "Constant | str"]


def resolve(
    value: ir.Value,
    *,
    ir_version: int,
    freeze: bool = False,
    opset: int | None = None,
    memo: Memo | None = None,
) -> Constant | str:
    """The constant behind a value, or the reason why there is none.

    Initializers (of the value's own graph or captured from an outer one), Constant nodes, and what the
    operators of `EVALUATED` make of them. An initializer that is also a graph input counts as constant
    before IR version 4 only (ONNX Runtime cannot override it there), or with `freeze`.

    Args:
        value: The operand.
        ir_version: The model's.
        freeze: Treat overridable initializers as constants.
        opset: Version of the ONNX domain; by default what the value's graph imports. Subgraphs do not
            record theirs, so give it for them.
        memo: What was resolved before; filled. Only for one model that does not change in between.
    """
    found = _resolve(value, _Rules(ir_version, freeze, opset), {} if memo is None else memo)
    if isinstance(found, str):
        return found
    return Constant(_plain(found.array), found.dtype, found.root, found.via)


@dataclass(frozen=True)
class _Rules:
    ir_version: int
    freeze: bool
    opset: int | None


def _resolve(value: ir.Value, rules: _Rules, memo: Memo) -> Constant | str:
    """What the memo then has of the value: operands come before what is computed from them.

    Not by calls within calls: exporters write chains of thousands of nodes.
    """
    todo, opened = [value], set[ir.Value]()
    while todo:
        last = todo[-1]
        node = last.producer()
        if last in memo:
            todo.pop()
        elif node is None:
            memo[last] = _initializer(last, rules)
        elif node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            memo[last] = _constant_node(last, node)
        elif (reason := _not_evaluated(last, node)) is not None:
            memo[last] = reason
        elif not (missing := [v for v in node.inputs if v is not None and v not in memo]):
            memo[last] = _computed(last, node, rules, memo)
        elif last in opened:
            memo[last] = f"its {node.op_type} depends on its own output"
        else:
            opened.add(last)
            todo += missing
    return memo[value]


def _initializer(value: ir.Value, rules: _Rules) -> Constant | str:
    if not value.is_initializer() or value.const_value is None:
        return "it is an input" if value.is_graph_input() else "nothing in the model defines it"
    if value.is_graph_input() and rules.ir_version >= 4 and not rules.freeze:
        return OVERRIDABLE
    return _stored(value, value.const_value)


def _constant_node(value: ir.Value, node: ir.Node) -> Constant | str:
    attr = next(iter(node.attributes.values()), None)
    if attr is None or attr.is_ref():
        return "a Constant whose value is a parameter of the function"
    match attr.name:
        case "value":
            return _stored(value, attr.as_tensor())
        case "value_float" | "value_floats":
            return _made(value, np.asarray(attr.value, np.float32))
        case "value_int" | "value_ints":
            return _made(value, np.asarray(attr.value, np.int64))
    return f"a Constant with {attr.name}"


def _stored(value: ir.Value, tensor: ir.TensorProtocol) -> Constant | str:
    if tensor.dtype == ir.DataType.STRING:
        return "it holds strings"
    return _made(value, tensor.numpy())


def _made(value: ir.Value, array: Array) -> Constant:
    return Constant(array, array.dtype.name, value)


def _not_evaluated(value: ir.Value, node: ir.Node) -> str | None:
    """Why the node is not evaluated whatever its operands are."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in EVALUATED or not node.inputs:
        return f"it is computed by {node.op_type}"
    if node.op_type == "Dropout" and (len(node.inputs) > 2 or value is not node.outputs[0]):
        return "it is computed by Dropout in training mode"
    return None


def _computed(value: ir.Value, node: ir.Node, rules: _Rules, memo: Memo) -> Constant | str:
    op_type = node.op_type
    found = [None if operand is None else memo[operand] for operand in node.inputs]
    if (reason := next((entry for entry in found if isinstance(entry, str)), None)) is not None:
        return reason
    given = [entry for entry in found if isinstance(entry, Constant)]
    arrays = [entry.array if isinstance(entry, Constant) else None for entry in found]
    try:
        if _result_bytes(node, arrays) > MAX_BYTES:
            return f"its {op_type} would make more than {MAX_BYTES >> 30} GiB"
        array = np.asarray(_evaluate(node, arrays, _opset(node, rules))[node.outputs.index(value)])
    except Exception as error:  # a model may hold any nonsense here, and is judged elsewhere
        return f"its {op_type} could not be evaluated: {(str(error) or repr(error)).splitlines()[0]}"
    # The weight is the largest operand: scales, axes and shapes are small, conditions of small type.
    main = max(given, key=lambda entry: (entry.array.size, entry.array.itemsize))
    return Constant(array, array.dtype.name, main.root, main.via | {op_type})


def _opset(node: ir.Node, rules: _Rules) -> int:
    if rules.opset is not None:
        return rules.opset
    imports = node.graph.opset_imports if node.graph is not None else {}
    if "" in imports:
        return int(imports[""])
    # A subgraph does not know: the form of the axes tells the two generations of operators apart.
    return 12 if "axes" in node.attributes else 21


def _evaluate(node: ir.Node, arrays: Sequence[Array | None], opset: int) -> list[Any]:
    """The outputs of a node on these inputs."""
    if node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        opset = max(opset, 21)  # the reference has no older ones, and later versions only added to them
    if node.op_type in ("Identity", "Dropout"):
        return [arrays[0]]
    from onnx.reference import ReferenceEvaluator

    proto = ir.to_proto(node)
    names = [f"in{index}" if array is not None else "" for index, array in enumerate(arrays)]
    outputs = [f"out{index}" for index in range(len(node.outputs))]
    proto.ClearField("input")
    proto.ClearField("output")
    proto.input.extend(names)
    proto.output.extend(outputs)
    graph = onnx.helper.make_graph(
        [proto],
        "constant",
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in names if name],
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in outputs],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    feeds = {name: array for name, array in zip(names, arrays, strict=True) if name}
    with np.errstate(all="ignore"):
        return list(ReferenceEvaluator(model).run(None, feeds))


def _result_bytes(node: ir.Node, arrays: Sequence[Array | None]) -> int:
    """An upper bound of the size of a node's result."""
    given = [array for array in arrays if array is not None]
    first, second = given[0], given[1] if len(given) > 1 else None
    match node.op_type:
        case "ConstantOfShape":
            count = math.prod(first.tolist())
        case "Expand" if second is not None:
            count = math.prod(np.broadcast_shapes(first.shape, tuple(second.tolist())))
        case "Tile" if second is not None:
            count = first.size * math.prod(second.tolist())
        case "Gather" if second is not None:
            axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
            count = first.size // max(1, first.shape[axis]) * second.size
        case "Gemm" if second is not None:
            count = max(first.shape) * max(second.shape)
        case "MatMul" if second is not None:
            count = math.prod(_product_shape(first, second))
        case "Concat":
            count = sum(array.size for array in given)
        case "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Max" | "Min" | "Where":
            count = math.prod(np.broadcast_shapes(*(array.shape for array in given)))
        case _:
            count = first.size
    return int(count) * max(array.dtype.itemsize for array in (*given, np.empty(0, np.float32)))


def _product_shape(a: Array, b: Array) -> tuple[int, ...]:
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return (*lead, *a.shape[-2:-1], *(b.shape[-1:] if b.ndim > 1 else ()))


def _plain(array: Array) -> Array:
    """The same numbers in a type that NumPy computes with."""
    if array.dtype.type.__module__ == "numpy":
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    name = array.dtype.name
    if name.startswith(("int", "uint")):
        return array.astype(np.uint8 if name.startswith("u") else np.int8)
    return array.astype(np.float32)


def initializer(graph: ir.Graph, tensor: ir.TensorProtocol, name: str) -> ir.Value:
    """A new initializer of a graph; the name must be free."""
    kind, shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.numpy().shape)
    value = ir.Value(name=name, const_value=named(tensor, name), type=kind, shape=shape)
    graph.register_initializer(value)
    return value


def discard(value: ir.Value) -> None:
    """Remove the initializer or the node behind a value, and what only they used, if nothing uses it.

    Uses in subgraphs count. An initializer that is also a graph input leaves the inputs too, for without
    its value it would become a required input. Control flow stays: its bodies may still capture values.
    """
    todo = [value]
    while todo:
        todo += _discarded(todo.pop())


def _discarded(value: ir.Value) -> list[ir.Value]:
    """Remove what stands behind a value, if nothing uses it; the operands that may be unused now."""
    if value.uses() or value.is_graph_output():
        return []
    node = value.producer()
    if node is None:
        graph = value.graph
        if graph is not None and value.is_initializer() and value.name is not None:
            if value.is_graph_input():
                graph.inputs.remove(value)
            graph.initializers.pop(value.name)
        return []
    unused = all(not output.uses() and not output.is_graph_output() for output in node.outputs)
    if node.graph is None or not unused or any(True for _ in node_graphs(node)):
        return []
    operands = [operand for operand in node.inputs if operand is not None]
    node.graph.remove(node, safe=True)
    return operands
