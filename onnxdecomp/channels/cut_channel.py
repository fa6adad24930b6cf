"""Cutting a channel: some of its units stay, the others leave every tensor that has them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxdecomp.channels.channel import NONE, Channel
from onnxdecomp.channels.layer_rules import layer_rule
from onnxdecomp.channels.resize import Resizing
from onnxdecomp.channels.rules import RULES
from onnxdecomp.channels.sizes import Sizes
from onnxdecomp.core.layer import Array
from onnxdecomp.graph.constants import Constant, Memo, discard, initializer, resolve
from onnxdecomp.graph.shape_inference import set_sizes
from onnxdecomp.graph.traversal import unique_name, value_names
from onnxdecomp.layers.replace import data_type
from onnxdecomp.layers.scope import Scope


def cut_channel(model: ir.Model, channel: Channel, keep: Array) -> None:
    """Leave out all units of a channel but some, in place.

    Tensors that others read too are copied; what nothing reads any more goes. Names of nodes and activations
    stay. Other channels and matches of the model have to be found anew.

    Args:
        model: The model that the channel was found in.
        channel: It.
        keep: The units that stay, ascending; at least one of each span, and equally many of each block.

    Raises:
        ValueError: `keep` is not that.
    """
    left = _left(channel, keep)
    if left.all():
        return
    store = _Store(model)
    units_of = {part.value: part.units for part in channel.shaped}
    place = channel.producers[0].match.place
    sizes = Sizes(Scope(place, model.ir_version, store.opset, True))
    given = store.array, store.computed, store.put, store.drop
    cut = Resizing(channel, left, sizes, units_of, store.opset, *given)
    slices: dict[tuple[ir.Node, int], list[Array]] = {}
    for part in channel.stored:
        slices.setdefault((part.node, part.at), []).append(part.units)
    for (node, at), several in slices.items():
        array = store.array(node, at)
        # Blocks of rows first: those of columns are counted in all rows.
        for units in sorted(several, key=lambda units: -sum(size > 1 for size in units.shape)):
            array = cut.take(array, units)
        store.put(node, at, array)
    for node in channel.nodes:
        match, rule = channel.layers.get(node), RULES.get((node.domain, node.op_type))
        if match is not None:
            layer_rule(match).resize(match, cut)
        elif rule is not None and rule.resize is not None:
            rule.resize(node, cut)
    store.tidy()
    for shaped in channel.shaped:
        axis = cut.shrinking(shaped.units)
        stays = cut.stays(shaped.value, axis)
        assert stays is not None
        set_sizes(shaped.value, {axis: int(stays.sum())})


def _left(channel: Channel, keep: Array) -> Array:
    keep = np.asarray(keep)
    if keep.ndim != 1 or not keep.size or keep.dtype.kind not in "iu":
        raise ValueError("units that stay are a list of at least one number")
    if (np.diff(keep) <= 0).any() or keep[0] < 0 or keep[-1] >= channel.width:
        raise ValueError(f"units that stay ascend from 0 to at most {channel.width - 1}")
    left = np.zeros(channel.width + 1, bool)
    left[keep] = True
    counts = left[:-1].reshape(channel.blocks, -1).sum(axis=1)
    if (counts != counts[0]).any() or not counts[0]:
        raise ValueError(f"each of the {channel.blocks} blocks must keep equally many units, at least one")
    if not all(left[units].any() for units in channel.spans):
        raise ValueError("at least one unit of each of the channel's spans must stay")
    left[NONE] = True
    return left


@dataclass(eq=False)
class _Store:
    """The stored tensors of a model, for replacing those of some readers."""

    model: ir.Model
    _names: set[str] = field(init=False)
    _memo: Memo = field(default_factory=dict)
    _made: dict[tuple[ir.Value, bytes], ir.Value] = field(default_factory=dict)
    _old: dict[ir.Value, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._names = value_names(self.model)

    @property
    def opset(self) -> int:
        """The version of ONNX's domain."""
        return int(self.model.opset_imports.get("", 1) or 1)

    def array(self, node: ir.Node, at: int) -> Array:
        """The numbers of a constant operand."""
        return self._constant(node.inputs[at]).array

    def computed(self, node: ir.Node, at: int) -> Array | None:
        """The numbers of an operand; None where it is computed."""
        found = self._resolved(node.inputs[at])
        return found.array if isinstance(found, Constant) else None

    def put(self, node: ir.Node, at: int, array: Array) -> None:
        """Give a node other numbers as an operand; readers of the same numbers share them still."""
        value = node.inputs[at] if at < len(node.inputs) else None
        if value is None:
            return self._add(node, at, array)
        found = self._resolved(value)
        dtype = found.dtype if isinstance(found, Constant) else array.dtype.name
        stored = np.ascontiguousarray(array).astype(data_type(dtype).numpy(), copy=False)
        key = (value, stored.tobytes())
        if key not in self._made:
            name = unique_name(f"{value.name}/cut", self._names)
            self._made[key] = initializer(self.model.graph, ir.Tensor(stored, name=name), name)
        node.replace_input_with(at, self._made[key])
        self._old.setdefault(value)
        return None

    def _add(self, node: ir.Node, at: int, array: Array) -> None:
        """Give a node an operand that it did not have."""
        name = unique_name(f"{node.outputs[0].name}/sizes", self._names)
        node.resize_inputs(max(len(node.inputs), at + 1))
        node.replace_input_with(at, initializer(self.model.graph, ir.Tensor(array, name=name), name))

    def drop(self, node: ir.Node, at: int) -> None:
        """Leave an operand of a node out."""
        value = node.inputs[at]
        assert value is not None
        node.replace_input_with(at, None)
        self._old.setdefault(value)

    def tidy(self) -> None:
        """Remove what nothing reads any more; what took its place gets its name."""
        for value in self._old:
            name = value.name
            discard(value)
            new = [made for (old, _), made in self._made.items() if old is value]
            if len(new) == 1 and name and value.graph is None and value.producer() is None:
                _rename(new[0], name)

    def _constant(self, value: ir.Value | None) -> Constant:
        found = self._resolved(value)
        assert isinstance(found, Constant)
        return found

    def _resolved(self, value: ir.Value | None) -> Constant | str:
        assert value is not None
        return resolve(
            value,
            ir_version=self.model.ir_version,
            freeze=True,
            opset=self.opset,
            memo=self._memo,
        )


def _rename(value: ir.Value, name: str) -> None:
    graph = value.graph
    assert graph is not None
    value.name = name
    if value.const_value is not None:
        value.const_value.name = name
