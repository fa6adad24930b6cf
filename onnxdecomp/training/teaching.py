"""What the teacher says: computed once for every sample and view, as far as memory goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch

from onnxdecomp.training.autograd.network import Network

Tensor: TypeAlias = torch.Tensor

HELD_OUT = -1
"""The view of the held-out samples: as they are."""

_KEPT = 1 << 30
"""Bytes of values that are kept."""


def in_bfloat16(
    network: Network, feed: Mapping[str, Tensor], names: Sequence[str], wanted: bool = True
) -> Mapping[str, Tensor]:
    """A network's values, in single precision; its products are in bfloat16 where that is wanted."""
    if not wanted:
        return network(feed, names)
    with torch.autocast(torch.device(network.device).type, torch.bfloat16):
        values = network(feed, names)
    return {name: value.float() if value.dtype is torch.bfloat16 else value for name, value in values.items()}


class Teaching:
    """The teacher's values by view and sample."""

    def __init__(self, teacher: Network | None, hints: Sequence[str], *, mixed: bool, again: bool) -> None:
        """Of a teacher's outputs and of values inside it; None says nothing.

        Args:
            teacher, hints: The network, and names inside it.
            mixed: Whether products are in bfloat16; those of held-out samples never are.
            again: Whether views come again; the held-out samples always do.
        """
        self._teacher = teacher
        self._mixed = mixed
        self._again = again
        self._names = () if teacher is None else (*teacher.outputs, *hints)
        self._kept: dict[tuple[int, int], Mapping[str, Tensor]] = {}
        self._bytes = 0

    def of(self, feed: Mapping[str, Tensor], view: int, rows: tuple[int, ...]) -> Mapping[str, Tensor] | None:
        """The values for a feed: some samples, a row each, as a view shows them."""
        if self._teacher is None:
            return None
        if not all((view, row) in self._kept for row in rows):
            with torch.no_grad():
                mixed = self._mixed and view != HELD_OUT
                values = in_bfloat16(self._teacher, feed, self._names, mixed)
            self._keep(view, rows, values)
            return values
        parts = [self._kept[view, row] for row in rows]
        if len(parts) == 1:
            return parts[0]
        return {name: torch.cat([part[name] for part in parts]) for name in self._names}

    def _keep(self, view: int, rows: tuple[int, ...], values: Mapping[str, Tensor]) -> None:
        if not self._again and view != HELD_OUT:
            return
        size = sum(value.nbytes for value in values.values())
        stacked = all(value.ndim and value.shape[0] == len(rows) for value in values.values())
        if self._bytes + size > _KEPT or (len(rows) > 1 and not stacked):
            return
        self._bytes += size
        for place, row in enumerate(rows):
            self._kept[view, row] = (
                {name: value[place : place + 1].clone() for name, value in values.items()}
                if len(rows) > 1
                else values
            )
