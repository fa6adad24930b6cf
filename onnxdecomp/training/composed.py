"""What the factors of a rewritten layer make together, seen through its nodes: for every method alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir
import torch

from onnxdecomp.layers.registry import adapter_of
from onnxdecomp.layers.replace import LAYER
from onnxdecomp.training.autograd.network import Network

Tensor: TypeAlias = torch.Tensor


@dataclass(frozen=True, eq=False)
class Composed:
    """The nodes of a rewritten layer.

    Attributes:
        name: The layer's.
        nodes: In order; linear but for a bias.
        enters, leaves: The names of the values that go in and come out.
        shape: Of what goes in.
    """

    name: str
    nodes: tuple[ir.Node, ...]
    enters: str
    leaves: str
    shape: tuple[int, ...]

    def response(self, network: Network, generator: torch.Generator) -> Tensor:
        """E|Wx|² for white noise x: ||W||²_F of a row of the layer (less at an image's padded border).

        The mean over the rows; for a recurrent layer's projection of one time step.
        """
        made = self._of_noise(network, generator)
        adapters = filter(None, map(adapter_of, self.nodes))
        axis = 1 if any(adapter.feature_axis == 1 for adapter in adapters) else -1
        return made.square().sum(axis).mean()

    def variance(self, network: Network, generator: torch.Generator) -> Tensor:
        """That of an output for inputs of variance 1."""
        return self._of_noise(network, generator).square().mean()

    def _of_noise(self, network: Network, generator: torch.Generator) -> Tensor:
        x = torch.randn(self.shape, generator=generator).to(network.device)
        return self._run(network, x) - self._run(network, torch.zeros_like(x))

    def _run(self, network: Network, x: Tensor) -> Tensor:
        return network.section(self.nodes, {self.enters: x})[self.leaves]


def composed(network: Network, feed: Mapping[str, Tensor]) -> tuple[Composed, ...]:
    """The rewritten layers with one input and one output; others (of computed operands) are left out.

    Args:
        network: The network.
        feed: Inputs, to learn the shapes from.
    """
    groups: dict[str, list[ir.Node]] = {}
    for node in network.nodes:
        if name := node.metadata_props.get(LAYER):
            groups.setdefault(name, []).append(node)
    ends = {name: _ends(network, nodes) for name, nodes in groups.items()}
    found = {name: end for name, end in ends.items() if end is not None}
    with torch.no_grad():
        values = network(feed, [enters for enters, _ in found.values()])
    return tuple(
        Composed(name, tuple(groups[name]), enters, leaves, tuple(values[enters].shape))
        for name, (enters, leaves) in found.items()
        if values[enters].is_floating_point()
    )


def _ends(network: Network, nodes: Sequence[ir.Node]) -> tuple[str, str] | None:
    inside = set(nodes)
    needs = network.needs(nodes)
    outputs = [
        str(value.name)
        for node in nodes
        for value in node.outputs
        if value.is_graph_output() or any(user not in inside for user, _ in value.uses())
    ]
    return (needs[0], outputs[0]) if len(needs) == len(outputs) == 1 else None
