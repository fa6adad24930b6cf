"""Options that exclude each other, or that nothing would heed: found before the work, named both.

Every way to ask (Python, the command line, a pipeline's file) comes through here. What stands in a file gives
way to what a caller says; what a caller says is never dropped without a word.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import chain

from onnxdecomp.core.options import described, option_fields, spelled
from onnxdecomp.errors import UsageError
from onnxdecomp.quantization.kinds import BLOCKS, CHOSEN, DYNAMIC, INT4, STATIC
from onnxdecomp.runtime.deadline import duration
from onnxdecomp.runtime.environment import check_threads
from onnxdecomp.tasks.executors import parse_executor
from onnxdecomp.workflow.config import CompressConfig

IN_A_PLAN = (
    *("rank", "layers", "target", "method", "options", "include", "exclude"),
    *("rank_multiple", "must_save", "skip_below"),
)
"""Options that a plan has already answered."""


def checked(config: CompressConfig) -> CompressConfig:
    """The configuration, once it is clear that all that it asks for can be heeded.

    Raises:
        UsageError: Two options contradict each other, or a number is out of its range.
    """
    check_threads(config.threads, *config.bench_threads)
    if config.time_limit is not None:
        duration(config.time_limit)
    parse_executor(config.executor)
    _ = config.setting  # it has its own error
    problems = (
        _answered,
        _ranges,
        _nothing_done,
        _unplanned,
        _contradictions,
        _computed,
        _metric,
        _objective,
        _bits,
        _shared,
    )
    for problem in chain.from_iterable(found(config) for found in problems):
        raise UsageError(problem)
    return config


def overruled(config: CompressConfig) -> tuple[str, ...]:
    """A note where the plan that is carried out leaves options of the pipeline's file without effect."""
    unused = [name for name in (*IN_A_PLAN, "repair") if config.in_file(name)]
    if config.plan is None or not unused:
        return ()
    return (f"the plan decides: of the configuration {', '.join(unused)} counts for nothing",)


def _ranges(config: CompressConfig) -> Iterator[str]:
    for known in option_fields(type(config)):
        if problem := described(known).problem(getattr(config, known.name)):
            yield f"{spelled(known)} {problem}"
    if config.derived_target and config.max_error is not None and not config.max_error < 1:
        yield (
            f"--max-error {config.max_error:g}: the search may use up a fraction from 0 to below 1 of the "
            "outputs; give a target, or ranks"
        )


def _answered(config: CompressConfig) -> Iterator[str]:
    """What the caller says although a plan has answered it: named before what else may be wrong with it."""
    said = [name for name in IN_A_PLAN if config.said(name)]
    if config.plan is not None and said:
        yield f"--plan and {_named(config, said)} exclude each other: a plan says what every layer gets"


def _contradictions(config: CompressConfig) -> Iterator[str]:
    """What does not go together, in a pipeline whose options are valid.

    Raises:
        UsageError: An option of a pass is not.
    """
    searches, precision = config.sought is not None, config.fewer_bits
    if config.max_error is not None and not config.verify:
        yield "--max-error and --no-verify exclude each other: the verification measures the error"
    if not config.bench:
        if config.allow_slower is False:
            yield "--never-slower and --no-bench exclude each other: only timing shows what is slower"
        if any(batch != 1 for batch in config.bench_batches):
            yield "--bench-batch and --no-bench exclude each other"
        if config.batch is not None and not _times(config):
            yield "--batch and --no-bench exclude each other: nothing is timed"
        if config.bench_threads:
            yield "--bench-threads and --no-bench exclude each other"
    if searches and (config.said("must_save") or config.in_file("must_save")):
        yield "--must-save goes with ranks (--rank, --layer): a target itself says what must be saved"
    if config.calib is None and precision == STATIC:
        yield (
            f"--quantize {STATIC} needs inputs to find the ranges of activations on: give --calib, or take "
            f"{DYNAMIC}"
        )
    if config.refine and config.calib is None:
        yield "--refine compares blocks on the calibration inputs: give them with --calib"
    if config.finetune is not None:
        if config.calib is None:
            yield "finetune trains on the calibration inputs: give them with --calib"
        if precision:
            yield (
                "finetune comes before quantization: write the fine-tuned model first, then compress that "
                "with --quantize and --method none"
            )


def _computed(config: CompressConfig) -> Iterator[str]:
    """What does not go with a precision of the arithmetic."""
    if config.precision in ("fp16", "bf16") and config.fewer_bits not in ("", "fp16"):
        yield (
            f"--precision {config.precision} and --quantize {config.fewer_bits} exclude each other: what is "
            "quantized computes the rest in float32"
        )


def _times(config: CompressConfig) -> bool:
    """Whether a target asks for latency, which the search measures."""
    from onnxdecomp.search.targets import timed

    return config.sought is not None and timed(config.sought)


def _shared(config: CompressConfig) -> Iterator[str]:
    """What tasks on other machines need."""
    if config.workdir is None and parse_executor(config.executor).elsewhere:
        yield f"--executor {config.executor}: name a folder that all machines share with --workdir"


def _objective(config: CompressConfig) -> Iterator[str]:
    """What is least within a loss needs one that is limited."""
    from onnxdecomp.search.targets import parse_budgets

    limited = config.sought is not None and any(budget.on_loss for budget in parse_budgets(config.sought))
    if config.said("objective") and not limited:
        yield (
            f"--objective {config.objective} goes with a target that limits a loss, such as error=0.05: what "
            "is least within it"
        )


def _bits(config: CompressConfig) -> Iterator[str]:
    """Details of kinds of fewer bits, where no such kind is asked for."""
    of_blocks, of_tables = (INT4, BLOCKS, CHOSEN), (CHOSEN, STATIC, DYNAMIC, BLOCKS, INT4)
    for name, kinds in (("block_size", of_blocks), ("table_bits", of_tables)):
        if config.said(name) and config.fewer_bits not in kinds:
            known = f"{', '.join(kinds[:-1])} or {kinds[-1]}"
            yield f"{_named(config, [name])} goes with --quantize {known} alone: nothing else would heed it"


def _metric(config: CompressConfig) -> Iterator[str]:
    """What a metric of the task needs."""
    from onnxdecomp.search.targets import parse_budgets

    if config.metric is None:
        if config.sought and any(budget.quantity == "metric" for budget in parse_budgets(config.sought)):
            yield "--target metric… needs a metric: name it with --metric"
        return
    if not config.verify:
        yield "--metric and --no-verify exclude each other: the verification measures it"
    if config.calib is None and config.data is None:
        yield "--metric needs inputs to measure it on: give them with --eval or --calib"


def _nothing_done(config: CompressConfig) -> Iterator[str]:
    """What does not go with nothing being decomposed."""
    answered = [name for name in IN_A_PLAN if name != "method" and config.said(name)]
    if config.idle and answered:
        yield f"--method none and {_named(config, answered)} exclude each other: nothing is decomposed"
    if config.idle and not config.fewer_bits:
        yield "--method none decomposes nothing: give --quantize as well"


def _unplanned(config: CompressConfig) -> Iterator[str]:
    """What a pipeline without a planner would drop."""
    asked = [name for name in (*IN_A_PLAN, "plan") if config.said(name)]
    if asked and not config.idle and not config.plans:
        yield f"the pipeline has no decompose pass: {_named(config, asked)} would do nothing"


def _named(config: CompressConfig, names: Sequence[str]) -> str:
    fields = {field.name: field for field in dataclasses.fields(config)}
    spelled_out = ["a method's options" if name == "options" else spelled(fields[name]) for name in names]
    return " and ".join(spelled_out)
