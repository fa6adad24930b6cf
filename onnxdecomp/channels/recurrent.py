"""Recurrent operators in a channel: the units of their state, which they read themselves at every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from onnxdecomp.channels import labels as of
from onnxdecomp.channels.channel import Channel, Reader
from onnxdecomp.channels.facts import Facts, Term, describe
from onnxdecomp.channels.resize import Resizing
from onnxdecomp.core.layer import Array
from onnxdecomp.fitting.select_units import RefittedReader, left_of_rows
from onnxdecomp.graph.attributes import attribute
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.find import find
from onnxdecomp.layers.recurrence import find_recurrences, renumber
from onnxdecomp.layers.scope import Scope
from onnxdecomp.layers.states import BATCH, DIRECTION, STEP, UNIT, States

_PICKING = frozenset(
    "Cast Expand Flatten Gather Identity Reshape Slice Split Squeeze Tile Transpose Unsqueeze".split()  # noqa: SIM905
)
"""Operators that give out nothing but numbers of their first operand."""

_FAR = 16
"""Of them one after the other, at most."""


def spread_states(match: LayerMatch, facts: Facts) -> None:
    """Spread labels between the states, all that is stored of each unit, and the columns of the input."""
    node, states = match.nodes[0], _states(match)
    if match.quantized:
        return facts.freeze_all(node, "its weight is stored quantized")
    facts.bend()
    _spread_input(match, facts)
    terms: list[Term] = [(-1 - at, axes) for at, axes in _outputs(node, states)]
    for at, axes in states.initial.items():
        value = node.inputs[at] if at < len(node.inputs) else None
        if value is not None and not is_zero(value, facts.scope):
            terms.append((at, axes))
    for at, axes in terms:
        facts.mix(node, at, [axes.index(STEP)] if STEP in axes else [], "takes one step after the other")
        facts.mix(node, at, [axes.index(BATCH)], "has the same weights for all of it")
    joint = facts.tie(node, terms, 4)
    if joint is None:
        return None
    if of.varies(joint) == (DIRECTION,):
        return facts.freeze(joint, f"{describe(node)} has it in one direction")
    units = _spelled_out(joint, states)
    for at, runs in states.runs.items():
        if at < len(node.inputs) and node.inputs[at] is not None:
            rows = np.tile(units, (1, runs))
            matrix = at in (match.adapter.weight_at, states.recurrence)
            facts.store(node, at, of.collapsed(rows[:, :, None] if matrix else rows), "rows")
    return facts.store(node, states.recurrence, of.collapsed(units[:, None, :]), "columns")


def outputs(match: LayerMatch) -> int:
    """The places of the state, of all directions."""
    states = _states(match)
    return states.directions * states.size


def labelled(match: LayerMatch, facts: Facts) -> Array | None:
    """The units of these places, int [directions size]; None where they have none."""
    units = units_of_states(match, facts)
    return None if units is None else units.reshape(-1)


def made_units(match: LayerMatch, facts: Facts) -> Array | None:
    """The unit of each row of the weight, int [T], gate after gate of each direction."""
    units = units_of_states(match, facts)
    runs = _states(match).runs[match.adapter.weight_at]
    return None if units is None else np.tile(units, (1, runs)).reshape(-1)


def read_units(match: LayerMatch, facts: Facts) -> Array | None:
    """The units of the columns that read the input, [1, S]; None where they read none."""
    labels = facts.labels(match.x)
    return None if labels is None or of.varies(labels) != (labels.ndim - 1,) else labels.reshape(1, -1)


def units_of_states(match: LayerMatch, facts: Facts) -> Array | None:
    """The unit of each place of the state, [directions, size]; None where it has none."""
    node, states = match.nodes[0], _states(match)
    for at, axes in _outputs(node, states):
        labels = facts.labels(node.outputs[at])
        if labels is not None:
            return _spelled_out(of.placed(labels, axes, 4), states)
    return None


def rows_made(reader: Reader) -> Array:
    """The unit of each row of a recurrence, int [T]: it makes the units that it reads."""
    (units,) = reader.units
    return np.tile(units, reader.match.layer.outputs // len(units))


def put_recurrences(
    model: ir.Model, channel: Channel, units: Array, fitted: Sequence[RefittedReader]
) -> None:
    """Give the recurrences of a channel that was cut other numbers, in place.

    Args:
        model: The model.
        channel: As it was before.
        units: Those that stay.
        fitted: Of each recurrence its numbers, with all rows; empty where all stay.
    """
    known = [
        (reader, own)
        for reader, own in zip(channel.recurrences, fitted, strict=False)
        if np.isfinite(own.shrinkage) or own.bias is not reader.match.layer.bias
    ]
    found = find_recurrences(model, find(model, freeze=True)[0]) if known else {}
    for reader, own in known:
        rows, layer = rows_made(reader), reader.match.layer
        left = left_of_rows(own, (rows < 0) | np.isin(rows, units))
        renumber(model, found[layer.graph, layer.name], left.weight[0], left.bias)


def seed(match: LayerMatch, units: Array, facts: Facts) -> None:
    """Label the states, int [directions size], where a search begins."""
    node, states = match.nodes[0], _states(match)
    at, axes = next(_outputs(node, states))
    four = units.reshape(1, states.directions, 1, states.size)
    own = four.transpose([*axes, *(axis for axis in range(4) if axis not in axes)])
    facts.give(node, -1 - at, own.reshape(own.shape[: len(axes)]))


def resize_states(match: LayerMatch, cut: Resizing) -> None:
    """Set the number of units; first states that are computed as zeros need not be there."""
    node, states = match.nodes[0], _states(match)
    at, axes = next(_outputs(node, states))
    stays = cut.stays(node.outputs[at], axes.index(UNIT))
    if stays is None:
        return
    node.attributes[states.attribute] = ir.AttrInt64(states.attribute, int(stays.sum()))
    for position in states.initial:
        value = node.inputs[position] if position < len(node.inputs) else None
        if value is not None and value not in cut.units and cut.computed(node, position) is None:
            cut.drop(node, position)


def is_zero(value: ir.Value, scope: Scope) -> bool:
    """Whether a value is computed, and can be nothing but zeros."""
    if not isinstance(scope.constant(value), str):
        return False
    for _ in range(_FAR):
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx"):
            return False
        if node.op_type == "ConstantOfShape":
            filling = attribute(node, "value", None)
            return filling is None or not filling.numpy().any()
        first = node.inputs[0] if node.op_type in _PICKING else None
        if first is None:
            return False
        found, value = scope.constant(first), first
        if not isinstance(found, str):
            return not found.array.any()
    return False


def _states(match: LayerMatch) -> States:
    states = match.adapter.states(match.nodes[0])
    assert states is not None
    return states


def _spread_input(match: LayerMatch, facts: Facts) -> None:
    node = match.nodes[0]
    at = next(at for at, value in enumerate(node.inputs) if value is match.x)
    labels = facts.labels(match.x)
    if labels is None:
        return
    facts.mix(node, at, range(labels.ndim - 1), "has the same weights for all of it")
    labels = facts.labels(match.x)
    if labels is not None and of.varies(labels) == (labels.ndim - 1,):
        facts.store(node, match.adapter.weight_at, of.along(labels.reshape(-1), 2, 3), "columns")


def _outputs(node: ir.Node, states: States) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The outputs with units that are not left out, by position, and their axes."""
    for at, axes in states.outputs.items():
        if at < len(node.outputs) and node.outputs[at].name:
            yield at, axes


def _spelled_out(joint: Array, states: States) -> Array:
    """Labels over [step, direction, batch, unit] as [directions, size]."""
    own = joint[:1, :, :1, :]
    return np.asarray(np.broadcast_to(own, (1, states.directions, 1, states.size))[0, :, 0, :])
