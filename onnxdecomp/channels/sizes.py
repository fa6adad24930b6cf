"""Sizes: which free sizes of activations are equal, where ONNX's inference only says that it does not know.

A size is a number or a name: that of the model, or one made up for a place where nothing more is known. What
a Shape gives out is followed through the nodes that pick and join its numbers, so that a Reshape to
[size of x, size of x, -1, 32] is known to split the last axis of x whatever the sizes are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx_ir as ir

from onnxdecomp.core.layer import Dim
from onnxdecomp.graph.attributes import attribute, dims
from onnxdecomp.layers.scope import Scope

Size: TypeAlias = int | str
Shape: TypeAlias = tuple[Size, ...]

_MOST_NUMBERS = 16
_SAME = frozenset(
    """
    BatchNormalization Cast Clip Dropout Elu Erf Exp Gelu GroupNormalization HardSigmoid HardSwish Identity
    InstanceNormalization LayerNormalization LeakyRelu LogSoftmax Neg Relu Selu Sigmoid Softmax Softplus
    SimplifiedLayerNormalization Sqrt Swish Tanh
    """.split()  # noqa: SIM905 - a column of strings is no easier to read
)
_BROADCAST = frozenset("Add Sub Mul Div Pow Where Max Min PRelu And Or Equal Greater Less".split())  # noqa: SIM905
_PASSING = frozenset("Cast Identity Unsqueeze Squeeze".split())  # noqa: SIM905


@dataclass(frozen=True)
class Number:
    """One number of a value that holds sizes.

    Attributes:
        size: What it is.
        source: The activation and its axis whose size it is; None for a constant.
    """

    size: Size
    source: tuple[ir.Value, int] | None = None


@dataclass(eq=False)
class Sizes:
    """The sizes of all values of a graph, and the numbers of those that hold sizes.

    Attributes:
        scope: Where it stands.
    """

    scope: Scope
    _shapes: dict[ir.Value, Shape | None] = field(default_factory=dict)
    _numbers: dict[ir.Value, tuple[Number, ...]] = field(default_factory=dict)
    _made: int = 0

    def __post_init__(self) -> None:
        for node in self.scope.place.graph:
            numbers = self._computed(node)
            if numbers is not None and len(numbers) <= _MOST_NUMBERS:
                self._numbers[node.outputs[0]] = numbers
            derived = self._derived(node)
            for index, output in enumerate(node.outputs):
                self._shapes[output] = self._named(
                    dims(output), derived if index == 0 or node.op_type == "Split" else None, output
                )

    def shape(self, value: ir.Value | None) -> Shape | None:
        """The sizes of an activation; None where not even their number is known."""
        if value is None:
            return None
        if value not in self._shapes:
            constant = self.scope.constant(value)
            known = dims(value) if isinstance(constant, str) else tuple(constant.array.shape)
            self._shapes[value] = self._named(known, None)
        return self._shapes[value]

    def numbers(self, value: ir.Value | None) -> tuple[Number, ...] | None:
        """What a value holds that is made of sizes and small constants."""
        if value is None:
            return None
        if value not in self._numbers:
            constant = self.scope.constant(value)
            if isinstance(constant, str) or constant.array.dtype.kind != "i":
                return None
            if constant.array.size > _MOST_NUMBERS:
                return None
            self._numbers[value] = tuple(Number(int(number)) for number in constant.array.reshape(-1))
        return self._numbers[value]

    def _multiplied(self, value: ir.Value) -> int | None:
        """The size of the last axis, as far as a matrix that the value is multiplied by tells it."""
        for user, at in value.uses():
            matrix = self.scope.constant(user.inputs[1]) if at == 0 and _multiplies(user) else None
            if matrix is not None and not isinstance(matrix, str) and matrix.array.ndim > 1:
                return int(matrix.array.shape[-2])
        return None

    def _named(
        self,
        known: tuple[Dim, ...] | None,
        derived: Sequence[Size | None] | None,
        value: ir.Value | None = None,
    ) -> Shape | None:
        if known is None and derived is None:
            return None
        rank = len(known if known is not None else derived or ())
        given: Sequence[Dim] = known if known is not None else [None] * rank
        other: Sequence[Size | None] = (
            derived if derived is not None and len(derived) == rank else [None] * rank
        )
        sizes: list[Size] = []
        for a, b in zip(given, other, strict=True):
            found = a if isinstance(a, int) else b if b is not None else a
            if found is None and value is not None and len(sizes) == rank - 1:
                found = self._multiplied(value)
            if found is None:
                self._made += 1
                found = f"?{self._made}"
            sizes.append(found)
        return tuple(sizes)

    def _computed(self, node: ir.Node) -> tuple[Number, ...] | None:
        """The numbers of a node's output."""
        if node.domain not in ("", "ai.onnx") or not node.inputs:
            return None
        if node.op_type == "Shape":
            x = node.inputs[0]
            shape = self.shape(x)
            if shape is None or x is None:
                return None
            whole = [Number(size, (x, axis)) for axis, size in enumerate(shape)]
            return tuple(whole[attribute(node, "start", 0) : attribute(node, "end", None)])
        first = self._numbers.get(node.inputs[0]) if node.inputs[0] is not None else None
        if node.op_type == "Concat":
            parts = [self.numbers(value) for value in node.inputs]
            known = [part for part in parts if part is not None]
            sized = any(value in self._numbers for value in node.inputs)
            return tuple(n for part in known for n in part) if sized and len(known) == len(parts) else None
        if first is None:
            return None
        if node.op_type in _PASSING:
            return first
        if node.op_type in ("Equal", "Where"):  # as exporters write sizes of -1 that mean 1
            return self._chosen(node)
        rest = [self.numbers(value) for value in node.inputs[1:]]
        picks = [[n.size for n in part] if part is not None else None for part in rest]
        if node.op_type == "Gather" and picks[0] is not None:
            places = [place for place in picks[0] if isinstance(place, int)]
            return tuple(first[place] for place in places) if len(places) == len(picks[0]) else None
        if node.op_type == "Slice" and len(picks) >= 2 and all(part is not None for part in picks):
            bounds = [part[0] for part in picks if part and isinstance(part[0], int)]
            if len(bounds) == len(picks):
                return first[bounds[0] : bounds[1] : bounds[3] if len(bounds) > 3 else 1]
        return None

    def _chosen(self, node: ir.Node) -> tuple[Number, ...] | None:
        parts = [self.numbers(value) for value in node.inputs]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or any(len(part) != len(known[0]) for part in known):
            return None
        if node.op_type == "Equal":
            return tuple(Number(int(a.size == b.size)) for a, b in zip(*known, strict=True))
        return tuple(a if chosen.size else b for chosen, a, b in zip(*known, strict=True))

    def _derived(self, node: ir.Node) -> Sequence[Size | None] | None:  # noqa: PLR0912 - a table
        """The sizes of a node's first output, where they follow from its operands'."""
        if node.domain not in ("", "ai.onnx") or not node.inputs:
            return None
        shapes = [self.shape(value) for value in node.inputs]
        first = shapes[0]
        if first is None:
            return None
        if node.op_type in _SAME:
            return first
        if node.op_type in _BROADCAST:
            return broadcast(shapes)
        if node.op_type == "Transpose":
            perm = attribute(node, "perm", tuple(reversed(range(len(first)))))
            return [first[int(axis)] for axis in perm]
        if node.op_type == "Reshape":
            return self._reshaped(node, first)
        if node.op_type in ("Unsqueeze", "Squeeze"):
            return self._squeezed(node, first)
        if node.op_type == "Expand":
            target = self.numbers(node.inputs[1])
            return None if target is None else broadcast([first, tuple(number.size for number in target)])
        if node.op_type in ("ReduceMean", "ReduceSum", "ReduceMax"):
            return self._reduced(node, first)
        if node.op_type in ("Slice", "Concat", "Split"):
            given = self.numbers(node.inputs[3]) if node.op_type == "Slice" and len(node.inputs) > 3 else None
            moved = (
                [number.size for number in given] if given is not None else [attribute(node, "axis", None)]
            )
            if None in moved:
                return None
            gone = {int(axis) % len(first) for axis in moved if axis is not None}
            return [None if k in gone else size for k, size in enumerate(first)]
        if node.op_type == "Attention":
            values = shapes[2] if len(first) == 4 and len(shapes) > 2 else None
            return None if values is None else [*first[:-1], values[-1]]
        if "equation" in node.attributes:
            return _contracted(str(attribute(node, "equation", "")), shapes)
        second = shapes[1] if len(shapes) > 1 else None
        if second is not None and _multiplies(node) and len(first) > 1 and len(second) > 1:
            lead = broadcast([first[:-2], second[:-2]])
            return None if lead is None else [*lead, first[-2], second[-1]]
        return None

    def _reshaped(self, node: ir.Node, before: Shape) -> Sequence[Size | None] | None:
        target = self.numbers(node.inputs[1])
        if target is None:
            return None
        sizes = [before[at] if n.size == 0 and at < len(before) else n.size for at, n in enumerate(target)]
        if -1 not in sizes:
            return sizes
        whole, names = product(before)
        others, given = product([size for size in sizes if size != -1])
        left = names - given
        if given - names or others == 0 or whole % others or sum(left.values()) > 1:
            return [None if size == -1 else size for size in sizes]
        rest: Size | None = whole // others
        if left:
            rest = next(iter(left)) if rest == 1 else None
        return [rest if size == -1 else size for size in sizes]

    def _reduced(self, node: ir.Node, before: Shape) -> Sequence[Size | None] | None:
        axes, keeps = self._axes(node), bool(attribute(node, "keepdims", 1))
        gone = {int(axis) % len(before) for axis in axes or ()}
        if not gone:
            return None
        return [1 if k in gone else size for k, size in enumerate(before) if keeps or k not in gone]

    def _picked(self, node: ir.Node, before: Shape) -> Sequence[Size | None] | None:
        """The sizes where places along some axes are picked or joined."""
        axes: list[Size | None] = [attribute(node, "axis", None)]
        if node.op_type == "Slice":
            given = self.numbers(node.inputs[3]) if len(node.inputs) > 3 else None
            axes = [None] if given is None else [number.size for number in given]
        if None in axes:
            return None
        changed = {int(axis) % len(before) for axis in axes if axis is not None}
        return [None if k in changed else size for k, size in enumerate(before)]

    def _axes(self, node: ir.Node) -> Sequence[Size] | None:
        """The axes of a node that are given by an attribute or its second operand."""
        axes: Sequence[Size] | None = attribute(node, "axes", None)
        if axes is None and len(node.inputs) > 1:
            numbers = self.numbers(node.inputs[1])
            axes = None if numbers is None else [number.size for number in numbers]
        return axes

    def _squeezed(self, node: ir.Node, before: Shape) -> Sequence[Size | None] | None:
        axes = self._axes(node)
        if axes is None:
            return None
        if node.op_type == "Squeeze":
            gone = {int(axis) % len(before) for axis in axes}
            return [size for axis, size in enumerate(before) if axis not in gone]
        rank = len(before) + len(axes)
        new = {int(axis) % rank for axis in axes}
        left = iter(before)
        return [1 if axis in new else next(left) for axis in range(rank)]


def broadcast(shapes: Iterable[Shape | None]) -> list[Size | None] | None:
    """What operands of these shapes make together; None for a size of which two are free."""
    known = list(shapes)
    rank = max((len(shape) for shape in known if shape is not None), default=0)
    if any(shape is None for shape in known):
        return None
    result: list[Size | None] = []
    for axis in range(-rank, 0):
        sizes = {shape[axis] for shape in known if shape is not None and -axis <= len(shape)} - {1}
        numbers = [size for size in sizes if isinstance(size, int)]
        if numbers:
            result.append(numbers[0])
        else:
            result.append(next(iter(sizes)) if len(sizes) == 1 else None if sizes else 1)
    return result


def product(sizes: Sequence[Size]) -> tuple[int, Counter[str]]:
    """The product of sizes: of the numbers, and how often each name."""
    names = Counter(size for size in sizes if isinstance(size, str))
    return math.prod(size for size in sizes if isinstance(size, int)), names


def _contracted(equation: str, shapes: Sequence[Shape | None]) -> list[Size | None] | None:
    """The sizes of what an equation with an arrow and no ellipsis makes."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    known: dict[str, Size] = {}
    for term, shape in zip(left.split(","), shapes, strict=False):
        if not arrow or shape is None or len(shape) != len(term):
            return None
        for letter, size in zip(term, shape, strict=True):
            if known.get(letter, 1) == 1 or (isinstance(size, int) and size > 1):
                known[letter] = size
    return [known.get(letter) for letter in out]


def _multiplies(node: ir.Node) -> bool:
    return node.op_type.endswith("MatMul") and not node.attributes
