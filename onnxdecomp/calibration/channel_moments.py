"""Moments of what reads a channel where no calibration input shows them: what the producers' weights say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibration.statistics import centred
from onnxdecomp.channels.channel import Channel, Reader
from onnxdecomp.channels.recurrent import rows_made
from onnxdecomp.channels.rules.mixing import NORMALISATIONS, SKIPS
from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.fitting.elimination import ReaderMoments, even_importance
from onnxdecomp.fitting.moments import Moments
from onnxdecomp.fitting.quadratic_loss import as_rows
from onnxdecomp.graph.attributes import attribute
from onnxdecomp.layers.adapter import LayerMatch

_SUMS = ("Add", "Sum", "Identity", "Dropout", "Cast")
"""What may stand between a layer and the normalisation of its outputs."""

_STEPS = ("Add", "Cast", "Div", "Mul", "Pow", "Reciprocal", "ReduceMean", "Sqrt", "Sub")
"""What a normalisation consists of that is spelled out."""

_MANY = 16
"""Steps of one, at most."""


def moments_of_weights(channel: Channel, reader: Reader) -> Moments:
    """The moments that a reader would have if all inputs of the producers were independent and of size 1.

    Their biases multiply one more such input.

    What stands between is taken to be the identity, and kernel positions to see different inputs. So units
    with equal rows can stand in for each other, and units with small rows count for little.
    """
    gram = np.zeros((channel.width, channel.width))
    for made, layer in _made(channel):
        weight = layer.weight.reshape(len(made), -1).astype(np.float64)
        if layer.bias is not None:
            weight = np.hstack([weight, layer.bias[:, None]])
        rows = np.zeros((channel.width, _stack(made), weight.shape[1]))
        for unit, place, row in zip(made, _occurrence(made), weight, strict=True):
            if unit >= 0:
                rows[unit, place] = row
        flat = rows.reshape(channel.width, -1)
        gram += flat @ flat.T
    mean = float(np.trace(gram)) / channel.width or 1.0
    weight = as_rows(reader.match.layer.weight, reader.match.layer)
    second = np.stack([_second(units, gram, mean) for units in reader.units])
    cross = weight @ second
    energy = np.einsum("gtd,gtd->gt", cross, weight).reshape(-1)
    return Moments(1, second, cross, np.zeros(reader.units.shape), np.zeros(energy.size), energy)


def says_something(moments: Moments) -> bool:
    """Whether rows tell of a recurrence: finite ones, and not all zero as where there is a single step."""
    return moments.usable and bool(np.einsum("gdd->", moments.xx) > 0)


def reader_moments(
    channel: Channel, seen: Sequence[tuple[Moments, Moments | None]], *, centre: bool
) -> list[ReaderMoments]:
    """What the readers of a channel see, and behind them its recurrences, of which it may be left out.

    Outputs that are normalised behind a reader all count alike, by their own variance.

    Args:
        channel: The channel.
        seen: Moments, and those of held-out rows, reader by reader.
        centre: Whether biases may be changed.
    """
    return [
        ReaderMoments(
            train,
            held if held is not None and held.usable else None,
            as_rows(reader.match.layer.weight, reader.match.layer),
            reader.units,
            reader.match.layer.bias,
            centre and centred(reader.match),
            even_importance(train) if centre and _is_normalised(reader.match) else None,
        )
        for reader, (train, held) in zip((*channel.readers, *channel.recurrences), seen, strict=False)
    ]


def _is_normalised(match: LayerMatch) -> bool:
    """Whether a normalisation over the layer's outputs is all that reads them, or their sum with others.

    Of a sum that goes on beside the normalisation, as in networks that normalise what blocks read, not what
    they make, the outputs count as they are.
    """
    value = match.nodes[-1].outputs[0]
    while (uses := value.uses()) and not value.is_graph_output():
        node = next(iter(uses)).node
        if len(uses) > 1:
            return _is_spelled_out(value, match.layer.outputs)
        scale = {**dict.fromkeys(NORMALISATIONS, 1), **dict.fromkeys(SKIPS, 2)}.get(node.op_type)
        if scale is not None:
            given = node.inputs[scale] if len(node.inputs) > scale else None
            return given is not None and given.shape == (match.layer.outputs,)
        if node.op_type not in _SUMS:
            return False
        value = node.outputs[0]
    return False


def _is_spelled_out(value: ir.Value, size: int) -> bool:
    """Whether all that reads a value is a normalisation of its last axis in single nodes, up to its scale."""
    steps: list[ir.Node] = []
    scales: set[ir.Node] = set()
    ahead = [node for node, _ in value.uses()]
    while ahead:
        node = ahead.pop()
        if node in steps or node in scales:
            continue
        if node.op_type == "Mul" and any(_is_vector(operand, size) for operand in node.inputs):
            scales.add(node)
            continue
        steps.append(node)
        last = any(output.is_graph_output() for output in node.outputs)
        if node.op_type not in _STEPS or len(steps) > _MANY or last:
            return False
        ahead += [user for user, _ in node.outputs[0].uses()]
    means = [node for node in steps if node.op_type == "ReduceMean"]
    return len(scales) == 1 and bool(means) and all(map(_is_over_last, means))


def _is_vector(value: ir.Value | None, size: int) -> bool:
    """Whether a value is a constant, one number for each output."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return tensor is not None and tuple(tensor.shape) == (size,)


def _is_over_last(mean: ir.Node) -> bool:
    axes = attribute(mean, "axes", ())
    if not axes and len(mean.inputs) > 1 and mean.inputs[1] is not None:
        tensor = ir.convenience.get_const_tensor(mean.inputs[1])
        axes = () if tensor is None else tensor.numpy().reshape(-1)
    shape = mean.inputs[0].shape if mean.inputs[0] is not None else None
    last = {-1} if shape is None else {-1, len(shape) - 1}
    return len(axes) == 1 and int(axes[0]) in last


def _made(channel: Channel) -> Iterator[tuple[Array, Layer]]:
    """The layers that make units, and the unit of each of their rows."""
    for producer in channel.producers:
        yield producer.units, producer.match.layer
    for reader in channel.recurrences:
        yield rows_made(reader), reader.match.layer


def _stack(units: Array) -> int:
    """The most rows that a unit has."""
    return int(_occurrence(units).max(initial=0)) + 1


def _occurrence(units: Array) -> Array:
    """How many of the places before each belong to the same unit."""
    seen: dict[int, int] = {}
    found = np.zeros(len(units), np.int64)
    for place, unit in enumerate(units.tolist()):
        found[place] = seen.get(unit, 0)
        seen[unit] = int(found[place]) + 1
    return found


def _second(units: Array, gram: Array, mean: float) -> Array:
    """E[x xT] of the features [D] of one group."""
    places = _occurrence(units)
    ours = units >= 0
    second = np.diag(np.where(ours, 0.0, mean))
    same = (places[:, None] == places[None, :]) & ours[:, None] & ours[None, :]
    at = np.where(ours, units, 0)
    second[same] = gram[np.ix_(at, at)][same]
    return second
