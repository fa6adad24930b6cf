"""Facts: which units the places of activations and stored tensors belong to, and how they spread.

One propagation, forward and backward, until nothing is added (the dependency graph of Fang et al. 2023). A
rule of an operator reads the labels of the node's inputs and outputs and gives each what follows from the
others; it is asked again whenever one of them has changed. Labels only ever come on top: where two units meet
they become one, and a unit that cannot be left out is frozen. So the order of the nodes does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxdecomp.channels import labels as of
from onnxdecomp.channels.channel import NONE
from onnxdecomp.channels.sizes import Shape, Sizes
from onnxdecomp.channels.units import Units
from onnxdecomp.core.layer import Array
from onnxdecomp.graph.attributes import node_name
from onnxdecomp.graph.constants import Constant
from onnxdecomp.layers.adapter import LayerMatch, Operator
from onnxdecomp.layers.scope import Scope

Rule: TypeAlias = "Callable[[ir.Node, Facts], None]"
"""Spreads what is known of a node's values to the others."""


class HasRule(Protocol):
    """What is known of an operator."""

    @property
    def spread(self) -> Rule:
        """Its rule."""
        ...


Term: TypeAlias = tuple[int, tuple[int, ...]]
"""An operand's position, or -1 - that of an output, and the axes of a common space that its axes are."""


@dataclass(eq=False)
class Facts:
    """What is known of one set of units.

    Attributes:
        scope: Where the nodes stand.
        sizes: Those of its values.
        width: Units at the beginning.
        layers: The layers by their first nodes.
        rules: Those of operators.
        layer_rule: That of layers.
        values: Labels of activations; as they were given: `labels` has them with units that have become one.
        stored: Labels of constant operands, by node, position and part.
        aligned: Labels [n, m] of which each row must keep as many units as the others, by node and operand.
        passed: Convolutions that units pass, each group being one.
        runs: Lengths of the runs that an axis with units is split into.
        products: Nodes that sum over units which both operands have.
        nodes: All nodes that have been visited and have a part in it.
        nonlinear: The units pass something that may treat them differently.
        ends: Nodes that nothing passes.
        united: What made units one that were several, for people.
        units: Those that there are.
    """

    scope: Scope
    sizes: Sizes
    width: int
    layers: Mapping[ir.Node, LayerMatch]
    rules: Mapping[Operator, HasRule]
    layer_rule: Callable[[LayerMatch, Facts], None]
    values: dict[ir.Value, Array] = field(default_factory=dict)
    stored: dict[tuple[ir.Node, int, str], Array] = field(default_factory=dict)
    aligned: dict[tuple[ir.Node, int], Array] = field(default_factory=dict)
    runs: set[int] = field(default_factory=set)
    passed: set[ir.Node] = field(default_factory=set)
    products: dict[ir.Node, Array] = field(default_factory=dict)
    nodes: dict[ir.Node, None] = field(default_factory=dict)
    nonlinear: bool = False
    ends: Collection[ir.Node] = ()
    united: str = ""
    units: Units = field(init=False)
    _todo: dict[ir.Node, None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.units = Units(self.width, self._look_again)

    # What rules ask.

    def labels(self, value: ir.Value | None) -> Array | None:
        """The labels of an activation, None where it has none."""
        found = None if value is None else self.values.get(value)
        return None if found is None else self.current(found)

    def current(self, labels: Array) -> Array:
        """The labels with one number for units that have become one."""
        return of.collapsed(self.units.current(labels)) if self.units.merged else labels

    def constant(self, value: ir.Value | None) -> Constant | None:
        """The constant behind a value, if there is one."""
        found = self.scope.constant(value)
        return found if isinstance(found, Constant) else None

    def integers(self, value: ir.Value | None) -> list[int] | None:
        """The numbers of a small constant, such as axes or sizes."""
        found = self.constant(value)
        return None if found is None else [int(number) for number in found.array.reshape(-1)]

    def shape(self, node: ir.Node, at: int) -> Shape | None:
        """The shape of an operand or output as far as it is known."""
        value = _value(node, at)
        constant = self.constant(value) if at >= 0 else None
        if constant is not None:
            return tuple(constant.array.shape)
        return self.sizes.shape(value)

    def size(self, node: ir.Node, at: int, axis: int) -> int | None:
        """A size of an operand or output, None where it is not known."""
        shape = self.shape(node, at)
        size = None if shape is None or axis >= len(shape) else shape[axis]
        return size if isinstance(size, int) else None

    # What rules do.

    def tie(self, node: ir.Node, terms: Sequence[Term], rank: int) -> Array | None:
        """Give all operands and outputs that are named the same labels, in a common space of `rank` axes.

        An operand that has no such axis, or has size 1 there, takes no part in what differs along it.

        Returns:
            The labels in that space.
        """
        joint: Array | None = None
        for at, axes in terms:
            own = self.labels(_value(node, at))
            if own is not None and len(axes) == own.ndim:
                there = of.placed(own, axes, rank)
                joint = there if joint is None else self.met(joint, there)
        if joint is None:
            return None
        joint = self.current(joint)
        for at, axes in terms:
            shape = self.shape(node, at)
            if shape is None or len(shape) != len(axes):
                self.give(node, at, joint)  # says why it cannot
                continue
            present = {axis for axis, size in zip(axes, shape, strict=True) if size != 1}
            missing = [axis for axis in of.varies(joint) if axis not in present]
            if missing and of.inner(joint) not in missing:
                # One place of the operand meets several blocks, which so can only be cut alike.
                lines = np.moveaxis(joint, missing, range(len(missing)))
                first = lines.reshape(-1, *lines.shape[len(missing) :])
                self.units.joined(first, np.broadcast_to(first[:1], first.shape))
                joint = self.current(joint)
                missing = [axis for axis in of.varies(joint) if axis not in present]
            if not missing:
                own = joint.transpose(_order(axes, rank))
                self.give(node, at, own.reshape([joint.shape[axis] for axis in axes]))
        return joint

    def spread_places(
        self,
        node: ir.Node,
        a_at: int,
        b_at: int,
        axis: int,
        a_places: Array,
        b_places: Array,
        *,
        drops: bool = False,
    ) -> None:
        """Places along an axis of one operand or output are places of another's, in this order.

        Args:
            node: The node.
            a_at, b_at: As in `Term`.
            axis: Of both.
            a_places, b_places: int [n]; of `a_places` some may be repeated.
            drops: The second one has no such axis: there is one place.
        """
        a, b = self.labels(_value(node, a_at)), self.labels(_value(node, b_at))
        a_size, b_size = self.size(node, a_at, axis), 1 if drops else self.size(node, b_at, axis)
        if a_size is None or b_size is None:
            return self.freeze_all(node, "a size of its operands is not known")
        if b is not None and drops:
            b = np.expand_dims(b, axis)
        if a is None and b is None:
            return None
        rank = a.ndim if a is not None else b.ndim if b is not None else 0
        a = of.spelled_out(a, axis, a_size, rank)
        b = of.spelled_out(b, axis, b_size, rank)
        joint = self.units.joined(a.take(a_places, axis), b.take(b_places, axis))
        a, b = of.with_places(a, axis, a_places, joint), of.with_places(b, axis, b_places, joint)
        again = self.units.joined(a.take(a_places, axis), joint)  # places that are repeated
        b = of.with_places(b, axis, b_places, again)
        self.give(node, a_at, a)
        return self.give(node, b_at, b.squeeze(axis) if drops else b)

    def give(self, node: ir.Node, at: int, labels: Array) -> None:
        """Label an operand or output of a node."""
        value = _value(node, at)
        if value is None or of.is_empty(labels):
            return None
        constant = self.constant(value) if at >= 0 else None
        known = tuple(constant.array.shape) if constant is not None else self.sizes.shape(value)
        if known is None or len(known) != labels.ndim:
            return self.freeze(labels, f"the shape of {value.name} is not known")
        labels = of.collapsed(labels)
        for axis in of.varies(labels):
            if known[axis] != labels.shape[axis]:
                return self.freeze(labels, f"a size of {value.name} is not known")
        if constant is not None:
            if not of.varies(labels):
                return self.freeze(labels, f"all of a constant that {describe(node)} reads would go")
            return self.store(node, at, labels)
        return self._put(value, labels)

    def store(self, node: ir.Node, at: int, labels: Array, part: str = "") -> None:
        """Label a constant operand; the rows and the columns of a weight each by itself, as its parts."""
        value = node.inputs[at]
        constant = self.constant(value)
        if constant is None:
            return self.freeze(labels, f"{describe(node)} reads a weight that is not constant")
        if "DequantizeLinear" in constant.via:
            return self.freeze(labels, f"what {describe(node)} reads is stored quantized")
        before = self.stored.get((node, at, part))
        self.stored[node, at, part] = labels if before is None else self.met(before, labels)
        return None

    def mix(self, node: ir.Node, at: int, axes: Sequence[int], what: str) -> None:
        """The node computes with all places along these axes together: their units can only go together."""
        labels = self.labels(_value(node, at))
        mixed = [] if labels is None else [axis for axis in axes if labels.shape[axis] > 1]
        if labels is None or not mixed:
            return None
        rows = np.moveaxis(labels, mixed, range(-len(mixed), 0))
        rows = rows.reshape(-1, int(np.prod(rows.shape[labels.ndim - len(mixed) :])))
        return self._mix_rows(rows, f"{describe(node)} {what}")

    def mix_runs(self, node: ir.Node, labels: Array, axis: int, count: int, what: str) -> None:
        """As `mix`, of each of so many equal runs along an axis."""
        runs = np.moveaxis(labels, axis, -1).reshape(-1, labels.shape[axis] // count)
        self._mix_rows(runs, f"{describe(node)} {what}")

    def _mix_rows(self, rows: Array, reason: str) -> None:
        if len(rows) == 1:
            return self.freeze(rows, reason)
        others = (rows == NONE).any(axis=1)
        self.freeze(rows[others], reason)
        self.united = self.united or reason
        return self.units.unite(np.repeat(rows[:, :1], rows.shape[1], axis=1), rows)

    def ask(self, node: ir.Node) -> None:
        """Have the node's rule asked, where something is known of it that no value tells."""
        self._todo.setdefault(node)

    def align(self, node: ir.Node, at: int, labels: Array) -> None:
        """Each row of labels [n, m] of an operand or output must keep as many units as the others."""
        self.aligned[node, at] = labels

    def bend(self) -> None:
        """The node may treat units differently, or not linearly."""
        self.nonlinear = True

    def freeze(self, labels: Array, reason: str) -> None:
        """These units cannot be left out.

        Raises:
            Broken: None can.
        """
        self.units.freeze(labels, reason)

    def freeze_all(self, node: ir.Node, reason: str) -> None:
        """No unit that the node has a part in can be left out."""
        for value in (*node.inputs, *node.outputs):
            labels = self.labels(value)
            if labels is not None:
                self.freeze(labels, f"{describe(node)}: {reason}")

    def met(self, a: Array, b: Array) -> Array:
        """Both labels of one tensor: where two units meet they become one."""
        return of.collapsed(self.units.joined(a, b))

    # The propagation.

    def spread(self) -> None:
        """Ask the rules until nothing is added.

        Raises:
            Broken: No unit can be left out.
        """
        while self._todo:
            node = next(iter(self._todo))
            del self._todo[node]
            if node in self.ends:
                continue
            self.nodes.setdefault(node)
            if node in self.layers:
                self.layer_rule(self.layers[node], self)
            elif (
                known := self.rules.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))
            ) is not None:
                known.spread(node, self)
            else:
                self.freeze_all(node, "what it does to single features is not known")

    def several(self) -> Iterator[Array]:
        """The labels of all tensors that have units along several axes, and of what is aligned."""
        for labels in (
            *self.values.values(),
            *self.stored.values(),
        ):
            if len(of.varies(self.current(labels))) > 1:
                yield labels
        yield from self.aligned.values()

    @property
    def why(self) -> str:
        """Why fewer than two units can be left out."""
        return (
            self.units.reasons[0][1]
            if self.units.reasons
            else self.united or "its outputs can only go together"
        )

    def level(self) -> bool:
        """Let units of every tensor differ along its longest axis alone; whether any did along several.

        Raises:
            Broken: No unit can be left out then.
        """
        found = False
        while tensors := [
            (value, labels)
            for value in self.values
            if (labels := self.labels(value)) is not None and len(of.varies(labels)) > 1
        ]:
            found = True
            for value, _ in tensors:
                labels = self.current(self.values[value])
                longest = int(np.argmax(labels.shape))
                lines = np.moveaxis(labels, longest, -1).reshape(-1, labels.shape[longest])
                every = self.units.joined(lines, np.broadcast_to(lines.max(axis=0), lines.shape))[0]
                self._put(value, of.collapsed(of.along(self.units.current(every), longest, labels.ndim)))
            self._todo = dict.fromkeys(self.nodes)
            self.spread()
        return found

    def _put(self, value: ir.Value, labels: Array) -> None:
        if not of.varies(labels):
            return self.freeze(labels, f"all of {value.name} would go")
        before = self.values.get(value)
        after = labels if before is None else self.met(before, labels)
        if before is not None and np.array_equal(self.current(before), after):
            return None
        self.values[value] = after
        self._ask_around(value)
        node = value.producer()
        if node is None:
            return self.freeze(after, f"it comes from the input {value.name}")
        if value.is_graph_output():
            return self.freeze(after, f"it is the output {value.name}")
        for user, _ in value.uses():
            if user.graph is not node.graph:
                return self.freeze(after, f"{value.name} is read inside a subgraph")
        return None

    def _ask_around(self, value: ir.Value) -> None:
        node = value.producer()
        for near in [node, *value.consumers()]:
            if near is not None:
                self._todo.setdefault(near)

    def _look_again(self) -> None:
        """What held back because units differed may go on now, and what was told may be otherwise."""
        for told in (self.stored, self.aligned, self.products, self.passed):
            told.clear()
        for value in self.values:
            self._ask_around(value)


def describe(node: ir.Node) -> str:
    """A node for people."""
    return f"{node.op_type} {node_name(node)}"


def _value(node: ir.Node, at: int) -> ir.Value | None:
    if at < 0:
        return node.outputs[-1 - at]
    return node.inputs[at] if at < len(node.inputs) else None


def _order(axes: Sequence[int], rank: int) -> list[int]:
    """These axes first, and then all others."""
    return [*axes, *(axis for axis in range(rank) if axis not in axes)]
