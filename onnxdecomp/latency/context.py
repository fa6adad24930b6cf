"""What stands around a layer, as far as it decides what the layer costs.

ONNX Runtime's CPU provider keeps the activations of 2-D convolutions in blocks of channels (NCHWc) for as
long as all operators in between can read them, and fuses an activation function into the operator before it
(onnxruntime/core/optimizer/nchwc_transformer.cc, conv_activation_fusion.cc). A layer between convolutions so
pays for no reordering, and one between operators of another kind does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import onnx_ir as ir

from onnxdecomp.graph.attributes import attribute
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.runtime.providers import provider_of

FUSED = frozenset(("Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid"))
"""Activation functions that a Conv or Gemm before them takes over."""

_ANYWHERE = frozenset(("Relu", "Sigmoid", "Tanh", "MaxPool", "AveragePool", "BatchNormalization"))
_ANYWHERE |= frozenset(("GlobalMaxPool", "GlobalAveragePool"))
_CONVS = frozenset(("Conv", "FusedConv"))
_JOINING = frozenset(("Add", "Sum", "Concat"))
_BLOCK = 16
_ALIGNED = 4
"""A convolution reads blocks where it has at least _BLOCK input channels, and a multiple of _ALIGNED."""


@dataclass(frozen=True)
class Neighbours:
    """What stands around a layer.

    Attributes:
        before: Whether its activation comes in blocks of channels.
        after: Whether all that read its output take blocks.
        activation: The activation function right after it that is fused with it, or None.
    """

    before: bool = False
    after: bool = False
    activation: str | None = None

    def on(self, provider: str, precision: str = "float") -> Neighbours:
        """As far as it matters: only the CPU's float kernels take blocks, else the cheap kind will do."""
        blocks = provider_of(provider).mlas and precision == "float"
        return self if blocks else Neighbours(True, True, self.activation)


ALONE = Neighbours()
"""Nothing that matters stands around it."""


def neighbours(matched: Iterable[LayerMatch]) -> list[Neighbours]:
    """What stands around each match, in the model as it is now."""
    blocked: dict[int, set[ir.Value]] = {}
    found = []
    for match in matched:
        graph = match.place.graph
        if id(graph) not in blocked:
            blocked[id(graph)] = _blocked(graph)
        found.append(_around(match, blocked[id(graph)].__contains__))
    return found


def _around(match: LayerMatch, blocked: Callable[[ir.Value], bool]) -> Neighbours:
    output = match.output
    activation = None
    readers = [use.node for use in output.uses()]
    if match.adapter.fuses_activation and len(readers) == 1 and readers[0].op_type in FUSED:
        activation = readers[0].op_type
        output = readers[0].outputs[0]
        readers = [use.node for use in output.uses()]
    if len(match.layer.kernel) != 2:
        return Neighbours(activation=activation)
    takes_blocks = [
        _reads_blocks(node) if node.op_type in _CONVS else blocked(node.outputs[0]) for node in readers
    ]
    return Neighbours(blocked(match.x), bool(readers) and all(takes_blocks), activation)


def _blocked(graph: ir.Graph) -> set[ir.Value]:
    """The values of a graph that are kept in blocks of channels."""
    found: set[ir.Value] = set()
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        if node.domain not in ("", "ai.onnx", "com.microsoft") or not inputs:
            continue
        producer = inputs[0].producer()
        fused = node.op_type in FUSED and producer is not None and producer.op_type == "Conv"
        if (
            _takes_blocks(node)
            or ((node.op_type in _ANYWHERE or fused) and inputs[0] in found)
            or (node.op_type in _JOINING and all(value in found for value in inputs))
        ):
            found.add(node.outputs[0])
    return found


def _reads_blocks(node: ir.Node) -> bool:
    shape = _weight_shape(node)
    groups = int(attribute(node, "group", 1))
    inputs = shape[1] * groups if len(shape) == 4 else 0
    return _takes_blocks(node) and inputs >= _BLOCK and inputs % _ALIGNED == 0


def _takes_blocks(node: ir.Node) -> bool:
    """Whether it is a 2-D convolution without groups, depthwise, or with groups of whole blocks."""
    shape = _weight_shape(node)
    if node.op_type not in _CONVS or len(shape) != 4:
        return False
    groups = int(attribute(node, "group", 1))
    each = shape[0] // groups
    return groups == 1 or (each == shape[1] == 1) or (each % _BLOCK == 0 and shape[1] % _BLOCK == 0)


def _weight_shape(node: ir.Node) -> tuple[int, ...]:
    """The shape of a convolution's weight, () where it is not known."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is None or weight.shape is None or not all(isinstance(dim, int) for dim in weight.shape):
        return ()
    return tuple(int(dim) for dim in weight.shape)  # type: ignore[arg-type]
