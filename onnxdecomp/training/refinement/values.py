"""The calibration inputs on their way through two models, held at the beginning of a block."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir
import torch

from onnxdecomp.graph.traversal import operands, upstream
from onnxdecomp.training.autograd.network import Network

Tensor: TypeAlias = torch.Tensor
Values: TypeAlias = Mapping[str, Tensor]


_MEASURING = frozenset(("Shape", "Size"))
"""Operators whose result no number of their operand changes."""


def follows(node: ir.Node, moved: Collection[ir.Value]) -> bool:
    """Whether what a node gives changes with the numbers of some values."""
    return node.op_type not in _MEASURING and any(value in moved for value in operands(node))


def compute(network: Network, names: Sequence[str], given: Values) -> dict[str, Tensor]:
    """Values of a network by name, from others that are given: inputs, or values inside it."""
    missing = [name for name in names if name not in given]
    nodes = _between(network, missing, given)
    found = network.section(nodes, _used(network, nodes, given), missing) if missing else {}
    return {name: given[name] if name in given else found[name] for name in names}


def _between(network: Network, names: Sequence[str], given: Values) -> list[ir.Node]:
    known = {network.value(name) for name in given if network.knows(name)}
    wanted = upstream(network.graph, [network.value(name) for name in names], known)
    return [node for node in network.nodes if node in wanted]


def _used(network: Network, nodes: Sequence[ir.Node], given: Values) -> dict[str, Tensor]:
    needed = set(network.needs(nodes))
    return {name: value for name, value in given.items() if name in needed}


@dataclass(frozen=True, eq=False)
class Passage:
    """What some nodes of a network make of values that are held: the part of a block that changes.

    Attributes:
        nodes: Those that depend on the block's weights or on what enters it.
        needs: Names of what they read besides.
        leaves: Names of what is wanted of them.
    """

    network: Network
    nodes: tuple[ir.Node, ...]
    needs: tuple[str, ...]
    leaves: tuple[str, ...]

    @staticmethod
    def of(
        network: Network,
        enters: Sequence[str],
        leaves: Sequence[str],
        weights: Sequence[str],
        known: Sequence[str] = (),
    ) -> Passage:
        """Of a block's values and weights; of other values that are known, too, none is computed."""
        ends = {name: torch.empty(0) for name in (*enters, *known)}
        moved = {network.value(name) for name in (*enters, *weights)}
        nodes = []
        for node in _between(network, leaves, ends):
            if follows(node, moved):
                moved.update(node.outputs)
                nodes.append(node)
        return Passage(network, tuple(nodes), tuple(network.needs(nodes)), tuple(leaves))

    def __call__(self, given: Values) -> dict[str, Tensor]:
        """The leaves, of what is needed."""
        return self.network.section(self.nodes, given, self.leaves)
