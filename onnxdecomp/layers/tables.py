"""Tables: the layers that use the rows of one matrix, an embedding and the head tied to it for example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxdecomp.core.layer import Array
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.tied_weights import Tie


@dataclass(frozen=True, eq=False)
class Table:
    """Layers whose weights are one matrix W [V, D].

    Attributes:
        members: They, in graph order: lookups of its rows, and products that multiply by W.
    """

    members: tuple[LayerMatch, ...]

    @property
    def matrix(self) -> Array:
        """W [V, D]."""
        first = self.members[0].layer
        return first.weight.T if first.lookup else first.weight

    @property
    def lookups(self) -> tuple[LayerMatch, ...]:
        """Those that read rows."""
        return tuple(match for match in self.members if match.layer.lookup)

    @property
    def products(self) -> tuple[LayerMatch, ...]:
        """Those that multiply by it."""
        return tuple(match for match in self.members if not match.layer.lookup)


def table_of(tie: Tie, matched: Sequence[LayerMatch]) -> Table | None:
    """The table that a stored weight is, or None where it is none.

    A lone product is none: it is fitted by its rows. Neither are products with the transpose, for which the
    rows of W are outputs in one and inputs in the other, nor quantized weights.
    """
    members = tuple(matched[index] for index in tie.members)
    looks = any(match.layer.lookup for match in members)
    if not looks and len(members) == 1:
        return None
    for match, kin in zip(members, tie.kin, strict=True):
        layer = match.layer
        alike = kin.family == 0 and kin.flipped == (looks and not layer.lookup)
        if layer.conv is not None or layer.weight.ndim != 2 or match.quantized or not alike:
            return None
    table = Table(members)
    return table if table.matrix.shape[0] >= table.matrix.shape[1] else None
