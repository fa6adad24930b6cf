"""Rules: what operators do to units, a file a family, and what a cut changes in their nodes.

`RULES` has one for each operator that keeps units apart, or says in which way it does not. An operator
without one breaks a channel. Layers have a rule of their own (onnxdecomp.channels.layers), for they are where
channels begin and end.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnxdecomp.channels.rules import attention, channelwise, elementwise, layout, mixing, products, reshape
from onnxdecomp.channels.rules.rule import Operator, OperatorRule

RULES: Mapping[Operator, OperatorRule] = {
    **elementwise.RULES,
    **channelwise.RULES,
    **mixing.RULES,
    **layout.RULES,
    **reshape.RULES,
    **products.RULES,
    **attention.RULES,
}

__all__ = ["RULES", "OperatorRule"]
