"""Ties: layers that read one stored weight, and whoever else reads it.

A weight stays in the file as long as anything reads it: replacing one of two layers that share it adds
factors and takes nothing away. And layers of equal weights, or of weights that are each other's transpose as
an embedding's and its head's are, can share their factors as they shared the weight.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.layer import Ranks
from onnxdecomp.decompositions.base import Decomposition
from onnxdecomp.graph.attributes import node_name
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.emitter import Share


@dataclass(frozen=True)
class Kin:
    """How a layer's weight is related to the others of its tie.

    Attributes:
        family: Equal for layers whose weights are equal, or each other's transpose.
        flipped: Whether the weight is the transpose of the family's first one.
        turned: Whether the operator multiplies by the transpose of what the first one multiplies by.
    """

    family: int
    flipped: bool = False
    turned: bool = False


@dataclass(frozen=True, eq=False)
class Tie:
    """A stored weight and what reads it.

    Attributes:
        root: The value that stores it.
        members: The layers that read it, as places in the list of matches, in its order.
        numbers: What each of them accounts for: what is stored of its weight and no earlier one has.
        kin: Of each of them.
        other: Another reader, which is no layer, for people; "" where there is none.
    """

    root: ir.Value
    members: tuple[int, ...]
    numbers: tuple[int, ...]
    kin: tuple[Kin, ...]
    other: str = ""

    @property
    def is_shared(self) -> bool:
        """Whether the weight has more than one reader."""
        return len(self.members) > 1 or bool(self.other)


def ties(matched: Sequence[LayerMatch]) -> tuple[Tie, ...]:
    """One for every weight that the layers read, most of them of a single layer."""
    groups: dict[ir.Value, list[int]] = {}
    for index, match in enumerate(matched):
        groups.setdefault(match.root, []).append(index)
    found = []
    for root, members in groups.items():
        own = [matched[index] for index in members]
        left, numbers = _stored(root, own), []
        for match in own:
            numbers.append(min(left, int(match.layer.weight.size)))
            left -= numbers[-1]
        found.append(Tie(root, tuple(members), tuple(numbers), _kin(own), _other_reader(root, own)))
    return tuple(found)


def share_of(tie: Tie, member: int, match: LayerMatch, method: Decomposition, ranks: Ranks) -> Share:
    """What the layer at `tie.members[member]` shares its factors by, given a method and ranks."""
    kin, layer = tie.kin[member], match.layer
    key = (
        tie.root.name,
        id(tie.root),
        kin.family,
        method,
        ranks,
        layer.dtype,
        match.adapter.layout,
    )
    # Two plain products are mirrored by exchanging them; int8 factors have their scales on one side only.
    if method.name == "svd" and layer.conv is None and layer.weight.ndim == 2 and not match.quantized:
        return Share(key, kin.flipped, kin.turned)
    how = (method.shapes(layer, ranks), layer.groups, kin.flipped, match.adapter.left)
    return Share((*key, how))


def stays(reader: str) -> str:
    """Why a layer is kept whose weight another reader keeps, a phrase for people."""
    return f"its weight stays in the model, for {reader} reads it too: no parameters are saved"


def _stored(root: ir.Value, own: Sequence[LayerMatch]) -> int:
    tensor = ir.convenience.get_const_tensor(root)
    if tensor is None:  # a Constant that holds no tensor but numbers
        return max(int(match.layer.weight.size) for match in own)
    return math.prod(int(size) for size in tensor.shape.numpy()) * max(match.packed for match in own)


def _kin(own: Sequence[LayerMatch]) -> tuple[Kin, ...]:
    """A lookup comes first in its family: a table is read row by row, and no transpose of it."""
    found: dict[int, Kin] = {}
    firsts: list[int] = []
    for index in sorted(range(len(own)), key=lambda index: not own[index].layer.lookup):
        match = own[index]
        for family, other in enumerate(firsts):
            flipped = _flipped(match, own[other])
            if flipped is not None:
                found[index] = Kin(
                    family, flipped, flipped != (match.adapter.left != own[other].adapter.left)
                )
                break
        else:
            found[index] = Kin(len(firsts))
            firsts.append(index)
    return tuple(found[index] for index in range(len(own)))


def _flipped(match: LayerMatch, first: LayerMatch) -> bool | None:
    """Whether the one weight is the transpose of the other; None where it is neither that nor equal."""
    a, b = match.layer.weight, first.layer.weight
    if (match.layer.conv is None) != (first.layer.conv is None) or match.layer.dtype != first.layer.dtype:
        return None
    if a.shape == b.shape and np.array_equal(a, b):
        return False
    if a.ndim == 2 and a.shape == b.shape[::-1] and np.array_equal(a.T, b):
        return True
    return None


def _other_reader(root: ir.Value, own: Sequence[LayerMatch]) -> str:
    """What reads the stored weight, itself or through operators on constants, apart from the layers."""
    read = {(match.nodes[0], id(match.weight)) for match in own}
    between = _between(root, [match.weight for match in own])
    todo, seen = [root], {root}
    while todo:
        value = todo.pop()
        if value.is_graph_output():
            return f"the output {value.name}"
        for node, _ in value.uses():
            if node in between:
                todo += [out for out in node.outputs if out not in seen]
                seen.update(node.outputs)
            elif (node, id(value)) not in read:
                return node_name(node)
    return ""


def _between(root: ir.Value, weights: Collection[ir.Value]) -> set[ir.Node]:
    """The nodes that make the weights of what is stored."""
    found: set[ir.Node] = set()
    todo = list(weights)
    while todo:
        value = todo.pop()
        node = value.producer()
        if node is None or value is root or node in found:
            continue
        found.add(node)
        todo += [operand for operand in node.inputs if operand is not None]
    return found
