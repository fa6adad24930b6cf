"""A run that plans only: no factor is computed and no file written."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxdecomp.data.culprit import blaming
from onnxdecomp.errors import UsageError
from onnxdecomp.pipeline import pipeline
from onnxdecomp.pipeline.base import Planner
from onnxdecomp.record.build import Origin, run_record
from onnxdecomp.record.layers import channel_records, layer_records
from onnxdecomp.record.schema.origin import ModelFile
from onnxdecomp.search.layer_errors import error_notes
from onnxdecomp.search.plan import Plan
from onnxdecomp.search.search import SearchResult
from onnxdecomp.workflow.context import RunContext, pass_context
from onnxdecomp.workflow.request import quoting
from onnxdecomp.workflow.result import Result, require_changed


def dry_run(
    run: RunContext, loaded: ir.Model, before: ModelFile, origin: Origin, said: Sequence[str]
) -> Result:
    """Run the pipeline up to the pass that plans, and let that one plan only.

    Args:
        run: What is asked for, and what there is for it.
        loaded: The model, which is changed.
        before: The record's `model`.
        origin: How the run came about.
        said: What a user should know already.

    Raises:
        UsageError: No pass of the pipeline plans.
        UnchangedError: Nothing would be decomposed, and that is asked to be a failure.
    """
    passes = run.config.passes
    planner = next((each for each in passes if isinstance(each, Planner)), None)
    if planner is None and not run.config.idle:
        raise UsageError("the pipeline has no decompose pass: there is no plan to show")
    with blaming(run.original, run.calib), quoting(run.config):
        given = pass_context(passes, run, run.plan)
        before_it = passes[: passes.index(planner)] if planner is not None else ()
        ran = pipeline.run(loaded, before_it, given, run.report)
        run.report("plan")
        found = SearchResult(Plan(()))
        if planner is not None:
            found, _ = planner.plan(ran.model, given.only(planner.needs | planner.uses))
    would_change = bool(found.plan.changes or run.config.fewer_bits)
    require_changed(found.plan, would_change or not run.config.fail_if_unchanged)
    layers = layer_records(found.plan, carried_out=False)
    channels = channel_records(found.plan, carried_out=False)
    notes = (
        *said,
        *ran.notes,
        *(f"{planner.name}: {note}" for note in found.notes if planner is not None),
        *error_notes(found.plan),
    )
    record = run_record(
        before,
        plan=found.plan,
        layers=layers,
        channels=channels,
        notes=notes,
        passes=ran.record,
        saved=ran.saved,
        search=found.record,
        origin=origin.ended(),
    )
    return Result(
        ran.model, found.plan, layers, channels or (), (), notes, False, None, None, None, record.to_json()
    )
