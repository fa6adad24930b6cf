"""What tables lose: their candidates are fitted to how they are used, as carrying a plan out fits them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxdecomp.calibration.statistics import Calibration, window
from onnxdecomp.calibration.table_uses import TableRows, observe_table
from onnxdecomp.core.layer import Ranks
from onnxdecomp.fitting.table import TableFit, fit_table, table_chain
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.tables import Table, table_of
from onnxdecomp.layers.tied_weights import Tie
from onnxdecomp.search.candidates import Candidate, Outline


@dataclass(eq=False)
class TableCandidates:
    """The tables of a model whose layers all have candidates.

    Attributes:
        model, matched, calibration: Where they are observed.
        tables: By the places of their layers among the matches.
    """

    model: ir.Model
    matched: Sequence[LayerMatch]
    calibration: Calibration
    tables: Mapping[int, Table]
    _seen: dict[Table, TableRows | str] = field(default_factory=dict)
    _fits: dict[tuple[Table, Ranks], TableFit] = field(default_factory=dict)

    @staticmethod
    def of(
        model: ir.Model,
        matched: Sequence[LayerMatch],
        ties: Sequence[Tie],
        options: Sequence[Sequence[Outline]],
        calibration: Calibration,
    ) -> TableCandidates:
        """Those that are looked at by real inputs."""
        found: dict[int, Table] = {}
        for tie in () if calibration.synthetic else ties:
            table = table_of(tie, matched) if all(options[place] for place in tie.members) else None
            if table is not None:
                found |= dict.fromkeys(tie.members, table)
        return TableCandidates(model, matched, calibration, found)

    def fitted(self, place: int, option: Outline) -> Candidate | None:
        """A candidate of the layer at this place; None where it is not fitted to its table's uses."""
        table = self.tables.get(place)
        if table is None or option.method.name != "svd":
            return None
        if table not in self._seen:
            view = window(self.model, self.calibration)
            self._seen[table] = observe_table(table, view, self.calibration)
        seen = self._seen[table]
        if isinstance(seen, str):
            return None
        found = self._fits.get((table, option.ranks))
        if found is None:
            (rank,) = option.ranks
            found = fit_table(table.matrix, rank, seen.uses, seen.held_out)
            self._fits[table, option.ranks] = found
        match = self.matched[place]
        loss = found.looked_up if match.layer.lookup else found.multiplied
        if loss is None:
            return None
        mean = None if match.layer.lookup else seen.means[table.products.index(match)]
        return Candidate(option, loss, table_chain(found, match.layer, mean))
