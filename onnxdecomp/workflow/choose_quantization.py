"""Which of several kinds of fewer bits is taken where the user names none: by speed, then by error.

All are timed in turns with the original, on the user's inputs and before anything is decomposed; those that
need calibration with ranges that are made up, which takes the same time to run. The fastest, and what is as
fast but for little, are made and compared with the original, and the one that loses least is taken. Where the
fastest lose more than what is asked for allows, or spoil the outputs where nothing is asked for, slower
ones are made too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from onnxdecomp.data.culprit import blaming
from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.evaluate.timing_verdict import Finding
from onnxdecomp.graph.save import save
from onnxdecomp.layers.find import find
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.pipeline import pipeline
from onnxdecomp.pipeline.base import Planner, Quantizer
from onnxdecomp.quantization.bounds import Memory
from onnxdecomp.quantization.kinds import DYNAMIC, STATIC
from onnxdecomp.quantization.prepare import is_quantized
from onnxdecomp.quantization.products import products
from onnxdecomp.record.schema.quantizing import Candidate
from onnxdecomp.record.schema.reading import recorded
from onnxdecomp.record.schema.timing import Interval
from onnxdecomp.runtime import jsonio, temporary_files
from onnxdecomp.search.candidates import dense_cost
from onnxdecomp.workflow.config import CompressConfig
from onnxdecomp.workflow.context import RunContext, pass_context
from onnxdecomp.workflow.finish_result import FinishedResult
from onnxdecomp.workflow.request import quoting

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxdecomp.latency.meter import LatencyMeter
    from onnxdecomp.pipeline.base import PassContext, PassResult
    from onnxdecomp.runtime.timing import Ratio

_NEAR = 1.05
"""Kinds that take at most so many times as long as the fastest are told apart by their errors."""


_SPOILT = 0.2
"""The relative error of an output beyond which a slower kind is taken if it loses less, where no limit is
given: a recogniser of text with 0.3 reads every sixth character wrong."""


@dataclass(frozen=True, eq=False)
class ChosenKind:
    """The run with the kind that was chosen.

    Attributes:
        run: Its configuration names the kind, or none where none pays.
        notes: What was measured, a sentence each.
        candidates: What was weighed, for the record; () where nothing was.
        took: The time of the kind over the original's, or None where it was not measured.
    """

    run: RunContext
    notes: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    took: Ratio | None = None


@dataclass(frozen=True, eq=False)
class _Kind:
    """A kind, and what is known of it.

    Attributes:
        name: As the option has it.
        config: The configuration that names it.
        quantizer: The pass that carries it out.
        memory: What it finds out.
        ratio: Its time over the original's, or None where it was not timed.
        reason: Why it cannot be taken; "" where it can.
        error: Of its worst output; None where it was not made.
        model: What it makes, where that may take another time than what was timed.
    """

    name: str
    config: CompressConfig
    quantizer: Quantizer
    memory: Memory = field(default_factory=Memory)
    ratio: Ratio | None = None
    reason: str = ""
    error: float | None = None
    model: ir.Model | None = None

    @property
    def time(self) -> float:
        return math.inf if self.ratio is None else self.ratio.value

    def may_be_as_fast_as(self, other: _Kind) -> bool:
        """Whether the two may take the same time: by the middles of their intervals, or as these overlap.

        Ranges take many times as long to find as the others take to make: here the middles alone count.
        """
        if self.ratio is None or other.ratio is None:
            return self.ratio is not None
        overlap = self.name != STATIC and self.ratio.low <= other.ratio.high
        return overlap or self.time <= _NEAR * other.time


def choose_kind(run: RunContext, loaded: ir.Model, meter: LatencyMeter, *, slower: bool) -> ChosenKind:
    """The run with one kind in place of several.

    Args:
        run: Its configuration may name one, then it is the result.
        loaded: The model, which stays as it is.
        meter: Times.
        slower: Whether the result may be no faster than the original.

    Raises:
        UsageError, ModelError, ProviderError: As the pipeline.
    """
    config = run.config
    passes = [each for each in config.passes if not isinstance(each, Planner)]
    quantizer = next((each for each in passes if isinstance(each, Quantizer)), None)
    names = () if quantizer is None else quantizer.kinds(calibrated=run.calib is not None)
    if quantizer is None or not names:
        return ChosenKind(run)
    kinds = [_kind(config, name) for name in names]
    if not config.bench:
        usual = DYNAMIC if _of_products(loaded) else kinds[0].name
        own = next((kind for kind in kinds if kind.name == usual), kinds[0])
        return ChosenKind(replace(run, config=own.config))
    run.report("quantize: choose")
    before = passes[: passes.index(quantizer)]
    with blaming(run.original, run.calib), quoting(config):
        context = pass_context(config.passes, run, None)
        model = pipeline.run(loaded.clone(), before, context).model
        kinds = _timed(kinds, model, context, meter)
        pays = [kind for kind in kinds if not kind.reason and (slower or _finding(kind, meter).pays)]
        again = partial(_retimed, meter=meter, slower=slower)
        made = list(_made(sorted(pays, key=lambda kind: kind.time), model, context, again))
    best = _best(made, context.max_error)
    kinds = [next((each for each in made if each.name == kind.name), kind) for kind in kinds]
    candidates = tuple(_recorded(kind, best) for kind in kinds)
    if best is None:
        config = CompressConfig.of(config, {"quantize": "none"})
        why = f"not quantized, for no kind of {quantizer.precision} {'does' if pays else 'is faster'}"
        told = f"{why} on {meter.provider}: {'; '.join(map(_told, kinds))}"
        if STATIC not in names and STATIC in quantizer.kinds(calibrated=True):
            told += (
                f"; {STATIC}, the kind for convolutions, takes its ranges from inputs: give some with --calib"
            )
        return ChosenKind(replace(run, config=config), (told,), candidates)
    others = "; ".join(_told(kind) for kind in kinds if kind.name != best.name)
    told = f"{best.name} is taken for {quantizer.precision}: {_told(best, named=False)}"
    chosen = replace(run, config=best.config, memory=best.memory)
    return ChosenKind(chosen, (f"{told}; {others}" if others else told,), candidates, best.ratio)


def _of_products(loaded: ir.Model) -> bool:
    """Whether most of a model's work are products whose activations can be rounded as they come."""
    model = loaded.clone()
    infer_shapes(model)
    own = {match.nodes for match in products(model)}
    macs = {match.nodes: dense_cost(match.layer).macs for match in find(model)[0]}
    return 2 * sum(macs[nodes] for nodes in macs.keys() & own) > sum(macs.values())


def _kind(config: CompressConfig, name: str) -> _Kind:
    own = CompressConfig.of(config, {"quantize": name})
    return _Kind(name, own, next(each for each in own.passes if isinstance(each, Quantizer)))


def _timed(kinds: Sequence[_Kind], model: ir.Model, context: PassContext, meter: LatencyMeter) -> list[_Kind]:
    """The kinds with their times, or the reasons why they have none."""
    assert context.latency is not None
    found: list[_Kind] = []
    with temporary_files.folder() as folder:
        files: dict[str, Path] = {}
        for kind in kinds:
            watch = replace(context.latency, precision=kind.quantizer.kernels)
            try:
                rough = watch.quantized(model)
            except ModelError as error:
                found.append(replace(kind, reason=str(error)))
                continue
            if not is_quantized(rough):
                found.append(replace(kind, reason="makes no layer faster than floating point"))
                continue
            files[kind.name] = save(rough, folder / f"{kind.name}.onnx")
            found.append(kind)
        ratios = meter.time_all(list(files.values())) if files else ()
    known = dict(zip(files, ratios, strict=True))
    return [replace(kind, ratio=known.get(kind.name)) for kind in found]


def _made(
    kinds: Sequence[_Kind], model: ir.Model, context: PassContext, retimed: Callable[[_Kind], _Kind]
) -> Iterator[_Kind]:
    """The kinds that come into question, the fastest first, with their errors.

    What others are compared with is the time of what was made: a kind that loses too much keeps more in
    floating point than was timed, and may be no faster than one that loses less as it is.
    """
    fast: list[_Kind] = []
    for kind in kinds:
        if not all(kind.may_be_as_fast_as(other) for other in fast):
            continue
        own = replace(context, memory=kind.memory)
        try:
            done: PassResult = kind.quantizer.apply(model.clone(), own)
        except (ModelError, UsageError) as error:
            yield replace(kind, reason=str(error))
            continue
        found = done.record.get("error")
        known = float(found) if isinstance(found, int | float) else None
        if not done.precision:
            yield replace(kind, reason="; ".join(done.notes), error=known)
            continue
        own_model = done.model if done.record.get("kept") else None
        made = retimed(replace(kind, error=known, model=own_model))
        yield made
        if _loses_little(made, context.max_error) and not made.reason:
            fast.append(made)


def _retimed(kind: _Kind, meter: LatencyMeter, *, slower: bool) -> _Kind:
    """The kind with the time of what it has made, where more stays in floating point than was timed."""
    if kind.model is None:
        return kind
    with temporary_files.folder() as folder:
        ratio = meter.time_all([save(kind.model, folder / "made.onnx")])[0]
    known = replace(kind, ratio=ratio, model=None)
    return known if slower or _finding(known, meter).pays else replace(known, reason="slower as it was made")


def _loses_little(kind: _Kind, max_error: float | None) -> bool:
    """Whether its error is allowed; where no limit is given, whether it leaves the outputs usable."""
    if max_error is None:
        return kind.error is None or kind.error <= _SPOILT
    return kind.error is not None and kind.error <= max_error


def _best(made: Sequence[_Kind], max_error: float | None) -> _Kind | None:
    """The one of least error among the fastest, of those that lose little enough if there are such."""
    usable = [kind for kind in made if not kind.reason]
    usable = [kind for kind in usable if _loses_little(kind, max_error)] or usable
    usable = [kind for kind in usable if all(kind.may_be_as_fast_as(other) for other in usable)]

    def loss(kind: _Kind) -> float:
        return math.inf if kind.error is None else kind.error

    return min(usable, key=loss, default=None)


def _finding(kind: _Kind, meter: LatencyMeter) -> Finding:
    return Finding(kind.ratio, "the original's time", meter.limit)


def _told(kind: _Kind, *, named: bool = True) -> str:
    """What was found of a kind, for people."""
    parts = [] if kind.ratio is None else [f"{kind.time:.2f}x the original's time"]
    if kind.error is not None and math.isfinite(kind.error):
        parts.append(f"an error of {kind.error:.2g}")
    if kind.reason:
        parts.append(kind.reason)
    return f"{kind.name} {', '.join(parts)}" if named else ", ".join(parts)


def _recorded(kind: _Kind, best: _Kind | None) -> Candidate:
    return Candidate(
        kind=kind.name,
        ratio=None if kind.ratio is None else recorded(Interval, kind.ratio),
        error=kind.error if kind.error is not None and math.isfinite(kind.error) else None,
        chosen=best is not None and kind.name == best.name,
        reason=kind.reason,
    )


def with_candidates(made: FinishedResult, chosen: ChosenKind) -> FinishedResult:
    """A result whose record says among which kinds the one of a quantizer was chosen."""
    ran = made.chosen.ran
    if not chosen.candidates:
        return made
    facts = {"candidates": jsonio.plain(chosen.candidates)}
    record = {name: {**own, **(facts if name in ran.precisions else {})} for name, own in ran.record.items()}
    return replace(made, chosen=replace(made.chosen, ran=replace(ran, record=record)))
