"""What came of the targets: what was asked for beside what the finished result has."""

from __future__ import annotations

from onnxdecomp.record.schema.checks import RecordedVerification, TargetResult
from onnxdecomp.record.schema.layers import Totals
from onnxdecomp.record.schema.timing import Latency
from onnxdecomp.search.targets import Budget, parse_budgets


def target_results(
    target: str, totals: Totals, checked: RecordedVerification | None, latency: Latency | None
) -> tuple[TargetResult, ...]:
    """Every part of a target, from the other parts of the record; None there is what was not measured.

    Raises:
        UsageError: It is no target, see onnxdecomp.search.targets.
    """
    return tuple(
        _result(budget, _factor(budget, totals, latency))
        if budget.relative
        else _result(budget, _amount(budget, totals, checked, latency))
        for budget in parse_budgets(target)
    )


def _result(budget: Budget, reached: float | None) -> TargetResult:
    kept = None
    if reached is not None:
        kept = reached >= budget.limit if budget.relative else reached <= budget.limit
    return TargetResult(
        target=str(budget),
        quantity=budget.quantity,
        asked=budget.limit,
        relative=budget.relative,
        reached=reached,
        kept=kept,
    )


def _factor(budget: Budget, totals: Totals, latency: Latency | None) -> float | None:
    """The original's over the result's."""
    match budget.quantity:
        case "macs":
            return totals.macs.ratio
        case "params":
            return totals.params.ratio
        case "size":
            return totals.bytes.ratio if totals.bytes else None
        case "latency":
            return latency.speedup.value if latency and latency.speedup else None
    return None


def _amount(
    budget: Budget, totals: Totals, checked: RecordedVerification | None, latency: Latency | None
) -> float | None:
    """The result's own, in the unit of the limit; losses are those of the verification."""
    match budget.quantity:
        case "macs":
            return totals.macs.after
        case "params":
            return totals.params.after
        case "size":
            return totals.bytes.after if totals.bytes else None
        case "latency":
            return latency.compressed.p50 if latency else None
        case "error":
            return checked.worst if checked else None
        case "drop":
            return -checked.accuracy.change if checked and checked.accuracy else None
        case "disagreement":
            agreement = checked.outputs[0].top1_agreement if checked and checked.outputs else None
            return None if agreement is None else 1 - agreement
    return None
