"""Ranks that know nothing of the hardware, for a plan that does: what are alignment and timing worth?

Both ways keep the layers of the plan that they are compared with, and its MACs as nearly as ranks allow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from bench.realised import Dense
from onnxdecomp.core.layer import Ranks
from onnxdecomp.decompositions.base import Decomposition, Refusal, outline
from onnxdecomp.decompositions.registry import get
from onnxdecomp.ranks.spec import choose, parse
from onnxdecomp.runtime.providers import quantum
from onnxdecomp.search.fixed_ranks import method_options
from onnxdecomp.search.plan import Choice, Plan, cost_of

_DRAWS = 200
_LARGEST = 64.0


def unaligned(plan: Plan, dense: Dense, *, seed: int = 0) -> Plan:
    """The plan with every rank moved off the quantum, at random, by less than half of it.

    Of several draws the one is taken whose MACs are nearest the plan's. Full ranks stay.
    """
    block = quantum("cpu")
    rng = np.random.default_rng(seed)

    def moved(choice: Choice) -> Choice:
        method = get(choice.method or "", **choice.options)
        full = method.full_ranks(dense.layers[choice.graph, choice.layer])
        offsets = rng.integers(1, block // 2, len(full)) * rng.choice((-1, 1), len(full))
        ranks = (
            rank if rank >= most else int(np.clip(rank + offset, 1, most - 1))
            for rank, offset, most in zip(choice.ranks, offsets, full, strict=True)
        )
        return _with(choice, dense, method, tuple(ranks))

    wanted = dense.total_macs(plan)
    draws = (_changed(plan, moved) for _ in range(_DRAWS))
    return min(draws, key=lambda drawn: abs(dense.total_macs(drawn) - wanted))


def evbmf(plan: Plan, dense: Dense) -> Plan:
    """Tucker (of a matrix, its SVD) with ranks in proportion to EVBMF's estimates, at the plan's MACs.

    A layer stays where that would need no fewer MACs than the layer itself.
    """
    spec = parse("evbmf")
    found: dict[tuple[str, str], tuple[Decomposition, Ranks]] = {}
    for choice in plan.decomposed:
        layer = dense.layers[choice.graph, choice.layer]
        method = get("tucker").specialise(layer)
        if isinstance(method, Refusal):
            continue
        ranks = choose(method, layer, spec)
        if not isinstance(ranks, str):
            found[choice.graph, choice.layer] = (method, ranks)

    def scaled(factor: float) -> Plan:
        def change(choice: Choice) -> Choice:
            key = (choice.graph, choice.layer)
            stays = replace(choice, method=None, options={}, ranks=(), after=None, reason="saves no MACs")
            if key not in found:
                return stays
            method, estimate = found[key]
            full = method.full_ranks(dense.layers[key])
            ranks = (
                min(most, max(1, round(factor * rank))) for rank, most in zip(estimate, full, strict=True)
            )
            changed = _with(choice, dense, method, tuple(ranks))
            return changed if dense.macs(changed) < dense.dense_macs(choice) else stays

        return _changed(plan, change)

    wanted = dense.total_macs(plan)
    low, high = 0.0, _LARGEST
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if dense.total_macs(scaled(middle)) <= wanted else (low, middle)
    return scaled(low)


def _with(choice: Choice, dense: Dense, method: Decomposition, ranks: Ranks) -> Choice:
    layer = dense.layers[choice.graph, choice.layer]
    after = cost_of(outline(method, layer, ranks), layer)
    return replace(choice, method=method.name, options=method_options(method), ranks=ranks, after=after)


def _changed(plan: Plan, change: Callable[[Choice], Choice]) -> Plan:
    return Plan(tuple(change(choice) if choice.method else choice for choice in plan.choices))
