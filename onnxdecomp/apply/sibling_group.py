"""Siblings on their way into the graph: their first factor is fitted once, and stands there once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxdecomp.apply.layer_fitter import Fitter
from onnxdecomp.calibration.reachability import UNREACHED
from onnxdecomp.calibration.statistics import unobservable
from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Factors
from onnxdecomp.decompositions.base import Decomposition
from onnxdecomp.decompositions.shared import by_channel, sibling_factors
from onnxdecomp.fitting.fit import Fit, in_working_type
from onnxdecomp.fitting.shared_factor import nearest
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.replace import Rewriter, Trunk
from onnxdecomp.search.plan import Plan
from onnxdecomp.search.sibling_groups import GroupKey, members_of, weight_of


@dataclass(eq=False)
class SiblingGroup:
    """A group of a plan, whose layers are replaced one after the other.

    Attributes:
        members: In graph order; none any more once the first factor stands in the graph, so that their
            weights can be let go of.
        rank: Of the first factor.
        counts: What the loss of each of them counts.
        first: That factor [rank, S] fitted to what the layers see; None before that, or where nothing is.
        unfitted: Why nothing is.
        plain: By graph and name, the factors that are fitted to the weights alone.
        trunk: The first factor in the graph.
    """

    members: tuple[LayerMatch, ...]
    rank: int
    counts: tuple[float, ...]
    first: Array | None = None
    unfitted: str = ""
    plain: dict[tuple[str, str], Factors] = field(default_factory=dict)
    trunk: Trunk | None = None

    def renew(self, matched: Mapping[tuple[str, str], LayerMatch]) -> None:
        """Take the layers as a cut has left them, those that are still to be replaced, by graph and name."""
        left = [
            (matched[key], count)
            for match, count in zip(self.members, self.counts, strict=False)
            if (key := (match.layer.graph, match.layer.name)) in matched
        ]
        if left:
            self.members, self.counts = (tuple(column) for column in zip(*left, strict=True))
            self.first, self.plain = None, {}

    def chain(
        self, match: LayerMatch, method: Decomposition, fitter: Fitter | None, pending: Collection[ir.Node]
    ) -> Fit | Chain:
        """The chain of one of the layers, fitted to what it sees or, without a fitter, to its weight.

        `pending` as for `Window.advance`.
        """
        if fitter is not None and self.first is None and not self.plain:
            self._start(fitter, pending)
        if self.first is not None:
            found = UNREACHED if fitter is None else fitter.fit_sibling(match, self.first, pending)
            return found if isinstance(found, Fit) else self._nearest(match, self.first)
        first, last = self._plain(match)
        matrix = first.T if match.layer.conv is None else by_channel(first)
        if last.shape == method.shapes(match.layer, (len(matrix),))[1]:
            return method.assemble(match.layer, (first, last))
        return self._nearest(match, matrix)  # a cut has left less of the layer since

    def _nearest(self, match: LayerMatch, first: Array) -> Chain:
        return in_working_type(nearest(match.layer, first), match.layer)

    def _start(self, fitter: Fitter, pending: Collection[ir.Node]) -> None:
        """Fit the first factor to what all of the layers see."""
        matches = [match.current() for match in self.members]
        reasons = (unobservable(match) for match in matches)
        found: Array | str = next(filter(None, reasons), "")
        found = found or fitter.first_of(matches, self._rank, self.counts, pending)
        if isinstance(found, str):
            self.unfitted = found
        else:
            self.first = found

    def _plain(self, match: LayerMatch) -> Factors:
        if not self.plain:
            layers = [match.layer for match in self.members]
            first, lasts = sibling_factors(layers, self._rank, self.counts)
            self.plain = {
                (layer.graph, layer.name): (first, last) for layer, last in zip(layers, lasts, strict=True)
            }
        return self.plain[match.layer.graph, match.layer.name]

    @property
    def _rank(self) -> int:
        """The rank, or what a cut has left of the input."""
        return min(self.rank, self.members[0].layer.inputs)

    def put(self, rewriter: Rewriter, chain: Chain, metadata: Mapping[str, str], *, quantize: bool) -> Trunk:
        """The first factor, put into the graph when it is asked for first."""
        if self.trunk is None:
            self.trunk = rewriter.trunk(self.members, chain, metadata, quantize)
            self.members = ()
        return self.trunk


def sibling_groups(plan: Plan, matched: Sequence[LayerMatch]) -> dict[GroupKey, SiblingGroup]:
    """The plan's groups, none of whose layers is replaced yet."""
    choices = {(choice.graph, choice.layer): choice for choice in plan.decomposed}
    found = {}
    for key, members in members_of(plan, matched).items():
        own = [choices[match.layer.graph, match.layer.name] for match in members]
        counts = tuple(weight_of(choice) for choice in own)
        found[key] = SiblingGroup(members, own[0].ranks[0], counts)
    return found
