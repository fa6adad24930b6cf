"""The cut check: a cut model computes what the model does whose readers have lost the units' columns.

The lowering check's counterpart (see onnxdecomp.layers.lowering_check). What is lost with the units is a
choice and shows in the verification; what the cut differs from it by is a defect, whatever units stay.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxdecomp.channels.channel import Channel, Reader
from onnxdecomp.channels.resize import taken
from onnxdecomp.core.layer import Array
from onnxdecomp.errors import ModelError
from onnxdecomp.graph.traversal import places, unique_name, value_names
from onnxdecomp.layers.lowering_check import TOLERANCE as ROUNDING
from onnxdecomp.layers.lowering_check import Check
from onnxdecomp.layers.recurrence import Recurrence
from onnxdecomp.layers.replace import data_type
from onnxdecomp.runtime import session
from onnxdecomp.runtime.shared_weights import share_weights

TOLERANCE = {dtype: 10 * rounding for dtype, rounding in ROUNDING.items()}
"""Largest relative L2 difference per element type: sums of another length are added up in another order."""


_SMALL = 1e-2
"""What the root mean square of a model's output counts as at least: a sigmoid's tail is rounding alone."""


def without_columns(model: ir.Model, channel: Channel, keep: Array) -> ir.Model:
    """A copy of the model in which nothing reads the units that do not stay; to be made before the cut.

    What readers and products see of the other units is zero, as if their columns were.

    Args:
        model: The model that the channel was found in, as it was then.
        channel: It.
        keep: The units that stay.
    """
    left = _left(channel, keep)
    copy = model.clone()
    taken = value_names(copy)
    where = {place.path: place for place in places(copy)}
    units = {part.value: part.units for part in channel.shaped}
    kind = data_type(channel.producers[0].match.layer.dtype)
    ends = [(match.nodes[0], match.x) for match in (reader.match for reader in channel.readers)]
    ends += [(node, value) for node in channel.products if (value := node.inputs[0]) in units and value]
    # What a product's node adds to its operands, or makes them of.
    added = {(part.node, part.at): part.units for part in channel.stored if part.node in channel.products}
    ends += [(node, value) for node, at in added if (value := node.inputs[at]) is not None]
    units |= {value: own for (node, at), own in added.items() if (value := node.inputs[at]) is not None}
    copies = {
        node: other
        for place in places(model)
        for node, other in zip(place.graph, where[place.path].graph, strict=True)
    }
    for node, value in ends:
        other = copies[node]
        at = next(index for index, operand in enumerate(node.inputs) if operand is value)
        seen = other.inputs[at]
        assert seen is not None
        assert other.graph is not None
        name = unique_name(f"{value.name}/left", taken)
        numbers = left[units[value]].astype((seen.dtype or kind).numpy())
        mask = ir.node("Constant", [], attributes={"value": ir.tensor(numbers)})
        product = ir.node("Mul", [seen, mask.outputs[0]], name=name)
        mask.outputs[0].name, product.outputs[0].name = unique_name(f"{name}/mask", taken), name
        other.graph.insert_before(other, [mask, product])
        other.replace_input_with(at, product.outputs[0])
    for reader in channel.recurrences:
        _forget_states(copies[reader.match.nodes[0]], reader, left, taken)
    return copy


def _forget_states(node: ir.Node, reader: Reader, left: Array, taken: set[str]) -> None:
    """Set the columns of a recurrence that read other units to zero."""
    assert isinstance(reader.match.adapter, Recurrence)
    states, direction = reader.match.adapter.of, reader.match.adapter.direction
    weight = node.inputs[states.recurrence]
    assert weight is not None
    assert node.graph is not None
    mask = np.ones((states.directions, 1, states.size), bool)
    mask[direction, 0] = left[reader.units[0]]
    kind = data_type(reader.match.layer.dtype).numpy()
    constant = ir.node("Constant", [], attributes={"value": ir.tensor(mask.astype(kind))})
    product = ir.node("Mul", [weight, constant.outputs[0]])
    for made in (constant, product):
        made.outputs[0].name = made.name = unique_name(f"{node.name}/left", taken)
    node.graph.insert_before(node, [constant, product])
    node.replace_input_with(states.recurrence, product.outputs[0])


def check_cut(
    before: ir.Model, after: ir.Model, channel: Channel, keep: Array, feed: Mapping[str, Array]
) -> Check:
    """Compare a cut model with what `without_columns` made of it before the cut, on the CPU provider.

    The error is the largest of the outputs of readers and of the model.

    Args:
        before: What `without_columns` has returned.
        after: The cut model.
        channel: The channel that was cut.
        keep: The units that stay.
        feed: Inputs of the model.
    """
    dtype = channel.producers[0].match.layer.dtype
    tolerance = TOLERANCE[dtype]
    names = [end.match.output.name for end in (*channel.readers, *channel.recurrences)]
    names += [node.outputs[0].name for node in channel.products]
    try:
        expected, actual = (_outputs(model, names, feed) for model in (before, after))
    except ModelError as error:
        return Check(rel_error=None, tolerance=tolerance, reason=str(error))
    worst = 0.0
    left = _left(channel, keep)
    shaped = {part.value.name: part.units for part in channel.shaped}
    for name, whole in expected.items():
        # What a reader makes may itself be of the channel.
        if not isinstance(whole, np.ndarray):  # a sequence, of what other outputs are
            continue
        wanted = taken(whole, shaped[name], left) if name in shaped else whole
        if wanted.dtype.kind == "f" and wanted.size:
            got = actual[name].astype(np.float64)
            if got.shape != wanted.shape:
                return Check(rel_error=np.inf, tolerance=tolerance, reason=f"{name} has another shape")
            norm = float(np.linalg.norm(wanted.astype(np.float64)))
            if name not in names:
                norm = max(norm, _SMALL * wanted.size**0.5)
            difference = float(np.linalg.norm(got - wanted))
            worst = max(worst, difference / norm if norm else difference)
    return Check(rel_error=worst, tolerance=tolerance)


def _left(channel: Channel, keep: Array) -> Array:
    left = np.zeros(channel.width + 1, bool)
    left[[*keep, -1]] = True
    return left


def _outputs(model: ir.Model, names: list[str | None], feed: Mapping[str, Array]) -> dict[str, Array]:
    """The model's outputs and the named values of its main graph, by name."""
    copy = model.clone()
    values = {value.name: value for node in copy.graph for value in node.outputs}
    for name in names:
        value = values.get(name)
        if value is not None and not value.is_graph_output():
            copy.graph.outputs.append(value)
    weights = share_weights(copy)
    opened = session.open_session(
        ir.to_proto(copy).SerializeToString(),
        low_memory=True,
        integers=False,
        weights=weights,
        optimize=False,  # kernels for fused nodes round small numbers away
    )
    found = session.run(opened, feed)
    return {spec.name: array for spec, array in zip(session.outputs_of(opened), found, strict=True)}
