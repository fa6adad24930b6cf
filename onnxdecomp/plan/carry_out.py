"""Carrying out a plan: fit the factors of each layer, put the chains in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibrate.observe import Calibration, unobservable
from onnxdecomp.chain import WEIGHTED, Chain, mirrored
from onnxdecomp.errors import ModelError
from onnxdecomp.fitting.fit import Fit, stored
from onnxdecomp.layer import Layer
from onnxdecomp.methods.base import Factors, Method, Ranks
from onnxdecomp.plan.check import check_plan, method_of
from onnxdecomp.plan.fitter import Fitter
from onnxdecomp.plan.plan import Plan
from onnxdecomp.plan.sound import unsound
from onnxdecomp.plan.stations import stations
from onnxdecomp.plan.tally import shares_of
from onnxdecomp.sites.base import Share, Site
from onnxdecomp.sites.rewrite import Rewriter, Rewritten
from onnxdecomp.sites.ties import ties
from onnxdecomp.weight_error import weight_error


def carry_out(
    model: ir.Model,
    sites: list[Site],
    plan: Plan,
    *,
    seed: int = 0,
    requantize: bool = False,
    calibration: Calibration | None = None,
    on_layer: Callable[[str], None] | None = None,
) -> tuple[Rewritten, ...]:
    """Rewrite the model in place as the plan says; the same plan, seed and model give the same bytes.

    `sites` is emptied: every dense weight is let go of as soon as its factors stand in the model.
    Layers that share a weight and are given the same method and ranks share the factors, an embedding and
    the head that multiplies by its transpose too. With `requantize`, layers whose weight was stored
    quantized get factors stored as int8. With a `calibration` every layer that can be observed is fitted to
    what it sees by then, unless it shares its factors.

    Raises:
        UsageError: The plan does not fit the layers (see `check_plan`).
        ModelError: A weight holds NaN or infinite values, or its factors do not fit the element type.
    """
    check_plan(plan, sites)
    work = stations(model, sites, plan, repair=calibration is not None and plan.repair)
    found_ties = ties(sites)
    shares = shares_of(sites, found_ties, plan)
    tied = {sites[index].nodes[0] for tie in found_ties if tie.is_shared for index in tie.members}
    sites.clear()
    del found_ties
    users = Counter(share.key for share in shares.values())
    fitter = Fitter.of(model, calibration) if calibration is not None else None
    shared_factors: dict[Hashable, Factors] = {}
    rewriter = Rewriter(model)
    done = []
    while work:
        pending = {node for station in work for node in station.nodes}
        station = work.popleft()
        if station.site is None:
            assert fitter is not None
            fitter.renormalise(station.nodes[0], pending)
            continue
        site, choice = station.site.current(), station.choice
        assert choice is not None
        share = shares.get((choice.graph, choice.layer))
        if share is not None and users[share.key] == 1:
            share = None
        hidden = None if fitter is None else _hidden(site, share)
        fitting = None if hidden else fitter
        if choice.method is None:
            # A weight that others read as well is theirs, too.
            mendable = fitting is not None and not site.quantized and site.nodes[0] not in tied
            mendable = mendable and not unsound(site.layer.weight)
            mended = fitting.repair(site, pending) if fitting is not None and mendable else None
            if mended is not None:
                done.append(_put(rewriter, site, mended, {"pkg.onnxdecomp.repaired": "true"}))
            continue
        if on_layer:
            on_layer(choice.layer)
        method = method_of(choice)
        metadata = {
            "pkg.onnxdecomp.method": method.name,
            "pkg.onnxdecomp.ranks": ",".join(map(str, choice.ranks)),
        }
        quantize = requantize and site.quantized and site.layer.dtype == "float32"
        found = None if fitting is None else fitting.fit(site, method, choice.ranks, seed, pending)
        if found is None and fitting is not None:
            hidden = "what it sees or makes is not finite"
        if found is not None:
            done.append(_put(rewriter, site, found, metadata, quantize=quantize))
            continue
        factors = shared_factors.get(share.key) if share is not None else None
        chain, factors = _plain(site.layer, method, choice.ranks, seed, share, factors)
        if share is not None:
            shared_factors[share.key] = factors
        done.append(
            _put(rewriter, site, chain, metadata, share=share, quantize=quantize, unfitted=hidden or "")
        )
    return tuple(done)


def _hidden(site: Site, share: Share | None) -> str | None:
    """Why a layer is not fitted to its inputs."""
    return unobservable(site) or (None if share is None else "other layers have the same factors")


def _put(
    rewriter: Rewriter,
    site: Site,
    found: Fit | Chain,
    metadata: Mapping[str, str],
    *,
    share: Share | None = None,
    quantize: bool = False,
    unfitted: str = "",
) -> Rewritten:
    """Put a chain in a layer's place, in the layer's type."""
    chain = stored(found.chain, site.layer) if isinstance(found, Fit) else found
    _check_range(chain, site)
    error = weight_error(chain, site.layer)
    rewritten = rewriter.replace(site, chain, metadata, share, quantize)
    loss = found.loss if isinstance(found, Fit) else None
    return replace(rewritten, rel_error=error, loss=loss, unfitted=unfitted).without_weight()


def _plain(
    layer: Layer, method: Method, ranks: Ranks, seed: int, share: Share | None, factors: Factors | None
) -> tuple[Chain, Factors]:
    """The chain that is fitted to the weight alone, of factors that another layer may have brought."""
    first = layer
    if share is not None and share.flipped:
        first = replace(layer, weight=layer.weight.T, bias=None)
    factors = factors or method.fit(first, ranks, seed)
    chain = method.assemble(first, factors)
    return (chain if first is layer else mirrored(chain, layer.bias)), factors


def _check_range(chain: Chain, site: Site) -> None:
    limit = {"float16": 65504.0}.get(site.layer.dtype, np.inf)
    factors = [step.weight for step in chain.steps if isinstance(step, WEIGHTED)]
    largest = max((float(np.abs(factor).max()) for factor in factors if factor.size), default=0.0)
    if not largest < limit:
        raise ModelError(
            f"{site.layer.name}: its factors reach {largest:.3g}, too large for {site.layer.dtype}; "
            "exclude the layer or choose another method"
        )
