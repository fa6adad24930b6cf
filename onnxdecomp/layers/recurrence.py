"""The recurrence of a recurrent operator as a layer: what multiplies the state before each step.

It is none of the layers of a model: no chain can stand in its place. It reads the units of the state, and so
has a say in which of them can go, and is fitted to those that stay (see onnxdecomp.channels).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.graph.attributes import node_name
from onnxdecomp.graph.constants import Constant, discard, initializer
from onnxdecomp.graph.traversal import unique_name, value_names
from onnxdecomp.layers.adapter import LayerAdapter, LayerMatch
from onnxdecomp.layers.emitter import Emitter
from onnxdecomp.layers.replace import data_type
from onnxdecomp.layers.scope import Scope, Snapshot, working
from onnxdecomp.layers.states import DIRECTION, STEP, States

Key: TypeAlias = tuple[str, str]
"""A layer's graph and its name."""


@dataclass(frozen=True, eq=False)
class Recurrence(LayerAdapter):
    """The adapter of one direction's recurrence: its rows are the states before each step.

    Attributes:
        direction: Which.
        states: Those of the operator.
    """

    operators = ()
    has_rows = True

    direction: int
    of: States

    @classmethod
    def match(cls, node: ir.Node, scope: Scope) -> LayerMatch | str | None:
        return None

    def obstacle(self, chain: Chain, layer: Layer) -> str | None:
        return "it is part of the operator that makes what it reads"

    def lower(self, chain: Chain, match: LayerMatch, emit: Emitter) -> None:
        raise NotImplementedError(self.obstacle(chain, match.layer))

    def stored(self, weight: Array, layer: Layer) -> Array:
        return weight

    def probe_inputs(self, layer: Layer, node: Snapshot, rng: np.random.Generator) -> dict[int, Array]:
        return {}

    def rows(self, x: Array) -> Array:
        """The states before each step, of the states after it of all directions; before the first: zero."""
        axes = self.of.outputs[0]
        own = np.moveaxis(x, (axes.index(DIRECTION), axes.index(STEP)), (0, 1))[self.direction]
        before = np.zeros_like(own)
        if self.of.reverse[self.direction]:
            before[:-1] = own[1:]
        else:
            before[1:] = own[:-1]
        # The other axes in their order, as masks have them.
        return np.moveaxis(before, 0, axes.index(STEP) - (axes.index(DIRECTION) < axes.index(STEP)))

    def takes_bias(self, layer: Layer) -> bool:
        return True


def recurrences(match: LayerMatch, scope: Scope) -> list[LayerMatch]:
    """The recurrences of a layer, one for each direction; none where it has no states or they are computed.

    Args:
        match: Any layer.
        scope: Where it stands.
    """
    node = match.nodes[0]
    states = match.adapter.states(node)
    if states is None:
        return []
    weight = scope.weight(node.inputs[states.recurrence])
    given = node.inputs[states.bias] if len(node.inputs) > states.bias else None
    bias = scope.constant(given)
    if isinstance(weight, str) or (given is not None and not isinstance(bias, Constant)):
        return []
    found = []
    for direction in range(states.directions):
        own = working(weight.array[direction])
        added = None
        if isinstance(bias, Constant):
            added = working(bias.array[direction, len(own) :]).astype(own.dtype)
        ending = f":{direction + 1}" if direction else ""
        name = f"{match.layer.name}/recurrence{ending}"
        layer = replace(match.layer, name=name, weight=own, bias=added, seen_shape=None, recurrence=0)
        adapter = Recurrence(direction, states)
        found.append(replace(match, layer=layer, x=node.outputs[0], weight=weight.value, adapter=adapter))
    return found


def with_recurrences(matched: Sequence[LayerMatch]) -> list[LayerMatch]:
    """The layers with their recurrences in what they cost: no chain makes these smaller, cuts of units do."""

    def counted(match: LayerMatch) -> LayerMatch:
        states, layer = match.adapter.states(match.nodes[0]), match.layer
        if states is None:
            return match
        return replace(match, layer=replace(layer, recurrence=layer.outputs * states.size))

    return list(map(counted, matched))


def find_recurrences(model: ir.Model, matched: Sequence[LayerMatch]) -> dict[Key, LayerMatch]:
    """Those of all layers of a model, by graph and name."""
    opset = int(model.opset_imports.get("", 1) or 1)
    found = {}
    for match in matched:
        scope = Scope(match.place, model.ir_version, opset, True)
        for own in recurrences(match, scope):
            found[own.layer.graph, own.layer.name] = own
    return found


def renumber(model: ir.Model, match: LayerMatch, weight: Array, bias: Array | None) -> None:
    """Give a recurrence other numbers, in place.

    Args:
        model: The model.
        match: The recurrence as it stands there.
        weight: [rows, size].
        bias: [rows]; None: it stays.
    """
    node, adapter = match.nodes[0], match.adapter
    assert isinstance(adapter, Recurrence)
    scope = Scope(match.place, model.ir_version, int(model.opset_imports.get("", 1) or 1), True)
    whole = scope.constant(node.inputs[adapter.of.recurrence])
    assert isinstance(whole, Constant)
    numbers = whole.array.copy()
    numbers[adapter.direction] = weight
    _put(model, node, adapter.of.recurrence, numbers, match.layer.dtype)
    if bias is None:
        return
    at, rows = adapter.of.bias, len(weight)
    given = scope.constant(node.inputs[at]) if len(node.inputs) > at and node.inputs[at] else ""
    added = given.array.copy() if isinstance(given, Constant) else np.zeros((len(numbers), 2 * rows))
    added[adapter.direction, rows:] = bias
    _put(model, node, at, added, match.layer.dtype)


def _put(model: ir.Model, node: ir.Node, at: int, array: Array, dtype: str) -> None:
    old = node.inputs[at] if at < len(node.inputs) else None
    name = unique_name(f"{node.name or node.outputs[0].name}/fitted", value_names(model))
    stored = np.ascontiguousarray(array).astype(data_type(dtype).numpy())
    node.resize_inputs(max(len(node.inputs), at + 1))
    node.replace_input_with(at, initializer(model.graph, ir.Tensor(stored, name=name), name))
    if old is not None:
        discard(old)


def name_states(model: ir.Model, matched: Iterable[LayerMatch]) -> list[str]:
    """Have recurrent operators give out the states of all steps, so that they can be observed.

    Args:
        model: The model.
        matched: Recurrences in it.

    Returns:
        The names of what was not given out before.
    """
    taken: set[str] = set()
    found = []
    for match in matched:
        node = match.nodes[0]
        value = node.outputs[0]
        if not value.name:
            node.name = node_name(node)  # which is made of the first output where it has none
            taken = taken or value_names(model)
            value.name = unique_name(f"{match.layer.name}/states", taken)
            value.type = next(v.type for v in node.inputs if v is not None)
            found.append(value.name)
    return found


def forget_states(model: ir.Model, names: Iterable[str]) -> None:
    """Undo `name_states`, wherever the nodes are by now."""
    wanted = set(names)
    for node in model.graph if wanted else ():
        value = node.outputs[0]
        if value.name in wanted and not value.uses() and not value.is_graph_output():
            value.name = ""


@contextmanager
def states_given(model: ir.Model, matched: Iterable[LayerMatch]) -> Iterator[None]:
    """`name_states` for a while."""
    names = name_states(model, matched)
    try:
        yield
    finally:
        forget_states(model, names)
