"""LayerRule: what a layer is to a channel. Nearly all have the same, by the axes that their adapter tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnxdecomp.channels import layers, packed_attention, recurrent
from onnxdecomp.channels.facts import Facts
from onnxdecomp.channels.resize import Resizing
from onnxdecomp.core.layer import Array
from onnxdecomp.layers.adapter import LayerMatch, Operator
from onnxdecomp.layers.scope import MICROSOFT


@dataclass(frozen=True)
class LayerRule:
    """What layers of an operator are to a channel.

    Attributes:
        spread: Spreads labels between activations, weights and outputs of a layer's node.
        outputs: How many outputs may be units; 0: none can be cut.
        seed: Labels these outputs, int [outputs], where a search begins.
        labelled: The labels of these outputs, int [outputs]; None where they have none.
        made: The same where the layer makes them by its rows: `Producer.units`.
        read: The units that its columns read: `Reader.units`.
        resize: Sets what the node says of sizes to those after a cut.
        operands: Of a layer that multiplies two things that it makes, which of them each row makes, as
            `Producer.operands` has it.
    """

    spread: Callable[[LayerMatch, Facts], None]
    outputs: Callable[[LayerMatch], int]
    seed: Callable[[LayerMatch, Array, Facts], None]
    labelled: Callable[[LayerMatch, Facts], Array | None]
    made: Callable[[LayerMatch, Facts], Array | None]
    read: Callable[[LayerMatch, Facts], Array | None]
    resize: Callable[[LayerMatch, Resizing], None]
    operands: Callable[[LayerMatch], Array] | None = None


PLAIN = LayerRule(
    layers.spread_layer,
    layers.outputs,
    layers.seed,
    layers.labelled,
    layers.made_units,
    layers.read_units,
    layers.resize_layer,
)
"""Of layers whose rows are their outputs and whose columns their inputs."""

RECURRENT = LayerRule(
    recurrent.spread_states,
    recurrent.outputs,
    recurrent.seed,
    recurrent.labelled,
    recurrent.made_units,
    recurrent.read_units,
    recurrent.resize_states,
)
"""Of layers that read their own units at the next step."""

PACKED = LayerRule(
    packed_attention.spread,
    packed_attention.outputs,
    packed_attention.seed,
    packed_attention.labelled,
    packed_attention.made,
    packed_attention.read,
    packed_attention.resize,
    packed_attention.operands,
)
"""Of layers that make queries, keys and values, and give out the attention."""

LAYER_RULES: Mapping[Operator, LayerRule] = {(MICROSOFT, "Attention"): PACKED}
"""Of operators that are more than a product, such as attention: to add one, one file and one line."""


def layer_rule(match: LayerMatch) -> LayerRule:
    """The rule of a layer."""
    node = match.nodes[0]
    if match.adapter.states(node) is not None:
        return RECURRENT
    return LAYER_RULES.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type), PLAIN)


def spread_layer(match: LayerMatch, facts: Facts) -> None:
    """Spread labels by the layer's rule."""
    layer_rule(match).spread(match, facts)
