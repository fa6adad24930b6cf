"""Network: a model's graph as a function of its inputs and initializers that torch can differentiate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import InlinePass

from onnxdecomp.core.layer import Array
from onnxdecomp.errors import ModelError
from onnxdecomp.graph.traversal import operands, places
from onnxdecomp.training.autograd.call import Call, Operator, Tensor
from onnxdecomp.training.autograd.operators import ONNX, operators
from onnxdecomp.training.autograd.operators.rows import ROWS
from onnxdecomp.training.autograd.tensors import as_tensor


@dataclass(frozen=True, eq=False)
class _Step:
    node: ir.Node
    operator: Operator
    spent: tuple[ir.Value, ...]
    """Values that nothing reads after this step."""


class Network:
    """A model whose nodes run in torch, in single precision.

    What depends on no input and on no parameter is computed once. Half-precision numbers become single
    ones; integers and double precision stay.

    Attributes:
        device: Where torch computes.
        outputs: Names, in the model's order.
        replaced: What `replace` has put in the place of initializers, by name.
        parameters: The initializers that take gradients, by name: leaves of torch's graph.
    """

    def __init__(self, model: ir.Model, parameters: Iterable[str] = (), *, device: str = "cpu") -> None:
        """Read a model.

        Args:
            model: The model; it is not changed. Initializers that are graph inputs count as constants.
            parameters: Names of initializers (of the main graph) that take gradients.
            device: Where torch computes.

        Raises:
            ModelError: An operator is not known, or holds what is not handled.
        """
        if model.functions:
            model = ir.from_proto(ir.to_proto(model))
            InlinePass()(model)
        self._opsets = {_domain(name): version for name, version in model.opset_imports.items()}
        self.device = device
        missing = unknown(model)
        if missing:
            raise ModelError(f"cannot train through {', '.join(missing)}: these operators are not known")
        graph = model.graph
        stored = dict(graph.initializers)
        wanted = set(parameters)
        self.parameters = {
            name: self._tensor(stored[name].const_value)
            .clone(memory_format=torch.contiguous_format)
            .requires_grad_()
            for name in sorted(wanted)
        }
        self.outputs = tuple(str(value.name) for value in graph.outputs)
        self._known: dict[ir.Value, Tensor] = {}
        for place in places(model):
            for name, value in place.graph.initializers.items():
                if value.const_value is not None and not (place.graph is graph and name in wanted):
                    self._known[value] = self._tensor(value.const_value)
        self._leaves = {stored[name]: tensor for name, tensor in self.parameters.items()}
        self._graph = graph
        self._table = operators()
        self._names = _names(graph)
        self.replaced: dict[str, Tensor] = {}
        self._steps = self._compile()

    def __call__(
        self, feed: Mapping[str, Tensor | Array], wanted: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """The values of some names of the main graph, by default of the outputs.

        Raises:
            ModelError: An operator holds what is not handled, or torch fails on it.
        """
        names = self.outputs if wanted is None else tuple(wanted)
        keep = {self._names[name] for name in names}
        values: dict[ir.Value, Tensor] = {**self._known, **self._leaves}
        for value in self._graph.inputs:
            if value.name in feed:
                values[value] = self._given(feed[str(value.name)])
        missing = set(keep)
        missing -= values.keys()
        for step in self._steps:
            if not missing:
                break
            self._run(step.node, step.operator, values)
            missing.difference_update(step.node.outputs)
            for value in step.spent:
                if value not in keep:
                    values.pop(value, None)
        return {name: values[self._names[name]] for name in names}

    def section(
        self, nodes: Sequence[ir.Node], given: Mapping[str, Tensor], wanted: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """What some nodes make of other values than those that reach them in the model.

        Args:
            nodes: Nodes of this network (see `nodes`), in order.
            given: Values by name; all that the nodes read and that is neither constant nor a parameter.
            wanted: Names of what is given back, or None for all that the nodes make; the others are let go of
                once nothing reads them any more.
        """
        values = {**self._known, **self._leaves}
        values.update({self._names[name]: value for name, value in given.items()})
        keep = None if wanted is None else {self._names[name] for name in wanted}
        last = {value: node for node in nodes for value in (*operands(node), *node.outputs)}
        for node in nodes:
            self._run(node, self._operator(node), values)
            if keep is not None:
                for value in (*operands(node), *node.outputs):
                    if last[value] is node and value not in keep:
                        values.pop(value, None)
        if wanted is not None:
            return {name: values[self._names[name]] for name in wanted}
        return {str(value.name): values[value] for node in nodes for value in node.outputs if value in values}

    def needs(self, nodes: Sequence[ir.Node]) -> list[str]:
        """The names of what `section` must be given for some nodes."""
        made = {value for node in nodes for value in node.outputs}
        outer = (value for node in nodes for value in operands(node) if value not in made)
        free = dict.fromkeys(v for v in outer if v not in self._known and v not in self._leaves)
        return [str(value.name) for value in free]

    def knows(self, name: str) -> bool:
        """Whether the main graph has a value of this name that can be asked for."""
        return name in self._names

    def value(self, name: str) -> ir.Value:
        """The main graph's value of a name."""
        return self._names[name]

    @property
    def graph(self) -> ir.Graph:
        """The main graph, functions inlined."""
        return self._graph

    def replace(self, name: str, value: Tensor) -> None:
        """Other numbers for an initializer that is no parameter and that running nodes read directly."""
        self.replaced[name] = self._known[self._names[name]] = value.detach()

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The nodes that run: those of the main graph that are not constant."""
        return tuple(step.node for step in self._steps)

    def _compile(self) -> tuple[_Step, ...]:
        """The nodes that are not constant, in order; the others' values are computed now."""
        known, todo = self._known, []
        with torch.no_grad():
            for node in self._graph:
                operator = self._operator(node)
                if all(value in known for value in operands(node)):
                    self._run(node, operator, known)
                else:
                    todo.append((node, operator))
        last: dict[ir.Value, int] = {}
        for position, (node, _) in enumerate(todo):
            for value in (*operands(node), *node.outputs):
                last[value] = position
        spent: list[list[ir.Value]] = [[] for _ in todo]
        for value, position in last.items():
            if value not in known and not value.is_graph_output():
                spent[position].append(value)
        return tuple(
            _Step(node, operator, tuple(values)) for (node, operator), values in zip(todo, spent, strict=True)
        )

    def _operator(self, node: ir.Node) -> Operator:
        if node.op_type == "Constant":
            return lambda call: self._constant(call.node)
        return self._table[_domain(node.domain), node.op_type]

    def rows(
        self, nodes: Sequence[ir.Node], given: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Tensor, int]]:
        """What parameters multiply that nodes read as matrices: name, rows [n, inputs], the axis of these.

        Args:
            nodes, given: As for `section`.
        """
        values = {**self._known, **self._leaves}
        values.update({self._names[name]: value for name, value in given.items()})
        last = {value: node for node in nodes for value in (*operands(node), *node.outputs)}
        for node in nodes:
            found = ROWS.get(node.op_type) if _domain(node.domain) == "" else None
            for index, value in enumerate(node.inputs if found is not None else ()):
                if value in self._leaves and found is not None:
                    rows = found(self._call(node, values), index)
                    if rows is not None:
                        yield str(value.name), *rows
            self._run(node, self._operator(node), values)
            for value in (*operands(node), *node.outputs):
                if last[value] is node:
                    values.pop(value, None)

    def _run(self, node: ir.Node, operator: Operator, values: dict[ir.Value, Tensor]) -> None:
        call = self._call(node, values)
        try:
            found = operator(call)
        except ModelError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, NotImplementedError) as error:
            raise call.refuse(" ".join(str(error).split())[:200]) from error
        results = found if isinstance(found, tuple) else (found,)
        for value, result in zip(node.outputs, results, strict=False):
            if result is not None:
                values[value] = result

    def _call(self, node: ir.Node, values: Mapping[ir.Value, Tensor]) -> Call:
        given = tuple(None if value is None else values[value] for value in node.inputs)

        def enter(graph: ir.Graph, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            inner = dict(values)
            inner.update(zip(graph.inputs, arguments, strict=True))
            for step in graph:
                self._run(step, self._operator(step), inner)
            return tuple(inner[value] for value in graph.outputs)

        return Call(node, self._opsets.get(_domain(node.domain), 1), given, enter)

    def _constant(self, node: ir.Node) -> Tensor:
        (attribute,) = node.attributes.values()
        if attribute.name == "value":
            return self._tensor(attribute.as_tensor())
        array = np.asarray(attribute.value)
        kind = np.float32 if array.dtype.kind == "f" else array.dtype
        return torch.from_numpy(array.astype(kind))

    def _tensor(self, stored: ir.TensorProtocol | None) -> Tensor:
        assert stored is not None
        array = stored.numpy()
        if array.dtype.kind in "SUO":
            raise ModelError(f"cannot train a model with strings: {stored.name}")
        if stored.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            array = array.astype(np.float32)
        return self._given(array.copy())

    def _given(self, array: Tensor | Array) -> Tensor:
        tensor = array if isinstance(array, torch.Tensor) else as_tensor(array)
        tensor = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
        if not tensor.is_floating_point():  # shapes and indices, which torch wants in the main memory
            return tensor
        if tensor.ndim == 4 and self.device == "cpu":
            # The processor's convolutions then reorder nothing between them.
            return tensor.to(memory_format=torch.channels_last)
        return tensor.to(self.device)


def unknown(model: ir.Model) -> tuple[str, ...]:
    """The operators of a model, in all its graphs, that the tables lack."""
    known = operators().keys()
    own = {(function.domain, function.name) for function in model.functions.values()}
    missing = {
        f"{node.domain}::{node.op_type}" if _domain(node.domain) else node.op_type
        for place in places(model)
        for node in place.graph
        if node.op_type != "Constant"
        and (_domain(node.domain), node.op_type) not in known
        and (node.domain, node.op_type) not in own
    }
    return tuple(sorted(missing))


def _domain(name: str) -> str:
    return "" if name in ONNX else name


def _names(graph: ir.Graph) -> dict[str, ir.Value]:
    found = [*graph.inputs, *graph.initializers.values()]
    found += [value for node in graph for value in node.outputs]
    return {str(value.name): value for value in found if value.name}
