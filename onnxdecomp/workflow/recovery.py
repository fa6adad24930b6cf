"""A run that an error of ours has met is made again, with the layers kept that it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from onnxdecomp.errors import DefectError
from onnxdecomp.layers.lowering_check import LoweringCheck
from onnxdecomp.pipeline.base import PlanFailedError
from onnxdecomp.pipeline.pipeline import PipelineResult
from onnxdecomp.search.keep_layers import Key, changes_of, key_of
from onnxdecomp.search.layer_errors import keeping, reason_for
from onnxdecomp.search.plan import Plan
from onnxdecomp.search.search_record import SearchRecord

_RUNS = 12
"""Runs that are made at most to find the layers that an error comes from, before all suspects are kept."""

Run = Callable[[Plan | None], PipelineResult]
Check = Callable[[PipelineResult], Sequence[LoweringCheck]]


def rescued(run: Run, check: Check, plan: Plan | None) -> PipelineResult:
    """The pipeline's result, of layers that have all passed their checks, with these checks.

    Args:
        run: Runs the pipeline on a fresh model with a plan; with None it plans by itself.
        check: The lowering checks of its layers.
        plan: The first plan, or None.

    Raises:
        DefectError: The run fails with every layer kept, too.
        OnnxDecompError: As the pipeline, for what is no error of ours.
    """
    search: SearchRecord | None = None
    while True:
        try:
            ran = run(plan)
        except PlanFailedError as error:
            search = search or error.search
            plan = _without_guilty(run, error)
            continue
        search = search or ran.search
        checks = tuple(check(ran))
        failed = {(entry.graph, entry.layer): _reason(entry) for entry in checks if not entry.passed}
        if not failed or ran.plan is None:
            return replace(ran, search=search, checks=checks)
        plan = keeping(ran.plan, _guilty(ran.plan, failed))


def _guilty(plan: Plan, failed: Mapping[Key, str]) -> dict[Key, str]:
    """What is to be kept for layers that failed: they, or the cuts that a layer without a chain stands at."""
    found: dict[Key, str] = {}
    chains = {key_of(choice) for choice in plan.decomposed}
    for key, reason in failed.items():
        ends = () if key in chains else plan.cuts
        cuts = [cut for cut in ends if key[1] in (*cut.producers, *cut.readers)]
        found |= {key_of(cut): reason for cut in cuts} or {key: reason}
    return found


def _reason(check: LoweringCheck) -> str:
    what = check.reason or (
        f"the rewritten nodes differ from their own weight by {check.rel_error:.3g} (at most "
        f"{check.tolerance:g})"
    )
    return reason_for(DefectError(what), check.layer)


def _without_guilty(run: Run, error: PlanFailedError) -> Plan:
    """The plan without the layers that an error comes from: the one it names, else those found by halves."""
    plan = error.plan
    layers = [key_of(choice) for choice in changes_of(plan)]
    if not layers:
        raise error
    if error.layer is not None:
        return keeping(plan, {error.layer: reason_for(error, error.layer[1])})

    def holds(decomposed: Sequence[Key]) -> bool:
        try:
            run(keeping(plan, {key: "" for key in layers if key not in decomposed}))
        except DefectError:
            return False
        return True

    if not holds(()):
        raise error
    good: list[Key] = []
    suspects = [layers]
    for _ in range(_RUNS):
        if not suspects:
            break
        group = suspects.pop(0)
        if len(group) < len(layers) and holds((*good, *group)):
            good += group
        elif len(group) > 1:
            suspects += [group[: len(group) // 2], group[len(group) // 2 :]]
    return keeping(plan, {key: reason_for(error, key[1]) for key in layers if key not in good})
