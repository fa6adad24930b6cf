"""Carrying out a plan: fit the factors of each layer, put the chains in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxdecomp.channels.channel_cut import ChannelCut
from onnxdecomp.apply.cut_channels import carry_out_cut
from onnxdecomp.apply.layer_fitter import Fitter
from onnxdecomp.apply.schedule import as_they_are, fit_stages
from onnxdecomp.apply.sibling_group import SiblingGroup, sibling_groups
from onnxdecomp.calibration.statistics import Calibration, unobservable
from onnxdecomp.channels.find_channels import find_channels
from onnxdecomp.core.chain import Chain, mirrored
from onnxdecomp.core.layer import Factors, Layer, Ranks
from onnxdecomp.core.weight_error import weight_error
from onnxdecomp.decompositions.base import Decomposition
from onnxdecomp.errors import DefectError
from onnxdecomp.fitting.fit import Fit, in_working_type, stored
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.emitter import Share
from onnxdecomp.layers.replace import Rewriter, Rewritten
from onnxdecomp.layers.tied_weights import ties
from onnxdecomp.search.check_plan import check_plan, method_of
from onnxdecomp.search.finite_weights import unsound
from onnxdecomp.search.layer_errors import foreseen
from onnxdecomp.search.plan import Choice, Cut, Plan
from onnxdecomp.search.stored_parameters import shares_of


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
) -> CarriedOut:
    """Rewrite the model in place as the plan says; the same plan, seed and model give the same bytes.

    `matched` is emptied: every dense weight is let go of as soon as its factors stand in the model.
    Layers that share a weight and are given the same method and ranks share the factors, an embedding and
    the head that multiplies by its transpose too; a group of siblings has its first factor in the graph once.
    With `requantize`, layers whose weight was stored
    quantized get factors stored as int8, or as the weight was. With a `calibration` every layer that can be
    observed is fitted to what it sees by then, unless it shares its factors.

    A layer whose factors an error of ours prevents is kept, and `on_failure` is told; without it, the error
    is raised. An error on the way into the graph is always raised: the model is then of no more use.

    Raises:
        UsageError: The plan does not fit the layers (see `check_plan`).
        ModelError: A weight holds NaN or infinite values.
        DefectError: Names the layer that could not be put in.
    """
    channels = find_channels(model, matched)[0] if plan.cuts else ()
    check_plan(plan, matched, channels)
    repairs = calibration is not None and plan.repair
    work = fit_stages(model, matched, plan, channels, repair=repairs)
    del channels
    found_ties = ties(matched)
    shares = shares_of(matched, found_ties, plan)
    groups = sibling_groups(plan, matched)
    tied = {matched[index].nodes[0] for tie in found_ties if tie.is_shared for index in tie.members}
    matched.clear()
    del found_ties
    users = Counter(share.key for share in shares.values())
    shares = {key: share for key, share in shares.items() if users[share.key] > 1}
    fitter = Fitter.of(model, calibration) if calibration is not None else None
    shared_factors: dict[Hashable, Factors] = {}
    rewriter = Rewriter(model)
    done: list[Rewritten] = []
    cuts: list[ChannelCut] = []
    while work:
        pending = {node for stage in work for node in stage.nodes}
        stage = work.popleft()
        if stage.cut is not None:
            try:
                cut, rewritten = carry_out_cut(model, stage.cut, fitter, pending)
            except Exception as error:
                if on_failure is None or foreseen(error):
                    raise
                on_failure(stage.cut, error)
                continue
            cuts.append(cut)
            touched = {*cut.producers, *cut.readers}
            done = [one for one in done if one.match.layer.name not in touched] + list(rewritten)
            work = as_they_are(model, work)
            continue
        if stage.match is None:
            assert fitter is not None
            fitter.renormalise(stage.nodes[0], pending)
            continue
        match, choice = stage.match.current(), stage.choice
        assert choice is not None
        group = groups.get((choice.graph, choice.group))
        share = shares.get((choice.graph, choice.layer))
        hidden = None if fitter is None else _hidden(match, share)
        fitting = None if hidden else fitter
        if choice.method is None:
            # A weight that others read as well is theirs, too.
            mendable = not match.quantized and match.nodes[0] not in tied and not unsound(match.layer.weight)
            if fitting is None or not mendable:
                continue
            metadata = {"pkg.onnxdecomp.repaired": "true"}
            make: Callable[[], _Storable | None] = partial(_mended, fitting, match, pending)
        else:
            if on_layer:
                on_layer(choice.layer)
            method = method_of(choice)
            metadata = _metadata(method, choice.ranks)
            if group is not None:
                make = partial(_with_siblings, group, fitting, match, method, pending, hidden)
            else:
                fit = partial(_fitted, fitting, match, method, choice.ranks, seed, pending)
                make = partial(fit, share, shared_factors, hidden)
        made = _attempt(make, choice, on_failure)
        if made is not None:
            quantize = requantize and match.requantizes
            done = [one for one in done if _key(one) != (choice.graph, choice.layer)]
            done.append(_put(rewriter, match, made, metadata, group, quantize=quantize))
    return CarriedOut(tuple(done), tuple(cuts))


def _key(done: Rewritten) -> tuple[str, str]:
    return done.match.layer.graph, done.match.layer.name


def _attempt(
    make: Callable[[], _Storable | None],
    choice: Choice,
    on_failure: Callable[[Choice, Exception], object] | None,
) -> _Storable | None:
    """What is made for a layer; None where nothing is, or an error of ours prevents it."""
    try:
        return make()
    except Exception as error:
        if on_failure is None or foreseen(error):
            raise
        on_failure(choice, error)
        return None


def _metadata(method: Decomposition, ranks: Ranks) -> dict[str, str]:
    return {"pkg.onnxdecomp.method": method.name, "pkg.onnxdecomp.ranks": ",".join(map(str, ranks))}


def _hidden(match: LayerMatch, share: Share | None) -> str | None:
    """Why a layer is not fitted to its inputs."""
    return unobservable(match) or (None if share is None else "other layers have the same factors")


@dataclass(frozen=True, eq=False)
class _Storable:
    """A chain in the layer's type, with what it has lost of the weight and of the outputs."""

    chain: Chain
    error: float
    loss: float | None
    share: Share | None = None
    unfitted: str = ""


def _mended(fitting: Fitter, match: LayerMatch, pending: set[ir.Node]) -> _Storable | None:
    """Other numbers for a layer that is kept, where they are of use."""
    found = fitting.repair(match, pending)
    return None if found is None else _storable(found, match)


def _fitted(
    fitting: Fitter | None,
    match: LayerMatch,
    method: Decomposition,
    ranks: Ranks,
    seed: int,
    pending: set[ir.Node],
    share: Share | None,
    shared_factors: dict[Hashable, Factors],
    hidden: str | None,
) -> _Storable:
    """A chain fitted to what the layer sees, or to its weight alone: then perhaps of shared factors."""
    found = None if fitting is None else fitting.fit(match, method, ranks, seed, pending)
    if isinstance(found, Fit):
        return _storable(found, match)
    factors = shared_factors.get(share.key) if share is not None else None
    chain, factors = _plain(match.layer, method, ranks, seed, share, factors)
    if share is not None:
        shared_factors[share.key] = factors
    return replace(_storable(chain, match), share=share, unfitted=found or hidden or "")


def _with_siblings(
    group: SiblingGroup,
    fitting: Fitter | None,
    match: LayerMatch,
    method: Decomposition,
    pending: set[ir.Node],
    hidden: str | None,
) -> _Storable:
    """A chain whose first factor is that of its siblings, too."""
    found = group.chain(match, method, fitting, pending)
    if isinstance(found, Fit):
        return _storable(found, match, in_working_type(found.chain, match.layer))
    return replace(_storable(found, match), unfitted=hidden or group.unfitted)


def _storable(found: Fit | Chain, match: LayerMatch, cast: Chain | None = None) -> _Storable:
    """What was found, in the layer's type: as `cast`, or with the norms of its factors balanced."""
    chain = cast or (stored(found.chain, match.layer) if isinstance(found, Fit) else found)
    _check_range(chain, match)
    loss = found.loss if isinstance(found, Fit) else None
    return _Storable(chain, weight_error(chain, match.layer), loss)


def _put(
    rewriter: Rewriter,
    match: LayerMatch,
    made: _Storable,
    metadata: Mapping[str, str],
    group: SiblingGroup | None,
    *,
    quantize: bool,
) -> Rewritten:
    """Put a chain in a layer's place, and before it the first factor of its group."""
    try:
        trunk = None if group is None else group.put(rewriter, made.chain, metadata, quantize=quantize)
        rewritten = rewriter.replace(match, made.chain, metadata, made.share, quantize, trunk)
    except Exception as error:
        what = f"{type(error).__name__} while it is put into the graph: {error}"
        raise DefectError(what, layer=(match.layer.graph, match.layer.name)) from error
    done = replace(rewritten, rel_error=made.error, loss=made.loss, unfitted=made.unfitted)
    return done.without_weight()


def _plain(
    layer: Layer, method: Decomposition, ranks: Ranks, seed: int, share: Share | None, factors: Factors | None
) -> tuple[Chain, Factors]:
    """The chain that is fitted to the weight alone, of factors that another layer may have brought."""
    first = layer
    if share is not None and share.flipped:
        first = replace(layer, weight=layer.weight.T, bias=None)
    factors = factors or method.fit(first, ranks, seed)
    chain = method.assemble(first, factors)
    return (chain if first is layer else mirrored(chain, layer.bias)), factors


def _check_range(chain: Chain, match: LayerMatch) -> None:
    limit = {"float16": 65504.0}.get(match.layer.dtype, np.inf)
    factors = [step.weight for step in chain.weighted]
    largest = max((float(np.abs(factor).max()) for factor in factors if factor.size), default=0.0)
    if not largest < limit:
        raise DefectError(f"its factors reach {largest:.3g}, too large for {match.layer.dtype}")
