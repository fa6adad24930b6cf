"""Candidates: what could be done to a layer, with what each costs and loses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxdecomp.calibration.statistics import centred
from onnxdecomp.core.chain import Chain
from onnxdecomp.core.dense import dense_chain
from onnxdecomp.core.layer import Layer, Ranks
from onnxdecomp.core.weight_error import weight_error
from onnxdecomp.decompositions.base import Decomposition, Refusal, outline
from onnxdecomp.decompositions.registry import JOINT, METHODS, get
from onnxdecomp.fitting.fit import dense_rows, sketch
from onnxdecomp.fitting.moments import Moments
from onnxdecomp.fitting.quadratic_loss import Problem, as_rows, problem
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.ranks.rounding import round_to_multiple
from onnxdecomp.search.chain_costs import Form, chain_cost
from onnxdecomp.search.plan import Cost, cost_of
from onnxdecomp.search.rank_curves import exact, filled_in, scaled, shape

Floats: TypeAlias = NDArray[np.float64]
What: TypeAlias = Literal["macs", "params"]

REDUCTIONS = (1.1, 1.25, 1.4, 1.6, 1.8, 2.0, 2.3, 2.6, 3.0, 3.5, 4.0, 5.0, 6.5, 8.0, 10.0, 13.0)
"""Of a layer's cost, at which candidates lie."""

_ANCHORS = (2.0, 1.25, 3.5, 8.0)
"""Near these the loss is computed; in between it is interpolated. At the first, methods are compared."""

QUICK = ("spatial", "tucker", "svd")
"""Methods whose fit is quick whatever the layer's size is."""

NOTHING_CHEAPER = "no rank makes it cheaper"
"""Why nothing can be done to a layer that methods take."""

_SMALL = 1 << 13
"""Numbers in a weight up to which every method is tried."""


_SHRINKAGE = 1e-3


@dataclass(frozen=True, eq=False)
class Outline:
    """A method at some ranks, and what it costs: known without any fit.

    Attributes:
        method, ranks: What.
        chain: Without its numbers.
        cost: Parameters and MACs.
    """

    method: Decomposition
    ranks: Ranks
    chain: Chain
    cost: Cost


@dataclass(frozen=True, eq=False)
class Candidate:
    """An outline and what it loses.

    Attributes:
        outline: The method, its ranks and their cost.
        loss: E|y - What x|² / E|y|² on the layer's inputs in the original model; with no moments
            ||What - W||² / ||W||².
        fitted: The chain with its numbers, or None where the loss is interpolated.
        group: The places of the layers that it is done to together, in the list of matches; () for one alone.
    """

    outline: Outline
    loss: float
    fitted: Chain | None = None
    group: tuple[int, ...] = ()


def methods_for(
    names: Sequence[str], match: LayerMatch, options: Mapping[str, Mapping[str, object]] | None = None
) -> list[Decomposition]:
    """The methods among `names` ("auto": all that are worth trying) that take this layer, each once."""
    layer = match.layer
    if tuple(names) == ("auto",):
        names = tuple(METHODS) if layer.weight.size <= _SMALL else QUICK
    names = [name for name in names if name not in JOINT]
    found: dict[str, Decomposition] = {}
    for name in names:
        method = get(name, **(options or {}).get(name, {})).specialise(layer)
        if isinstance(method, Refusal) or method.name in found:
            continue
        if match.adapter.obstacle(outline(method, layer, method.fraction_ranks(layer, 0.5)), layer) is None:
            found[method.name] = method
    return list(found.values())


def outlines(
    match: LayerMatch, methods: Iterable[Decomposition], *, multiple: int = 1, what: What = "macs"
) -> list[Outline]:
    """What could be put in a layer's place: each method at ranks of rising cost, all below the layer's."""
    layer = match.layer
    beside = getattr(beside_weight(layer), what)
    dense = getattr(dense_cost(layer), what) - beside
    found = []
    for method in methods:
        seen: set[Ranks] = set()
        for reduction in reversed(REDUCTIONS):
            ranks = ranks_at(method, layer, beside + dense / reduction, multiple, what)
            if ranks is None or ranks in seen:
                continue
            seen.add(ranks)
            option = outlined(match, method, ranks)
            if getattr(option.cost, what) < beside + dense:
                found.append(option)
    return found


def outlined(match: LayerMatch, method: Decomposition, ranks: Ranks) -> Outline:
    """A method at some ranks in a layer's place."""
    cost = chain_cost(method, Form.of(match.layer), ranks)
    return Outline(method, ranks, outline(method, match.layer, ranks), cost)


def ranks_at(method: Decomposition, layer: Layer, cost: float, multiple: int, what: What) -> Ranks | None:
    """The largest ranks at a common fraction of the full ones whose chain costs `cost` at most, or None."""
    full, form = method.full_ranks(layer), Form.of(layer)

    def ranks(fraction: float) -> Ranks:
        wanted = method.fraction_ranks(layer, fraction)
        if multiple == 1:
            return wanted
        return tuple(round_to_multiple(r, multiple, f) for r, f in zip(wanted, full, strict=True))

    def too_dear(own: Ranks) -> bool:
        return bool(getattr(chain_cost(method, form, own), what) > cost)

    low, high = 1.0 / max(full), 1.0
    least, most = ranks(low), ranks(high)
    if too_dear(least):
        return None
    for _ in range(16):
        if least == most:
            break
        middle = (low + high) / 2
        between = ranks(middle)
        if too_dear(between):
            high, most = middle, between
        else:
            low, least = middle, between
    return least


def candidates(
    match: LayerMatch,
    options: Sequence[Outline],
    moments: Moments | None,
    *,
    what: What = "macs",
    worse: float = 1.3,
    seed: int = 0,
    price: Callable[[Outline], float] | None = None,
    fitted: Callable[[Outline], Candidate | None] | None = None,
) -> list[Candidate]:
    """The outlines with what they lose.

    Every method is fitted where its price is about half of the layer's. Those that lose there at most `worse`
    times what the best one does are fitted at some more ranks, and in between their curve is taken (see
    `curves`), else log loss is interpolated over log cost; the others are left out.

    Args:
        match: The layer.
        options: As `outlines` gives them.
        moments: What the layer sees, or None: then the weight itself is what is approximated.
        what: The cost to interpolate over.
        worse: See above.
        seed: Of methods that start at random.
        price: By which methods are compared, 1 being the layer's own: None is the share of `what`.
        fitted: Fits outlines in a way of its own; to others, for which it gives None, nothing is different.
    """
    posed = None if moments is None else posed_for(match, moments)

    def fit(option: Outline) -> Candidate:
        own = None if fitted is None else fitted(option)
        return own or _fitted(match, option, posed, seed)

    beside = getattr(beside_weight(match.layer), what)
    dense = getattr(dense_cost(match.layer), what) - beside

    def cost(option: Outline) -> float:
        return float(getattr(option.cost, what) - beside)

    paid = price or (lambda option: cost(option) / max(dense, 1))
    groups: dict[str, list[Outline]] = {}
    for option in options:
        groups.setdefault(option.method.name, []).append(option)
    firsts = {
        name: fit(min(own, key=lambda o: abs(math.log(max(paid(o), 1e-3) * _ANCHORS[0]))))
        for name, own in groups.items()
    }
    least = min((first.loss for first in firsts.values()), default=0.0)
    found: list[Candidate] = []
    for name, own in groups.items():
        if firsts[name].loss > worse * least + 1e-9:
            continue
        anchors = {firsts[name].outline.ranks: firsts[name]}
        for reduction in _ANCHORS[1:]:
            option = _nearest(own, dense / reduction, cost)
            if option.ranks not in anchors:
                anchors[option.ranks] = fit(option)
        found += _all(match, own, anchors, posed, cost, fit)
    return found


def probes(weighed: Sequence[Candidate], count: int) -> list[tuple[float, Chain]]:
    """Fitted candidates with their losses, `count` of them, from the least loss to the largest."""
    fitted = sorted((c for c in weighed if c.fitted is not None), key=lambda c: c.loss)
    picks = {round(k * (len(fitted) - 1) / (count - 1)) for k in range(count)} if fitted else set()
    return [(c.loss, c.fitted) for c in (fitted[k] for k in sorted(picks)) if c.fitted is not None]


def posed_for(match: LayerMatch, moments: Moments) -> Problem:
    """The quadratic that candidates of a layer are compared by."""
    weight = as_rows(match.layer.weight, match.layer)
    return problem(moments, weight, _SHRINKAGE, centred=centred(match))


def dense_cost(layer: Layer) -> Cost:
    """What the layer itself costs, with its recurrence."""
    return cost_of(dense_chain(layer), layer)


def beside_weight(layer: Layer) -> Cost:
    """What costs as much whatever becomes of a layer's weight: its recurrence."""
    whole, weight = dense_cost(layer), dense_cost(replace(layer, recurrence=0))
    return Cost(whole.params - weight.params, whole.macs - weight.macs)


def _nearest(options: Sequence[Outline], wanted: float, cost: Callable[[Outline], float]) -> Outline:
    return min(options, key=lambda option: abs(math.log(max(1, cost(option)) / max(1.0, wanted))))


def _fitted(match: LayerMatch, option: Outline, posed: Problem | None, seed: int) -> Candidate:
    layer, method = match.layer, option.method
    if posed is None:
        chain = method.assemble(layer, method.fit(layer, option.ranks, seed))
        return Candidate(option, weight_error(chain, layer) ** 2, chain)
    chain, loss = sketch(method, layer, option.ranks, posed, seed=seed)
    if centred(match):
        chain = replace(chain, bias=posed.bias(dense_rows(chain, layer)))
    return Candidate(option, loss, chain)


def _all(
    match: LayerMatch,
    options: Sequence[Outline],
    anchors: dict[Ranks, Candidate],
    posed: Problem | None,
    cost: Callable[[Outline], float],
    fitted: Callable[[Outline], Candidate],
) -> list[Candidate]:
    """All outlines of one method with their losses; some are fitted, and more are where that is needed."""
    method, layer = options[0].method, match.layer
    by_ranks = {option.ranks: option for option in options}
    ranks = list(by_ranks)
    costs = {own: math.log(max(1, cost(option))) for own, option in by_ranks.items()}
    fits = {own: candidate.loss for own, candidate in anchors.items()}

    def fit(own: Ranks) -> float:
        anchors[own] = fitted(by_ranks[own])
        fits[own] = anchors[own].loss
        return fits[own]

    losses = exact(method, layer, ranks, posed)
    if losses is not None:
        expected = dict(zip(ranks, losses, strict=True))
    elif (curve := shape(method, layer, ranks, posed)) is not None:
        expected = scaled(dict(zip(ranks, curve, strict=True)), costs, fits)
    else:
        filled_in(costs, fits, fit)
        expected = _interpolated(costs, fits)
    return [anchors.get(own) or Candidate(option, expected[own]) for own, option in by_ranks.items()]


def _interpolated(costs: Mapping[Ranks, float], fits: Mapping[Ranks, float]) -> dict[Ranks, float]:
    ordered = sorted(fits, key=lambda own: costs[own])
    x = np.array([costs[own] for own in ordered])
    y = np.log([max(fits[own], 1e-12) for own in ordered])
    return {own: math.exp(_line(cost, x, y)) for own, cost in costs.items()}


def _line(at: float, x: Floats, y: Floats) -> float:
    """Piecewise linear, going on beyond the ends as the nearest piece does."""
    if len(x) == 1:
        return float(y[0] - (at - x[0]))
    index = int(np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2))
    slope = (y[index + 1] - y[index]) / max(x[index + 1] - x[index], 1e-9)
    return float(y[index] + slope * (at - x[index]))
