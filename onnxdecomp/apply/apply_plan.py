"""Carrying out a plan: fit the factors of each layer, put the chains in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import onnx_ir as ir

from onnxdecomp.apply.cut_channels import put_in, select
from onnxdecomp.apply.kept_stages import KeptStages
from onnxdecomp.apply.layer_fitter import Fitter
from onnxdecomp.apply.schedule import as_they_are, fit_stages
from onnxdecomp.apply.sibling_group import SiblingGroup, sibling_groups
from onnxdecomp.apply.storable import Storable, fitted, mended, of_table, with_siblings
from onnxdecomp.apply.table_group import TableGroup, table_groups
from onnxdecomp.calibration.batchnorm import put_statistics
from onnxdecomp.calibration.statistics import Calibration, unobservable
from onnxdecomp.channels.channel import Channel
from onnxdecomp.channels.channel_cut import ChannelCut
from onnxdecomp.channels.find_channels import find_channels
from onnxdecomp.core.layer import Factors, Ranks
from onnxdecomp.decompositions.base import Decomposition
from onnxdecomp.errors import DefectError
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.emitter import Share
from onnxdecomp.layers.recurrence import forget_states, name_states
from onnxdecomp.layers.replace import Rewriter, Rewritten
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.layers.tied_weights import ties
from onnxdecomp.runtime.memory import give_back
from onnxdecomp.runtime.session import Feed
from onnxdecomp.search.check_plan import check_plan, method_of
from onnxdecomp.search.finite_weights import unsound
from onnxdecomp.search.keep_layers import Key, key_of
from onnxdecomp.search.layer_errors import foreseen
from onnxdecomp.search.plan import Choice, Cut, Plan
from onnxdecomp.search.stored_parameters import shares_of
from onnxdecomp.tasks.journal import Journal

REPAIRED = "pkg.onnxdecomp.repaired"
"""The metadata of nodes that have other numbers for what was done to others before them."""

Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class CarriedOut:
    """What was done to a model.

    Attributes:
        rewritten: The layers that have other nodes or numbers, a layer once.
        cuts: What became of the channels that were cut.
    """

    rewritten: tuple[Rewritten, ...] = ()
    cuts: tuple[ChannelCut, ...] = ()


def carry_out(
    model: ir.Model,
    matched: list[LayerMatch],
    plan: Plan,
    *,
    seed: int = 0,
    requantize: bool = False,
    calibration: Calibration | None = None,
    on_layer: Callable[[str], None] | None = None,
    on_failure: Callable[[Choice | Cut, Exception], object] | None = None,
    probe: Feed | None = None,
    journal: Journal | None = None,
) -> CarriedOut:
    """Rewrite the model in place as the plan says; the same plan, seed and model give the same bytes.

    `matched` is emptied: every dense weight is let go of as soon as its factors stand in the model.
    Layers that share a weight and are given the same method and ranks share the factors, an embedding and
    the head that multiplies by its transpose too; a group of siblings has its first factor in the graph once.
    With `requantize`, layers whose weight was stored quantized get factors stored as int8, or as the weight
    was. With a `calibration` every layer that can be observed is fitted to what it sees by then, unless it
    shares its factors. With a `probe`, inputs of the model, every cut of a channel is checked on it.
    With a `journal` for just this plan, model and calibration every stage is kept as soon as it is done.

    A layer whose factors an error of ours prevents is kept, and `on_failure` is told; without it, the error
    is raised. An error on the way into the graph is always raised: the model is then of no more use.

    Raises:
        UsageError: The plan does not fit the layers (see `check_plan`).
        ModelError: A weight holds NaN or infinite values.
        DefectError: Names the layer that could not be put in.
    """
    # What may be changed is said by the plan: what it cuts was constant when it was made.
    channels = find_channels(model, matched, freeze=True)[0] if plan.cuts else ()
    check_plan(plan, matched, channels)
    unnamed = [] if calibration is None else _name_states(model, plan, channels)
    work = fit_stages(model, matched, plan, channels, repair=calibration is not None and plan.repair)
    del channels
    found_ties = ties(matched)
    shares = shares_of(matched, found_ties, plan)
    users = Counter(share.key for share in shares.values())
    run = _Run(
        model,
        None if calibration is None else Fitter.of(model, calibration),
        {key: share for key, share in shares.items() if users[share.key] > 1},
        sibling_groups(plan, matched),
        {} if calibration is None or calibration.synthetic else table_groups(plan, matched, found_ties),
        {matched[index].nodes[0] for tie in found_ties if tie.is_shared for index in tie.members},
        seed,
        requantize,
        on_layer or (lambda layer: None),
        on_failure,
        probe,
        KeptStages(journal),
    )
    matched.clear()
    del found_ties
    while work:
        pending = {node for stage in work for node in stage.nodes}
        stage = work.popleft()
        if stage.cut is not None:
            later = {stage.match.nodes[0] for stage in work if stage.match is not None}
            run.cut(stage.cut, pending, later)
        elif stage.match is not None and stage.choice is not None:
            run.layer(stage.match.current(), stage.choice, pending)
            give_back()
        elif run.fitter is not None:
            run.normalisation(run.fitter, stage.nodes[0], pending)
        gone = any(node.graph is None for other in work if other.cut is not None for node in other.nodes)
        if gone and stage.cut is None:  # a cut has done so
            infer_shapes(model)  # channels are found by them
        if gone or stage.cut is not None:
            work = as_they_are(model, work)
            run.renew([other.match for other in work if other.match is not None])
    forget_states(model, unnamed)
    run.kept.end()
    return CarriedOut(tuple(run.done.values()), tuple(run.cuts))


def _name_states(model: ir.Model, plan: Plan, channels: Sequence[Channel]) -> list[str]:
    """Have states that are cut given out, so that they can be observed."""
    cut = {own.channel for own in plan.cuts}
    matched = [own.match for channel in channels if channel.name in cut for own in channel.recurrences]
    names = name_states(model, matched)
    if names:
        infer_shapes(model)
    return names


@dataclass(eq=False)
class _Run:
    """A plan on the way.

    Attributes:
        model: Rewritten in place.
        fitter: Fits to calibration inputs, where there are any.
        shares, groups: What layers share, by graph and name; groups of siblings.
        tables: Those whose rows are fitted to how they are used, by graph and name of the layers.
        tied: Nodes of layers that share a weight with others.
        seed, requantize, on_layer, on_failure, probe: See `carry_out`.
        kept: What earlier runs have kept of the stages.
        done, cuts: What was done; `done` by graph and name.
        shared_factors: Those that further layers will have as well.
    """

    model: ir.Model
    fitter: Fitter | None
    shares: Mapping[Key, Share]
    groups: Mapping[tuple[str, str], SiblingGroup]
    tables: Mapping[Key, TableGroup]
    tied: Collection[ir.Node]
    seed: int
    requantize: bool
    on_layer: Callable[[str], object]
    on_failure: Callable[[Choice | Cut, Exception], object] | None
    probe: Feed | None
    kept: KeptStages
    done: dict[Key, Rewritten] = field(default_factory=dict)
    cuts: list[ChannelCut] = field(default_factory=list)
    shared_factors: dict[Hashable, Factors] = field(default_factory=dict)
    _rewriter: Rewriter = field(init=False)

    def __post_init__(self) -> None:
        self._rewriter = Rewriter(self.model)

    def cut(self, cut: Cut, pending: Collection[ir.Node], later: Collection[ir.Node]) -> None:
        """Cut a channel; `later` as for `select`."""
        self.on_layer(cut.channel)
        make = partial(select, self.model, cut, self.fitter, pending, later)
        selected = self._attempt(partial(self.kept.cut, make, self.model, cut, self.fitter, pending), cut)
        if selected is None:
            return
        try:
            done, rewritten = put_in(self.model, selected, self.fitter, self.probe)
        except Exception as error:
            what = f"{type(error).__name__} while it is cut: {error}"
            raise DefectError(what, layer=key_of(cut)) from error
        # The nodes of its layers have changed since they were put in.
        graph = selected.channel.producers[0].match.layer.graph
        for name in (*done.producers, *done.readers):
            self.done.pop((graph, name), None)
        self.done |= {_key(one): one for one in rewritten}
        self.cuts.append(done)
        self._rewriter = Rewriter(self.model)  # there are other names now

    def renew(self, matched: Sequence[LayerMatch]) -> None:
        """Take the layers that are still to be done as a cut has left them."""
        by_name = {(match.layer.graph, match.layer.name): match for match in matched}
        for group in self.groups.values():
            group.renew(by_name)
        for table in self.tables.values():
            table.renew(by_name)

    def layer(self, match: LayerMatch, choice: Choice, pending: set[ir.Node]) -> None:
        """Replace a layer by its chain, or mend one that is kept."""
        group = self.groups.get((choice.graph, choice.group))
        share = self.shares.get((choice.graph, choice.layer))
        hidden = None if self.fitter is None else _hidden(match, share)
        fitting = None if hidden else self.fitter
        if choice.method is None:
            # A weight that others read as well is theirs, too.
            tied = match.nodes[0] in self.tied
            if fitting is None or match.quantized or tied or unsound(match.layer.weight):
                return
            metadata = {REPAIRED: "true"}
            make: Callable[[], Storable | None] = partial(mended, fitting, match, pending)
        else:
            self.on_layer(choice.layer)
            method = method_of(choice)
            full = (match.layer.inputs,) if group is not None else method.full_ranks(match.layer)
            ranks = tuple(map(min, choice.ranks, full))
            metadata = _metadata(method, ranks)
            if group is not None:
                make = partial(with_siblings, group, fitting, match, method, pending, hidden)
            else:
                fit = partial(fitted, fitting, match, method, ranks, self.seed, pending)
                make = partial(fit, share, self.shared_factors, hidden)
                table = self.tables.get((choice.graph, choice.layer))
                if table is not None and self.fitter is not None:
                    make = partial(of_table, table, self.fitter, match, pending, share, make)
        # What layers have in common is found at the first of them, and needed at the others.
        joint = group is not None or share is not None or (choice.graph, choice.layer) in self.tables
        keep = partial(self.kept.layer, make, self.fitter, pending, share, joint=joint)
        made = self._attempt(keep, choice)
        if made is not None:
            quantize = self.requantize and match.requantizes
            put = _put(self._rewriter, match, made, metadata, group, quantize=quantize)
            self.done.pop(_key(put), None)  # what was done last comes last
            self.done[_key(put)] = put

    def normalisation(self, fitter: Fitter, node: ir.Node, pending: Collection[ir.Node]) -> None:
        """Give a BatchNormalization the statistics that belong to what comes to it by now."""
        found = self.kept.statistics(partial(fitter.statistics, node, pending), fitter, pending)
        if found is not None:
            put_statistics(self.model, node, *found)

    def _attempt(self, make: Callable[[], Made | None], choice: Choice | Cut) -> Made | None:
        """What is made; None where nothing is, or an error of ours prevents it."""
        try:
            return make()
        except Exception as error:
            if self.on_failure is None or foreseen(error):
                raise
            self.on_failure(choice, error)
            return None


def _key(done: Rewritten) -> Key:
    return done.match.layer.graph, done.match.layer.name


def _metadata(method: Decomposition, ranks: Ranks) -> dict[str, str]:
    return {"pkg.onnxdecomp.method": method.name, "pkg.onnxdecomp.ranks": ",".join(map(str, ranks))}


def _hidden(match: LayerMatch, share: Share | None) -> str | None:
    """Why a layer is not fitted to its inputs."""
    return unobservable(match) or (None if share is None else "other layers have the same factors")


def _put(
    rewriter: Rewriter,
    match: LayerMatch,
    made: Storable,
    metadata: Mapping[str, str],
    group: SiblingGroup | None,
    *,
    quantize: bool,
) -> Rewritten:
    """Put a chain in a layer's place, and before it the first factor of its group."""
    try:
        trunk = None if group is None else group.put(rewriter, made.chain, metadata, quantize=quantize)
        named = REPAIRED in metadata  # a cut that comes later looks for it
        rewritten = rewriter.replace(match, made.chain, metadata, made.share, quantize, trunk, named=named)
    except Exception as error:
        what = f"{type(error).__name__} while it is put into the graph: {error}"
        raise DefectError(what, layer=(match.layer.graph, match.layer.name)) from error
    done = replace(rewritten, rel_error=made.error, loss=made.loss, unfitted=made.unfitted)
    return done.without_weight()
