"""Layers that use one table, on their way into the graph: its factors are fitted once, to all of its uses."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxdecomp.apply.layer_fitter import Fitter
from onnxdecomp.calibration.table_uses import observe_table
from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Ranks
from onnxdecomp.fitting.table import TableFit, fit_table, table_chain
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.tables import Table, table_of
from onnxdecomp.layers.tied_weights import Tie
from onnxdecomp.search.finite_weights import unsound
from onnxdecomp.search.keep_layers import Key
from onnxdecomp.search.plan import Plan


@dataclass(eq=False)
class TableGroup:
    """A table whose layers are replaced one after the other.

    Attributes:
        table: Its layers; None once the factors are fitted, so that the weight can be let go of.
        rank: Of the factors.
        found: They.
        means: E[x] of products that take it into their bias, by graph and name.
        unfitted: Why they are not fitted to how the table is used.
    """

    table: Table | None
    rank: int
    found: TableFit | None = None
    means: dict[Key, Array] = field(default_factory=dict)
    unfitted: str = ""

    def renew(self, matched: Mapping[Key, LayerMatch]) -> None:
        """Take the layers as a cut has left them, by graph and name: a table that was begun stays."""
        if self.table is not None:
            members = tuple(matched.get(_key(match), match) for match in self.table.members)
            self.table = Table(members)

    def chain(
        self, match: LayerMatch, fitter: Fitter, pending: Collection[ir.Node]
    ) -> tuple[Chain, float | None] | str:
        """The chain of one of the layers and what it loses, or why it is not fitted, a phrase for people.

        `pending` as for `Window.advance`.
        """
        if self.table is not None:
            self._fit(self.table, fitter, pending)
            self.table = None
        if self.found is None:
            return self.unfitted
        lookup = match.layer.lookup
        ends = self.found.rows.shape[0], self.found.basis.shape[1]
        if ends != (match.layer.weight.shape[::-1] if lookup else match.layer.weight.shape):
            return "a cut has left less of it than of others that use its table"
        loss = self.found.looked_up if lookup else self.found.multiplied
        return table_chain(self.found, match.layer, self.means.get(_key(match))), loss

    def _fit(self, table: Table, fitter: Fitter, pending: Collection[ir.Node]) -> None:
        current = Table(tuple(match.current() for match in table.members))
        seen = observe_table(current, fitter.now, fitter.calibration, pending)
        if isinstance(seen, str):
            self.unfitted = seen
            return
        rank = min(self.rank, table.matrix.shape[1])
        self.found = fit_table(table.matrix, rank, seen.uses, seen.held_out)
        products = zip(table.products, seen.means, strict=True)
        self.means = {_key(match): mean for match, mean in products if mean is not None}


def table_groups(plan: Plan, matched: Sequence[LayerMatch], found: Sequence[Tie]) -> dict[Key, TableGroup]:
    """The tables all of whose layers get the same rank by `svd`, by graph and name of each layer."""
    choices = {(choice.graph, choice.layer): choice for choice in plan.decomposed}
    groups: dict[Key, TableGroup] = {}
    for tie in found:
        keys = [_key(matched[index]) for index in tie.members]
        own = [choices.get(key) for key in keys]
        given: set[tuple[str | None, Ranks]] = {(None, ()) if c is None else (c.method, c.ranks) for c in own}
        if len(given) > 1 or next(iter(given))[0] != "svd" or any(choice and choice.group for choice in own):
            continue
        table = table_of(tie, matched)
        if table is not None and not unsound(table.members[0].layer.weight):
            (rank,) = next(iter(given))[1]
            groups |= dict.fromkeys(keys, TableGroup(table, rank))
    return groups


def _key(match: LayerMatch) -> Key:
    return match.layer.graph, match.layer.name
