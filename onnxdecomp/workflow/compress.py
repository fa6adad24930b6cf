"""compress and inspect: the whole way of a model through the pipeline, as functions that return values."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxdecomp.data.culprit import blaming
from onnxdecomp.errors import GateError, ModelError, UnchangedError, UsageError
from onnxdecomp.evaluate import preflight
from onnxdecomp.evaluate import verify as verification
from onnxdecomp.graph.load import load
from onnxdecomp.graph.output_file import claim, on_disk, staged
from onnxdecomp.graph.save import check_target
from onnxdecomp.latency.meter import Watch, timed_input
from onnxdecomp.layers.lowering_check import LoweringCheck
from onnxdecomp.layers.registry import adapters
from onnxdecomp.pipeline import pipeline
from onnxdecomp.pipeline.base import Planner, Progress, Quantizer
from onnxdecomp.record.build import (
    Origin,
    describe_data,
    describe_environment,
    describe_model,
    describe_output,
    run_record,
)
from onnxdecomp.record.details import Details, details_of
from onnxdecomp.record.layers import layer_records
from onnxdecomp.record.schema.layers import LayerRecord
from onnxdecomp.record.schema.origin import ModelFile
from onnxdecomp.runtime import environment
from onnxdecomp.search.layer_errors import mishaps
from onnxdecomp.search.plan import Plan
from onnxdecomp.tensor.blas_threads import one_thread
from onnxdecomp.training.settings import Settings
from onnxdecomp.workflow.context import RunContext, pass_context
from onnxdecomp.workflow.error_guard import first_run, hold
from onnxdecomp.workflow.final_timing import profiles, timed_elsewhere
from onnxdecomp.workflow.finish_result import Maker, runner
from onnxdecomp.workflow.option_checks import Asked
from onnxdecomp.workflow.request import (
    Config,
    Requested,
    about_size,
    described,
    mask_of,
    requested,
    stages_of,
)

if TYPE_CHECKING:
    from onnxdecomp.data.feeds import Feeds
    from onnxdecomp.data.mask import Mask
    from onnxdecomp.data.read import Data
    from onnxdecomp.evaluate.benchmark import BenchResult
    from onnxdecomp.evaluate.verify import Verification
    from onnxdecomp.graph.output_file import ModelSource
    from onnxdecomp.pipeline.pipeline import PipelineResult


@dataclass(frozen=True, eq=False)
class Result:
    """What `compress` did.

    Attributes:
        model: The compressed model; the original's content where nothing was decomposed.
        plan: The decision for every layer.
        layers: What happened to every layer, in the plan's order.
        lowering: The lowering check of every rewritten layer.
        notes: What a user should know, a sentence each.
        changed: Whether any layer was decomposed, or the model quantized.
        path: The file written, or None.
        verification: The comparison with the original, or None where not asked for.
        latency: The interleaved timing against the original, or None where not asked for.
        record: The JSON record of the run.
    """

    model: ir.Model
    plan: Plan
    layers: tuple[LayerRecord, ...]
    lowering: tuple[LoweringCheck, ...]
    notes: tuple[str, ...]
    changed: bool
    path: Path | None
    verification: Verification | None
    latency: BenchResult | None
    record: dict[str, Any]


def compress(
    model: ModelSource,
    output: str | Path | None = None,
    *,
    config: Config = None,
    target: str | None = None,
    calib: Data | None = None,
    plan: Plan | Mapping[str, Any] | str | Path | None = None,
    data: Data | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    samples: int | None = None,
    verify: bool = True,
    bench: bool = True,
    bench_seconds: float = 2.0,
    bench_batches: Sequence[int] = (1,),
    bench_threads: Sequence[int] = (),
    details: bool = False,
    max_error: float | None = None,
    provider: str = "cpu",
    threads: int | None = None,
    allow_slower: bool | None = None,
    seed: int | None = None,
    simplify: str | None = None,
    quantize: str | None = None,
    finetune: Settings | Mapping[str, Any] | str | None = None,
    overwrite: bool = False,
    fail_if_unchanged: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    **decompose: Any,
) -> Result:
    """Decompose the layers of a model, check the result against the original, and time both.

    Args:
        model: A file, or a model in memory, which is left as it is.
        output: The file to write; None writes none.
        config: A pipeline's configuration: a TOML file or the same as a mapping.
        target: What is to be reached: "macs=2x", "latency=1.5x", "error=0.05", "drop=0.01", … (see
            onnxdecomp.search.targets); the ranks are found. With none, no rank and no plan it is
            "error=<max_error>", or 0.05.
        calib: Calibration inputs without labels, which factors are fitted to (see onnxdecomp.data.read).
        plan: Carry this plan out: a value, its JSON, or a file with it or with a run's record.
        data: Inputs for the verification, with labels for accuracy (see onnxdecomp.data.read); without
            it those of `calib`, else they are random.
        input_shapes: Shapes of inputs whose dimensions the model leaves free, by name.
        samples: At most so many samples of the data are compared.
        verify: Compare the outputs with the original's.
        bench: Time the result against the original.
        bench_seconds: Seconds that timing may take, roughly.
        bench_batches, bench_threads: The result is timed at these batch sizes and numbers of threads too;
            what decides is `threads` and the first input of `calib`, else of `data`, else a random one.
        details: Put into the record what a report shows: spectra, the graph around every rewritten layer,
            where the time goes.
        max_error: Largest relative L2 error of an output. Where ranks are searched for, layers give way until
            it holds; with ranks given GateError is raised above it, and no file is written.
        allow_slower: Take the result even if it was measured to be no faster than the original. None: only
            where ranks, a plan, or a target of MACs, parameters or bytes were asked for.
        provider, threads: Where it is verified and timed; threads None is one per core.
        seed: Of everything random; None is the configuration's, or 0.
        simplify: "onnxsim", "onnxscript" or "none".
        quantize: "int8" (needs `calib`), "fp16" or "none"; None is as the configuration has it. Inputs and
            outputs keep their types. A target is then one for the quantized model.
        finetune: Train the result on `calib`, with the original as the teacher: settings such as
            "epochs=2,rate=1e-3" (see onnxdecomp.training.settings). Needs torch.
        overwrite: Whether the output may replace a file, the input included.
        fail_if_unchanged: Raise UnchangedError where nothing was, or with `dry_run` would be, decomposed.
        dry_run: Plan only: no factor is computed and no file written.
        progress: Called as the work goes on.
        **decompose: Options of the decompose stage: method, rank, rank_multiple, include, exclude, must_save,
            options, freeze_initializers, mask (see onnxdecomp_passes.decompose). `mask` names the inputs that
            are 0 where a position is padding, which counts neither in fits nor in errors: names with commas
            between them, "none", or "" for those with the usual names.

    Raises:
        UsageError, ModelError, ProviderError, GateError, UnchangedError: See onnxdecomp.errors. Whatever is
            raised, the output is either complete or as it was before.
    """
    report = progress or _silent
    started = time.time()
    file = None if output is None or dry_run else Path(output)
    claim(file, {"calib": calib, "data": data, "plan": plan, "config": config}, overwrite=overwrite)
    asked = Asked(
        plan=plan is not None,
        calib=calib is not None,
        finetune=finetune is not None,
        max_error=max_error,
        verify=verify,
        bench=bench,
        allow_slower=allow_slower,
        samples=samples,
        threads=threads,
        bench_seconds=bench_seconds,
        batches=bench_batches,
        bench_threads=bench_threads,
    )
    wanted = requested(
        *(asked, config, decompose, target, plan, finetune, seed, provider, simplify, quantize)
    )
    stages, given, seed = wanted.stages, wanted.plan, wanted.seed
    cores = threads or environment.cores()
    with on_disk(model) as path, one_thread():
        report("load", 0, 0)
        working = load(path)
        if file is not None:
            check_target(file, model=working, overwrite=overwrite)
        before = describe_model(working, path, named=isinstance(model, str | Path))
        calib, data, masked = _inputs(path, calib, data, samples, mask_of(stages))
        if (verify or bench or input_shapes) and not dry_run:
            preflight.check(path, provider=provider, shapes=input_shapes)
        how: dict[str, Any] = {
            "provider": provider,
            "threads": cores,
            "seed": seed,
            "shapes": input_shapes,
        }
        inputs = cache(lambda: timed_input(path, calib, data, shapes=input_shapes, seed=seed))
        told = (*wanted.notes, *_said_of(masked, calib, data))
        context = RunContext(
            *(path, calib, data, samples, inputs, report),
            details=details,
            mask=masked,
            max_error=max_error,
            timed=bench,
            **how,
        )
        request = described(stages, planned=given is not None, max_error=max_error)
        origin = Origin(
            *(started, 0.0, seed),
            request,
            {"calib": describe_data(calib)},
        )
        if dry_run:
            return _dry_run(
                *(before, working, context, origin, wanted, told),
                must_change=fail_if_unchanged,
            )

        run = runner(wanted, context, working)
        del working

        def again(plan: Plan | None, quantized: bool) -> PipelineResult:
            return run(given if plan is None else plan, quantized)

        def compared(new: Path) -> Verification:
            report("verify", 0, 0)
            return verification.verify(
                path, new, data=data, samples=samples, max_error=max_error, mask=mask_of(stages), **how
            )

        watch = Watch(path, provider, cores, bench_seconds, seed, inputs)
        faster = bench and not (about_size(given, stages) if allow_slower is None else allow_slower)
        holds = verify and request["target"] is not None  # ranks given by hand are not changed
        first, given_up = first_run(
            lambda quantized: run(given, quantized), giving_up=holds and bool(wanted.derived)
        )
        made = hold(
            first,
            Maker(
                path,
                again,
                watch,
                faster,
                verify=compared if holds else None,
                calib=calib,
                training=wanted.training,
                threads=threads,
                report=report,
            ),
            request["target"],
        )
        settled, changed, checked = made.settled, made.changed, None
        ran, plan_done = settled.ran, settled.plan
        layers = layer_records(plan_done, ran.rewritten, made.lowering)
        _require_changed(plan_done, changed or not fail_if_unchanged)
        result = ran.model if changed else load(path)
        with staged(result, file, original=None if changed else path) as written:
            if verify:
                checked = made.compared(written) or compared(written)
                _require_verified(checked)
            timed, remarks = (
                _timed(settled.timed, written, watch, bench_batches, bench_threads, report, faster)
                if bench and changed
                else (None, ())
            )
            notes = _together(
                *(told, given_up, settled.said, ran.notes, settled.notes, mishaps(plan_done), remarks),
                _said_of_check(checked, layers, fitted=data is calib, trained=made.learnt is not None),
            )
            used = None if data is calib else describe_data(data)
            record = run_record(
                before,
                plan=plan_done,
                layers=layers,
                notes=notes,
                where=describe_environment(provider, cores, ran=bool(verify or timed)),
                output=describe_output(written, file),
                verified=checked,
                timed=timed,
                looks=settled.looks if faster else None,
                search=settled.search,
                passes=ran.record,
                origin=origin.ended(used),
                training=made.learnt,
                details=_details(ran, layers, written, watch, timed is not None) if details else None,
            )
            report("save", 0, 0)
        return Result(
            result, plan_done, layers, made.lowering, notes, changed, file, checked, timed, record.to_json()
        )


def inspect(model: ModelSource, *, simplify: str = "none", **decompose: Any) -> Result:
    """What `compress` would do to every layer, without doing it; the same options.

    With neither a rank nor a target it shows what half of the ranks would do: a search takes its time.

    Raises:
        UsageError, ModelError: See onnxdecomp.errors.
    """
    if not any(decompose.get(name) for name in ("rank", "target", "layers", "plan", "config")):
        decompose["rank"] = "0.5"
    return compress(model, simplify=simplify, dry_run=True, **decompose)


_SEEN = (
    "the error is that on the calibration inputs, which the numbers were fitted to: on others it is larger, "
    "give some with --eval to know it"
)


def _said_of_check(
    checked: Verification | None, layers: Sequence[LayerRecord], *, fitted: bool, trained: bool
) -> tuple[str, ...]:
    """What a verification says, and that it was done on what the layers were fitted to, where it was."""
    if checked is None:
        return ()
    own = fitted and (trained or any(layer.loss is not None for layer in layers))
    return (*checked.notes, _SEEN) if own else checked.notes


def _silent(what: str, done: int, total: int) -> None:
    return


def default_output(model: str | Path, config: Config = None, **decompose: Any) -> Path:
    """The file that the command line writes where none is named: "MODEL.METHOD.onnx", in the current folder.

    Raises:
        UsageError: The configuration or an option is not valid.
    """
    decompose.pop("simplify", None)
    stages = stages_of(config, None, "cpu", None, decompose, decompose.pop("quantize", None))
    planners = [stage for stage in stages if isinstance(stage, Planner)]
    methods = [stage.method for stage in planners]
    if methods == ["auto"] and not planners[0].searches:
        methods = ["tucker"]
    suffix = methods[0].replace(",", "-") if methods else "new"
    precision = next((stage.precision for stage in stages if isinstance(stage, Quantizer)), None)
    return Path(f"{Path(model).stem}.{f'{suffix}.{precision}' if precision else suffix}.onnx")


def _inputs(
    path: Path, calib: Data | None, data: Data | None, samples: int | None, mask: str
) -> tuple[Feeds | None, Feeds | None, Mask | None]:
    """The inputs to fit to, those to verify with, the same where no others are given, and what masks them."""
    masked = preflight.mask(path, mask)
    fitted = None if calib is None else preflight.read(path, calib)
    return fitted, fitted if data is None else preflight.read(path, data, samples=samples), masked


def _together(*notes: Sequence[str]) -> tuple[str, ...]:
    """All notes in order, none of them twice."""
    return tuple(dict.fromkeys(note for some in notes for note in some))


def _said_of(mask: Mask | None, calib: Feeds | None, data: Feeds | None) -> tuple[str, ...]:
    """The note on a mask that was found by its name, where there are inputs with padding to leave out."""
    return (mask.note,) if mask is not None and mask.note and (calib or data) is not None else ()


def _timed(
    first: BenchResult | None,
    written: Path,
    watch: Watch,
    batches: Sequence[int],
    threads: Sequence[int],
    report: Progress,
    decide: bool,
) -> tuple[BenchResult, tuple[str, ...]]:
    report("time", 0, 0)
    return timed_elsewhere(first, written, watch, batches, threads, decide=decide)


def _details(
    ran: PipelineResult, layers: Sequence[LayerRecord], written: Path, watch: Watch, timed: bool
) -> Details:
    spent = profiles(written, [layer.name for layer in layers], watch) if timed else None
    return details_of(ran.rewritten, ran.spectra, layers, spent)


def _dry_run(
    before: ModelFile,
    working: ir.Model,
    context: RunContext,
    origin: Origin,
    wanted: Requested,
    said: Sequence[str],
    *,
    must_change: bool,
) -> Result:
    """Run the pipeline up to the pass that plans, and let that one plan only."""
    passes = wanted.stages
    planner = next((each for each in passes if isinstance(each, Planner)), None)
    if planner is None:
        raise UsageError("the pipeline has no decompose pass: there is no plan to show")
    with blaming(context.original, context.calib), wanted.quoting():
        given = pass_context(passes, context, wanted.plan)
        first = passes[: passes.index(planner)]
        ran = pipeline.run(working, first, given, lambda name: context.progress(name, 0, 0))
        context.progress("plan", 0, 0)
        found, _ = planner.plan(ran.model, given.only(planner.needs | planner.uses))
    would_change = bool(found.plan.decomposed) or any(isinstance(each, Quantizer) for each in passes)
    _require_changed(found.plan, would_change or not must_change)
    layers = layer_records(found.plan, carried_out=False)
    notes = (*said, *ran.notes, *(f"{planner.name}: {note}" for note in found.notes), *mishaps(found.plan))
    record = run_record(
        before,
        plan=found.plan,
        layers=layers,
        notes=notes,
        passes=ran.record,
        search=found.record,
        origin=origin.ended(),
    )
    return Result(ran.model, found.plan, layers, (), notes, False, None, None, None, record.to_json())


def _require_changed(plan: Plan, changed: bool) -> None:
    if not changed:
        raise UnchangedError(
            f"nothing was decomposed: {_why_nothing(plan)}; 'onnxdecomp inspect' shows every layer"
        )


def _why_nothing(plan: Plan) -> str:
    reasons = sorted({choice.reason for choice in plan.choices if choice.reason})
    operators = ", ".join(op_type for _, op_type in adapters().by_operator)
    return "; ".join(reasons[:3]) or f"the model has none of these with a constant weight: {operators}"


def _require_verified(checked: Verification) -> None:
    if checked.interface:
        raise ModelError(
            f"the interface changed ({checked.interface[0]}), nothing was written: this is a bug in "
            "onnxdecomp, please report it"
        )
    if checked.status == "failed":
        raise GateError(
            f"verification failed, nothing was written: {checked.reason}; take a higher rank, or leave the "
            "worst layers out with --exclude"
        )
