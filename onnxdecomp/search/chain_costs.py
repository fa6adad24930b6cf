"""What chains cost, each counted once.

A search asks for the cost of the same chains over and over: at many ranks while those of a cost are looked
for, at many widths, in each of the plans that it compares; and most layers of a network are like some others.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from onnxdecomp.core.layer import Array, Layer, Ranks
from onnxdecomp.decompositions.base import Decomposition, outline
from onnxdecomp.search.plan import Cost, cost_after_first, cost_of


@dataclass(frozen=True)
class Form:
    """What a layer is, wherever it stands and whatever its numbers are; equal forms have equal costs.

    Attributes:
        key: What tells forms apart.
        layer: A layer of this form, without numbers.
    """

    key: tuple[object, ...]
    layer: Layer = field(compare=False)

    @staticmethod
    def of(layer: Layer) -> Form:
        """That of a layer."""
        weight, bias = _bare(layer.weight), None if layer.bias is None else _bare(layer.bias)
        bare = replace(layer, name="", graph="", weight=weight, bias=bias)
        key = (
            *(bare.op_type, weight.shape, weight.dtype.str, bare.conv, None if bias is None else bias.shape),
            *(bare.input_shape, bare.output_shape, bare.dtype, bare.lookup, bare.seen_shape, bare.recurrence),
        )
        return Form(key, bare)


def chain_cost(method: Decomposition, form: Form, ranks: Ranks, *, after_first: bool = False) -> Cost:
    """The cost of a method's chain in a layer's place; with `after_first` as `cost_after_first` has it."""
    # A method is a frozen dataclass, as its registry demands.
    return _counted(method, form, ranks, after_first)  # type: ignore[arg-type]


@lru_cache(maxsize=1 << 14)
def _counted(method: Decomposition, form: Form, ranks: Ranks, after_first: bool) -> Cost:
    count = cost_after_first if after_first else cost_of
    return count(outline(method, form.layer, ranks), form.layer)


def _bare(numbers: Array) -> Array:
    """The same without its memory."""
    return np.broadcast_to(np.zeros((), numbers.dtype), numbers.shape)
