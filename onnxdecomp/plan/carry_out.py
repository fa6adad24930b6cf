"""Carrying out a plan: fit the factors of each layer, put the chains in."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxdecomp.calibrate.observe import Calibration, unobservable
from onnxdecomp.chain import WEIGHTED, Chain
from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.fitting.fit import Fit, stored
from onnxdecomp.methods import get
from onnxdecomp.methods.base import Factors, Method
from onnxdecomp.plan.fitter import Fitter
from onnxdecomp.plan.plan import Choice, Plan
from onnxdecomp.plan.stations import stations
from onnxdecomp.sites.base import Site
from onnxdecomp.sites.rewrite import Rewriter, Rewritten
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
    Layers that share a weight and are given the same method and ranks share the factors. With
    `requantize`, layers whose weight was stored quantized get factors stored as int8. With a `calibration`
    every layer that can be observed is fitted to what it sees by then, unless it shares its weight.

    Raises:
        UsageError: The plan names a layer that the model has not.
        ModelError: A weight holds NaN or infinite values, or its factors do not fit the element type.
    """
    work = stations(model, sites, plan, repair=calibration is not None and plan.repair)
    users = Counter(id(site.root) for site in sites)
    sites.clear()
    fitter = Fitter.of(model, calibration) if calibration is not None else None
    shared_factors: dict[object, Factors] = {}
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
        alone = users[id(site.root)] == 1
        fitting = fitter if alone and not unobservable(site) else None
        if choice.method is None:
            mended = None if fitting is None or site.quantized else fitting.repair(site, pending)
            if mended is not None:
                done.append(_put(rewriter, site, mended, {"pkg.onnxdecomp.repaired": "true"}))
            continue
        if on_layer:
            on_layer(choice.layer)
        method = get(choice.method, **choice.options)
        _check_ranks(choice, method, site)
        metadata = {
            "pkg.onnxdecomp.method": method.name,
            "pkg.onnxdecomp.ranks": ",".join(map(str, choice.ranks)),
        }
        quantize = requantize and site.quantized and site.layer.dtype == "float32"
        if fitting is not None:
            found = fitting.fit(site, method, choice.ranks, seed, pending)
            done.append(_put(rewriter, site, found, metadata, quantize=quantize))
            continue
        share = None if alone else _share_key(site, choice, method)
        factors = shared_factors.get(share) if share is not None else None
        if factors is None:
            factors = method.fit(site.layer, choice.ranks, seed)
        if share is not None:
            shared_factors[share] = factors
        chain = method.assemble(site.layer, factors)
        done.append(_put(rewriter, site, chain, metadata, share=share, quantize=quantize))
    return tuple(done)


def _put(
    rewriter: Rewriter,
    site: Site,
    found: Fit | Chain,
    metadata: Mapping[str, str],
    *,
    share: object = None,
    quantize: bool = False,
) -> Rewritten:
    """Put a chain in a layer's place, in the layer's type."""
    chain = stored(found.chain, site.layer) if isinstance(found, Fit) else found
    _check_range(chain, site)
    error = weight_error(chain, site.layer)
    rewritten = rewriter.replace(site, chain, metadata, share, quantize)
    loss = found.loss if isinstance(found, Fit) else None
    return replace(rewritten, rel_error=error, loss=loss).without_weight()


def _share_key(site: Site, choice: Choice, method: Method) -> object:
    """Equal for layers with the same factors: the weight's numbers, the method, its options and ranks.

    What a method decides by the layer's attributes (which factor has the kernel) shows in the shapes.
    """
    weight = site.layer.weight
    digest = hashlib.sha256(np.ascontiguousarray(weight).data).hexdigest()
    options = tuple(sorted(choice.options.items()))
    return (
        digest,
        method.shapes(site.layer, choice.ranks),
        weight.shape,
        site.layer.groups,
        site.layer.dtype,
        choice.method,
        options,
        choice.ranks,
    )


def _check_ranks(choice: Choice, method: Method, site: Site) -> None:
    full = method.full_ranks(site.layer) if method.refusal(site.layer) is None else None
    if full is None or len(choice.ranks) != len(full) or min(choice.ranks) < 1:
        ranks = ",".join(map(str, choice.ranks))
        raise UsageError(
            f"the plan is for another model: {method.name} takes no ranks {ranks} for the layer "
            f"{choice.layer!r} here"
        )


def _check_range(chain: Chain, site: Site) -> None:
    limit = {"float16": 65504.0}.get(site.layer.dtype, np.inf)
    factors = [step.weight for step in chain.steps if isinstance(step, WEIGHTED)]
    largest = max((float(np.abs(factor).max()) for factor in factors if factor.size), default=0.0)
    if not largest < limit:
        raise ModelError(
            f"{site.layer.name}: its factors reach {largest:.3g}, too large for {site.layer.dtype}; "
            "exclude the layer or choose another method"
        )
