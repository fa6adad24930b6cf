"""The end of a run: its result is compared, timed, put in place and recorded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxdecomp.evaluate import verify as verification
from onnxdecomp.graph.load import load
from onnxdecomp.graph.output_file import staged
from onnxdecomp.latency.meter import LatencyMeter
from onnxdecomp.record.build import Origin, describe_data, describe_environment, describe_output, run_record
from onnxdecomp.record.details import Details, details_of
from onnxdecomp.record.layers import channel_records, layer_records
from onnxdecomp.record.schema.layers import ChannelRecord, LayerRecord
from onnxdecomp.record.schema.origin import ModelFile
from onnxdecomp.runtime.deadline import SURVEY, passed
from onnxdecomp.search.layer_errors import error_notes
from onnxdecomp.workflow.context import RunContext
from onnxdecomp.workflow.final_timing import demands, profiles, timed_elsewhere
from onnxdecomp.workflow.finish_result import FinishedResult
from onnxdecomp.workflow.judging import said_of_goal
from onnxdecomp.workflow.loss_note import said_of_bits, said_of_few, said_of_loss, said_of_training
from onnxdecomp.workflow.result import Result, require_changed, require_verified

if TYPE_CHECKING:
    from onnxdecomp.evaluate.benchmark import BenchResult
    from onnxdecomp.evaluate.verify import Verification
    from onnxdecomp.pipeline.pipeline import PipelineResult


def compared(run: RunContext, new: Path, *, copied: bool = False) -> Verification:
    """A file compared with the original, as the run asks for it.

    Of one that is `copied` from it a single sample tells as much, where the time is over.

    Raises:
        ModelError, ProviderError, UsageError: As `onnxdecomp.evaluate.verify.verify`.
    """
    run.report("verify")
    config = run.config
    brief = copied and passed(run.deadline, SURVEY)
    found = verification.verify(
        run.original,
        new,
        data=run.data,
        samples=1 if brief else config.samples,
        max_error=config.max_error,
        mask=config.mask,
        provider=config.provider,
        options=config.setting.without_graph.options,
        threads=run.threads,
        seed=config.seed,
        shapes=config.input_shapes,
    )
    return verification.measured(found, run.report_task, new)


def write_result(
    run: RunContext,
    file: Path | None,
    before: ModelFile,
    origin: Origin,
    made: FinishedResult,
    meter: LatencyMeter,
    told: Sequence[str],
) -> Result:
    """The result compared, timed, put in place and recorded.

    Args:
        run: What was asked for.
        file: Where it is put; None puts it nowhere.
        before, origin: What the record says of the model that came in, and of the request.
        made: The result.
        meter: Times.
        told: Notes on what was before.

    Raises:
        GateError, UnchangedError: The result is not what was asked for; nothing is written.
    """
    config, chosen, changed, verified = run.config, made.chosen, made.changed, None
    ran, plan = chosen.ran, chosen.plan
    layers = layer_records(plan, ran.rewritten, made.lowering, ran.cuts)
    channels = channel_records(plan, ran.cuts)
    require_changed(plan, changed or not config.fail_if_unchanged)
    result = ran.model if changed else load(run.original)
    with staged(result, file, original=None if changed else run.original) as written:
        if config.verify:
            verified = made.compared(written) or compared(run, written, copied=not changed)
            require_verified(verified)
        timed, remarks = _timed(run, made, written, meter) if config.bench and changed else (None, ())
        fits: tuple[LayerRecord | ChannelRecord, ...] = (*layers, *(channels or ()))
        seen = _said_of_check(verified, fits, fitted=run.data is run.calib, trained=made.learnt is not None)
        taught = said_of_training(made.learnt)
        dear = (
            *said_of_loss(config.sought, config.max_error, verified, chosen.search),
            *said_of_few(ran.cuts),
            *said_of_bits(config.fewer_bits if changed and config.idle else "", config.max_error, verified),
        )
        missed = said_of_goal(config, verified.metric if verified else None)
        notes = _together(
            told, chosen.said, ran.notes, chosen.notes, error_notes(plan), taught, remarks, dear, seen, missed
        )
        record = run_record(
            before,
            plan=plan,
            layers=layers,
            channels=channels,
            notes=notes,
            where=describe_environment(config.provider, run.threads, ran=bool(config.verify or timed)),
            output=describe_output(written, file),
            verified=verified,
            timed=timed,
            looks=chosen.looks if made.faster else None,
            search=chosen.search,
            passes=ran.record,
            saved=ran.saved,
            origin=origin.ended(None if run.data is run.calib else describe_data(run.data)),
            training=made.learnt,
            refinement=ran.refinement,
            details=_details(ran, layers, written, meter, timed is not None) if config.details else None,
        )
        run.report("save")
    return Result(
        result,
        plan,
        layers,
        channels or (),
        made.lowering,
        notes,
        changed,
        file,
        verified,
        timed,
        record.to_json(),
    )


_SEEN = (
    "the error is that on the calibration inputs, which the numbers were fitted to: on others it is larger, "
    "give some with --eval to know it"
)


def _said_of_check(
    checked: Verification | None,
    fits: Sequence[LayerRecord | ChannelRecord],
    *,
    fitted: bool,
    trained: bool,
) -> tuple[str, ...]:
    """What a verification says, and that it was done on what the layers were fitted to, where it was."""
    if checked is None:
        return ()
    own = fitted and (trained or any(fit.loss is not None for fit in fits))
    return (*checked.notes, _SEEN) if own else checked.notes


def _together(*notes: Sequence[str]) -> tuple[str, ...]:
    """All notes in order, none of them twice."""
    return tuple(dict.fromkeys(note for some in notes for note in some))


def _timed(
    run: RunContext, made: FinishedResult, written: Path, meter: LatencyMeter
) -> tuple[BenchResult, tuple[str, ...]]:
    run.report("time")
    config = run.config
    batches = config.bench_batches if "bench_batches" in config.origins else ()  # else what decides is all
    return timed_elsewhere(
        made.chosen.timed, written, meter, batches, config.bench_threads, decide=made.faster
    )


def _details(
    ran: PipelineResult, layers: Sequence[LayerRecord], written: Path, meter: LatencyMeter, timed: bool
) -> Details:
    spent = profiles(written, [layer.name for layer in layers], meter) if timed else None
    return details_of(ran.rewritten, ran.spectra, layers, spent, demands(written, meter) if timed else None)
