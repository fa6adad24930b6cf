"""What came of the targets: what was asked for beside what the finished result has."""

from __future__ import annotations

import math

from onnxdecomp.record.schema.checks import RecordedMetric, RecordedVerification, TargetResult
from onnxdecomp.record.schema.layers import Totals
from onnxdecomp.record.schema.timing import Latency
from onnxdecomp.search.metrics.base import Amount, Change, Outcome
from onnxdecomp.search.targets import Budget, parse_budgets


def target_results(
    target: str, totals: Totals, checked: RecordedVerification | None, latency: Latency | None
) -> tuple[TargetResult, ...]:
    """Every part of a target, from the other parts of the record; None there is what was not measured.

    Raises:
        UsageError: It is no target, see onnxdecomp.search.targets.
    """
    outcome = _outcome(totals, checked, latency)
    return tuple(_result(budget, outcome) for budget in parse_budgets(target))


def _result(budget: Budget, outcome: Outcome) -> TargetResult:
    amount = budget.metric.reached(outcome, percent=budget.percent)
    reached, kept = amount.factor if budget.relative else amount.own, None
    if reached is not None:
        least = budget.relative or budget.sign == ">="
        kept = reached >= budget.limit if least else reached <= budget.limit
    return TargetResult(
        target=str(budget),
        quantity=budget.quantity,
        asked=budget.limit,
        relative=budget.relative,
        reached=reached,
        kept=kept,
    )


def _change(found: RecordedMetric) -> Change:
    new, loss = (math.nan if number is None else number for number in (found.new, found.loss))
    return Change(found.original, new, loss, found.points)


def _outcome(totals: Totals, checked: RecordedVerification | None, latency: Latency | None) -> Outcome:
    """What the record has found of the result."""
    macs, params, size = (
        Amount() if total is None else Amount(total.after, total.ratio)
        for total in (totals.macs, totals.params, totals.bytes)
    )
    speedup = latency.speedup.value if latency and latency.speedup else None
    return Outcome(
        macs,
        params,
        size,
        Amount(latency.compressed.p50, speedup) if latency else Amount(),
        error=checked.worst if checked else None,
        accuracy=checked.accuracy.change if checked and checked.accuracy else None,
        metric=_change(checked.metric) if checked and checked.metric else None,
        agreement=checked.outputs[0].top1_agreement if checked and checked.outputs else None,
    )
