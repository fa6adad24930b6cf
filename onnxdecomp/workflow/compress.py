"""compress and inspect: the whole way of a model through the pipeline, as functions that return values."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from onnxdecomp.evaluate import preflight
from onnxdecomp.graph.load import load
from onnxdecomp.graph.output_file import claim, on_disk
from onnxdecomp.graph.save import check_target
from onnxdecomp.latency.as_run import as_run
from onnxdecomp.latency.meter import LatencyMeter, timed_input
from onnxdecomp.record.build import Origin, describe_data, describe_model
from onnxdecomp.runtime import environment, temporary_files
from onnxdecomp.tasks.executors import opened, parse_executor
from onnxdecomp.tensor.blas_threads import one_thread
from onnxdecomp.workflow.choose_quantization import choose_kind, with_candidates
from onnxdecomp.workflow.config import CompressConfig
from onnxdecomp.workflow.config_checks import checked, overruled
from onnxdecomp.workflow.config_json import source_of
from onnxdecomp.workflow.context import RunContext
from onnxdecomp.workflow.default_goal import default_goal, said_of_unnamed
from onnxdecomp.workflow.dry_run import dry_run
from onnxdecomp.workflow.error_guard import first_run, guard_error
from onnxdecomp.workflow.finish_result import FinishedResult, Finisher, runner
from onnxdecomp.workflow.judging import judging
from onnxdecomp.workflow.quantize_alone import NOTE, alone, quantizes_alone
from onnxdecomp.workflow.request import plan_of, request_of, training_of
from onnxdecomp.workflow.result import Result
from onnxdecomp.workflow.time_limit import deadline_of
from onnxdecomp.workflow.workdir import course_of, work_folder
from onnxdecomp.workflow.write_result import compared, write_result

if TYPE_CHECKING:
    from concurrent.futures import Executor

    import onnx_ir as ir

    from onnxdecomp.graph.output_file import ModelSource
    from onnxdecomp.pipeline.base import Progress
    from onnxdecomp.pipeline.configuration import PipelineSource
    from onnxdecomp.pipeline.pipeline import PipelineResult
    from onnxdecomp.runtime.deadline import Deadline
    from onnxdecomp.runtime.timing import Ratio
    from onnxdecomp.search.plan import Plan
    from onnxdecomp.training.settings import Settings
    from onnxdecomp.workflow.keywords import CompressOptions


def compress(
    model: ModelSource,
    output: str | Path | None = None,
    *,
    config: CompressConfig | PipelineSource = None,
    progress: Progress | None = None,
    **options: Unpack[CompressOptions],
) -> Result:
    """Decompose the layers of a model, check the result against the original, and time both.

    Args:
        model: A file, or a model in memory, which is left as it is.
        output: The file to write; None writes none.
        config: A CompressConfig, its JSON form or a file of that (*.json); or a pipeline's configuration, a
            TOML file or the same as a mapping.
        progress: Called as the work goes on.
        **options: The options of CompressConfig, which win over the configuration;
            docs/reference/options.md describes each.
            How far to go: `target`, `rank`, `layers`, `max_error`, `plan`, `allow_slower`. By which
            methods: `method`, `options`, `include`, `exclude`, … Inputs: `calib` to fit to, `data` to verify
            with, `samples`, `input_shapes`, `mask`. Where: `provider`, `threads`, `seed`. Afterwards:
            `quantize`, `finetune`, `verify`, `bench`, … Output: `dry_run`, `overwrite`, `fail_if_unchanged`,
            `details`. None is as the configuration has it.

    Raises:
        UsageError, ModelError, ProviderError, GateError, UnchangedError: See onnxdecomp.errors. Whatever is
            raised, the output is either complete or as it was before.
    """
    asked = CompressConfig.of(source_of(config), options)
    with opened(parse_executor(checked(asked).executor)) as pool:
        return compress_by(pool, model, output, asked, config=config, progress=progress)


def compress_by(
    pool: Executor | None,
    model: ModelSource,
    output: str | Path | None,
    asked: CompressConfig,
    *,
    config: CompressConfig | PipelineSource = None,
    progress: Progress | None = None,
) -> Result:
    """`compress` with an executor that is open already, or none.

    Args:
        pool: Computes tasks beside this process.
        model, output, progress: As for `compress`.
        asked: What is asked for.
        config: Where that was read from, if from a file, which is not to be replaced.

    Raises:
        UsageError, ModelError, ProviderError, GateError, UnchangedError: As `compress`.
    """
    started = time.time()
    file = None if output is None or asked.dry_run else Path(output)
    read = {"calib": asked.calib, "data": asked.data, "plan": asked.plan, "config": config}
    claim(file, read, overwrite=asked.overwrite)
    checked(asked)
    asked, unasked = alone(asked), (NOTE,) if quantizes_alone(asked) else ()
    plan, training = plan_of(asked), training_of(asked)
    deadline, limited = deadline_of(asked)
    with (
        on_disk(model) as path,
        temporary_files.folder_if(bool(asked.setting.converted)) as passing,
        one_thread(),
        work_folder(asked, pool) as workdir,
    ):
        if progress is not None:
            progress("load", 0, 0)
        loaded = load(path)
        if file is not None:
            check_target(file, model=loaded, overwrite=asked.overwrite)
        before = describe_model(loaded, path, named=isinstance(model, str | Path))
        run, said = _context(asked, path, plan, progress or _silent, deadline)
        told = (*unasked, *overruled(asked), *limited, *_said_of_mask(run), *said)
        run = replace(run, course=course_of(run, workdir), pool=pool)
        asked = run.config
        origin = Origin(started, 0.0, asked.seed, request_of(asked), {"calib": describe_data(run.calib)})
        timed = as_run(path, asked.setting, passing)
        run = replace(run, timed=timed)
        meter = LatencyMeter(
            *(timed, asked.setting, asked.bench_seconds, asked.seed, run.inputs),
            deadline=deadline,
            course=run.course,
        )
        if not asked.dry_run or asked.sought is not None:
            kind = choose_kind(run, loaded, meter, slower=_may_be_slower(asked))
            run, told = kind.run, (*told, *kind.notes)
        if asked.dry_run:
            return dry_run(run, loaded, before, origin, told)
        made, given_up = _made(run, loaded, meter, training, kind.took)
        del loaded
        return write_result(run, file, before, origin, with_candidates(made, kind), meter, (*told, *given_up))


def inspect(
    model: ModelSource,
    *,
    config: CompressConfig | PipelineSource = None,
    progress: Progress | None = None,
    **options: Unpack[CompressOptions],
) -> Result:
    """What `compress` would do to every layer, without doing it; the same options.

    With neither a rank nor a target it shows what half of the ranks would do: a search takes its time.

    Raises:
        UsageError, ModelError: See onnxdecomp.errors.
    """
    if config is None and not any(options.get(name) for name in ("rank", "target", "layers", "plan")):
        options["rank"] = "0.5"
    if options.get("simplify") is None:
        options["simplify"] = "none"
    options["dry_run"] = True
    return compress(model, config=config, progress=progress, **options)


def default_output(model: str | Path, config: CompressConfig) -> Path:
    """The file that the command line writes where none is named: "MODEL.METHOD.onnx", in the current folder.

    Raises:
        UsageError: An option is not valid.
    """
    config = alone(config)
    method = "tucker" if config.method == "auto" and not config.searches else config.method
    made = method.replace(",", "-") if config.plans else "" if config.idle else "new"
    parts = [Path(model).stem, made, config.fewer_bits, "onnx"]
    return Path(".".join(part for part in parts if part))


def _silent(what: str, done: int, total: int) -> None:
    return


def _context(
    config: CompressConfig, path: Path, plan: Plan | None, progress: Progress, deadline: Deadline | None
) -> tuple[RunContext, tuple[str, ...]]:
    """What the run has: inputs to fit to, those to verify with, the same where no others are given; notes."""
    mask = preflight.mask(path, config.mask)
    calib = None if config.calib is None else preflight.read(path, config.calib)
    given = None if config.data is None else preflight.read(path, config.data, samples=config.samples)
    cores = config.threads or environment.cores()
    goal = default_goal(config, path, calib, given, mask)
    if goal is not None:
        config = replace(config, metric=goal.metric, target=goal.target)
    judged = judging(config, path, calib, given, mask, cores)
    data = judged.data
    shapes, seed = config.input_shapes, config.seed
    if (config.verify or config.bench or shapes) and not config.dry_run:
        preflight.check(path, provider=config.provider, shapes=shapes)
    made = partial(timed_input, shapes=shapes, seed=seed, batch=config.batch, setting=config.setting)
    inputs = cache(lambda: made(path, calib, data))
    if config.batch is not None:
        inputs()  # a batch that the model does not take is an error before the work
    run = RunContext(
        *(config, path, inputs, cores, progress, plan, calib, data, mask),
        assumed=goal is not None,
        task=judged.search,
        report_task=judged.report,
        deadline=deadline,
    )
    unused = (*preflight.said_of_unused(calib), *preflight.said_of_unused(given))
    sought = said_of_unnamed(config) if goal is None else (goal.note,)
    return run, (*unused, *sought, *judged.notes)


def _said_of_mask(run: RunContext) -> tuple[str, ...]:
    """The note on a mask that was found by its name, where there are inputs with padding to leave out."""
    inputs = run.calib or run.data
    return (run.mask.note,) if run.mask is not None and run.mask.note and inputs is not None else ()


def _made(
    run: RunContext,
    loaded: ir.Model,
    meter: LatencyMeter,
    training: Settings | None,
    alone_took: Ratio | None,
) -> tuple[FinishedResult, tuple[str, ...]]:
    """The result that is fast enough and loses little enough, and a note on what was given up for it."""
    config = run.config
    carry_out = runner(run, loaded)

    def again(plan: Plan | None, quantized: bool) -> PipelineResult:
        return carry_out(run.plan if plan is None else plan, quantized)

    holds = config.verify and config.sought is not None  # ranks given by hand are not changed
    allow, unnamed = _may_be_slower(config), run.assumed or bool(config.derived_target)
    first, given_up = first_run(lambda quantized: carry_out(run.plan, quantized), giving_up=holds and unnamed)
    finisher = Finisher(
        run.original,
        again,
        meter,
        config.bench and not allow,
        verify=(lambda new: compared(run, new)) if holds else None,
        calib=run.calib,
        training=training,
        threads=config.threads,
        report=run.progress,
        alone_took=alone_took,
    )
    return guard_error(first, finisher, config.sought), given_up


def _may_be_slower(config: CompressConfig) -> bool:
    return config.about_size if config.allow_slower is None else config.allow_slower
