"""A network of small tensors as a chain: one tensor after the other is contracted with the activation.

The activation has a named axis for each mode. A tensor takes those of its axes that the activation has,
and gives it the others; an axis that a tensor gives stands until another takes it. Each tensor is one
product: the taken axes go last (a Transpose, only if they are not there already), everything else becomes
rows. On [N, C, *spatial] the axes are channels and the rows are regrouped with the batch, so that a
convolution serves all rows with one set of weights; the tensor with the kernel's axis is the layer's
convolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.core.steps import (
    Convolve,
    MatMul,
    PermuteChannels,
    RegroupBatch,
    Reshape,
    Step,
    Transpose,
    pointwise,
)

KERNEL = "kernel"
"""The name of the axis that holds the kernel positions of all spatial axes together."""

_GROUP = "group"


@dataclass(frozen=True, eq=False)
class Node:
    """A tensor [groups, *axes] and the names of its axes after the first."""

    weight: Array
    axes: tuple[str, ...]
    label: str = ""


def contract(layer: Layer, nodes: Sequence[Node], inputs: Mapping[str, int], outputs: Sequence[str]) -> Chain:
    """The chain that contracts `nodes` in that order.

    Args:
        layer: Gives the convolution's attributes, its groups and the bias.
        nodes: At most one with the axis KERNEL; without one the kernel is 1x1.
        inputs: Names and sizes of the modes of one group's input channels, or of the features.
        outputs: The names of the modes of the outputs, in order.
    """
    walk = _Channels(layer, inputs) if layer.conv is not None else _Features(inputs)
    # A 1x1 kernel has no tensor of its own, but strides and pads: where they leave the fewest positions.
    last = layer.conv is not None and layer.conv.transposed
    spatial = next((n for n in nodes if KERNEL in n.axes), nodes[-1 if last else 0])
    for index, node in enumerate(nodes):
        named = [a for a in node.axes if a != KERNEL]
        given = [a for a in named if a not in walk.axes]
        # What is taken soonest goes last, what stays to the end goes first.
        uses = {a: _next_use(a, nodes[index + 1 :]) for a in given}
        given.sort(key=lambda a: -uses[a])
        walk.multiply(node, [a for a in walk.axes if a in named], given, node is spatial)
    walk.finish(outputs)
    return Chain(tuple(walk.steps), layer.bias, layer.inputs, layer.groups)


def cheapest(chains: Sequence[Chain], layer: Layer) -> Chain:
    """The chain of the fewest multiplications; among equals, of the fewest steps; then the first."""
    shape = layer.assumed_input_shape()
    return min(chains, key=lambda chain: (chain.macs(shape), len(chain.steps)))


def _next_use(axis: str, nodes: Sequence[Node]) -> int:
    return next((k for k, node in enumerate(nodes) if axis in node.axes), len(nodes))


class _Walk:
    """The steps so far and the axes, outermost first, of the activation that they leave."""

    def __init__(self, inputs: Mapping[str, int]) -> None:
        self.axes = dict(inputs)
        self.steps: list[Step] = []

    def multiply(self, node: Node, taken: list[str], given: list[str], spatial: bool) -> None:
        others = [a for a in self.axes if a not in taken]
        self.arrange([*others, *taken], len(others))
        others = [a for a in self.axes if a not in taken]  # arranging may have moved the groups
        # [groups, *given, *taken, kernel]
        source = [*given, *taken, *(a for a in node.axes if a == KERNEL)]
        weight = node.weight.transpose(0, *(1 + node.axes.index(a) for a in source))
        sizes = dict(zip(node.axes, node.weight.shape[1:], strict=True))
        rows, columns = (math.prod(sizes[a] for a in names) for names in (given, taken))
        self.apply(weight.reshape(weight.shape[0], rows, columns, -1), node.label, spatial)
        self.axes = {a: self.axes[a] for a in others} | {a: sizes[a] for a in given}

    def arrange(self, order: list[str], rows: int) -> None:
        """Bring the axes into that order, the first `rows` of them as rows."""
        raise NotImplementedError

    def apply(self, weight: Array, label: str, spatial: bool) -> None:
        """Multiply the last axes by weight [groups, given, taken, K]."""
        raise NotImplementedError

    def finish(self, outputs: Sequence[str]) -> None:
        """Leave the outputs in order as the channels or features."""
        self.arrange([*(a for a in self.axes if a == _GROUP), *outputs], 0)

    def moved(self, order: list[str]) -> tuple[list[int], list[int]]:
        """The sizes to read the axes as and their permutation; axes that stay neighbours are one."""
        names = [a for a in self.axes if self.axes[a] > 1]
        wanted = [a for a in order if self.axes[a] > 1]
        starts = [a for k, a in enumerate(wanted) if k == 0 or not _follows(names, wanted[k - 1], a)]
        blocks = [a for a in names if a in starts]
        bounds = [*(names.index(a) for a in blocks), len(names)]
        sizes = [math.prod(self.axes[a] for a in names[i:j]) for i, j in pairwise(bounds)]
        return sizes, [blocks.index(a) for a in starts]


def _follows(names: list[str], first: str, second: str) -> bool:
    return names.index(second) == names.index(first) + 1


class _Features(_Walk):
    """On [*lead, *features]."""

    def __init__(self, inputs: Mapping[str, int]) -> None:
        super().__init__(inputs)
        self.shape: tuple[int, ...] = (math.prod(inputs.values()),)

    def arrange(self, order: list[str], rows: int) -> None:
        sizes, perm = self.moved(order)
        if perm != sorted(perm):
            self._reshape(tuple(sizes))
            self.steps.append(Transpose(tuple(perm)))
            self.shape = tuple(sizes[p] for p in perm)
        above, below = (math.prod(self.axes[a] for a in part) for part in (order[:rows], order[rows:]))
        self._reshape((above, below) if above > 1 else (below,))
        self.axes = {a: self.axes[a] for a in order}

    def apply(self, weight: Array, label: str, spatial: bool) -> None:
        matrix = weight[0, :, :, 0].T
        self.steps.append(MatMul(matrix, label))
        self.shape = (*self.shape[:-1], matrix.shape[1])

    def _reshape(self, target: tuple[int, ...]) -> None:
        if self.shape != target:
            self.steps.append(Reshape(self.shape, target))
            self.shape = target


class _Channels(_Walk):
    """On [N, C, *spatial]; with several groups their axis is always the last of the rows."""

    def __init__(self, layer: Layer, inputs: Mapping[str, int]) -> None:
        assert layer.conv is not None
        groups = {_GROUP: layer.groups} if layer.groups > 1 else {}
        super().__init__(groups | dict(inputs))
        self.spec = layer.conv
        self.kernel = layer.kernel
        self.channels = layer.inputs

    def arrange(self, order: list[str], rows: int) -> None:
        if rows and _GROUP in order:
            # Every group multiplies its own channels, so the groups stay among the channels.
            rows -= 1
            others = [a for a in order[: rows + 1] if a != _GROUP]
            order = [*others, _GROUP, *order[rows + 1 :]]
        sizes, perm = self.moved(order)
        if perm != sorted(perm):
            total = math.prod(sizes)
            self._regroup(total)
            moved = np.arange(total).reshape(sizes).transpose(perm)
            self.steps.append(PermuteChannels(tuple(moved.ravel().tolist())))
        self._regroup(math.prod(self.axes[a] for a in order[rows:]))
        self.axes = {a: self.axes[a] for a in order}

    def apply(self, weight: Array, label: str, spatial: bool) -> None:
        groups, given, taken, _ = weight.shape
        if spatial:
            weight = weight.reshape(groups * given, taken, *self.kernel)
            self.steps.append(Convolve(weight, replace(self.spec, groups=groups), label))
        else:
            matrix = weight.reshape(groups * given, taken)
            self.steps.append(pointwise(matrix, groups, len(self.kernel), label))
        self.channels = groups * given

    def _regroup(self, channels: int) -> None:
        if self.channels != channels:
            self.steps.append(RegroupBatch(channels))
            self.channels = channels
