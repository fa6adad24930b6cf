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
class _Form:
    """What a layer is, wherever it stands and whatever its numbers are; equal forms have equal costs."""

    key: tuple[object, ...]
    layer: Layer = field(compare=False)


def chain_cost(method: Decomposition, layer: Layer, ranks: Ranks, *, after_first: bool = False) -> Cost:
    """The cost of a method's chain in a layer's place; with `after_first` as `cost_after_first` has it."""
    # A method is a frozen dataclass, as its registry demands.
    return _counted(method, _form(layer), ranks, after_first)  # type: ignore[arg-type]


@lru_cache(maxsize=1 << 14)
def _counted(method: Decomposition, form: _Form, ranks: Ranks, after_first: bool) -> Cost:
    count = cost_after_first if after_first else cost_of
    return count(outline(method, form.layer, ranks), form.layer)


def _form(layer: Layer) -> _Form:
    bare = replace(
        layer,
        name="",
        graph="",
        weight=_bare(layer.weight),
        bias=None if layer.bias is None else _bare(layer.bias),
    )
    key = (
        *(bare.op_type, bare.weight.shape, bare.weight.dtype.str, bare.conv),
        None if bare.bias is None else bare.bias.shape,
        *(bare.input_shape, bare.output_shape, bare.dtype, bare.lookup, bare.seen_shape, bare.recurrence),
    )
    return _Form(key, bare)


def _bare(numbers: Array) -> Array:
    """The same without its memory."""
    return np.broadcast_to(np.zeros((), numbers.dtype), numbers.shape)
