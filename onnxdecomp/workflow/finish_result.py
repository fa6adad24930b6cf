"""Making a result ready to be written: chosen, its layers checked, trained, compared with the original."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxdecomp.data.culprit import blaming
from onnxdecomp.graph.load import load, sha256
from onnxdecomp.graph.output_file import on_disk, staged
from onnxdecomp.layers.lowering_check import LoweringCheck, check_lowering
from onnxdecomp.pipeline import pipeline
from onnxdecomp.pipeline.base import Quantizer
from onnxdecomp.workflow.context import RunContext, pass_context
from onnxdecomp.workflow.latency_guard import TimedResult, guard_latency
from onnxdecomp.workflow.recovery import rescued
from onnxdecomp.workflow.request import quoting

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxdecomp.data.feeds import Feeds
    from onnxdecomp.evaluate.verify import Verification
    from onnxdecomp.latency.meter import LatencyMeter
    from onnxdecomp.pipeline.pipeline import PipelineResult
    from onnxdecomp.record.schema.training import Training
    from onnxdecomp.runtime.timing import Ratio
    from onnxdecomp.search.plan import Plan
    from onnxdecomp.training.settings import Settings


def runner(context: RunContext, loaded: ir.Model) -> Callable[[Plan | None, bool], PipelineResult]:
    """Runs the pipeline with a plan, or none, and quantizing or not; layers that fail their checks are kept.

    Args:
        context: What is asked for, and what there is for it.
        loaded: The model, for the first run; later ones load it again.
    """
    fresh = [loaded]
    versions = {"opset": int(loaded.opset_imports.get("", 1)), "ir_version": int(loaded.ir_version)}

    def check(ran: PipelineResult) -> tuple[LoweringCheck, ...]:
        context.report("check layers")
        return check_lowering(ran.rewritten, **versions, seed=context.config.seed)

    def run(plan: Plan | None, quantized: bool) -> PipelineResult:
        passes = [each for each in context.config.passes if quantized or not isinstance(each, Quantizer)]

        def once(plan: Plan | None) -> PipelineResult:
            model = fresh.pop() if fresh else load(context.original)
            with blaming(context.original, context.calib), quoting(context.config):
                return pipeline.run(model, passes, pass_context(passes, context, plan), context.report)

        return rescued(once, check, plan)

    return run


@dataclass(frozen=True, eq=False)
class FinishedResult:
    """A result that is ready to be written.

    Attributes:
        chosen: The pipeline's result, not slower than the original where that was asked for.
        lowering: The lowering checks, all of them passed.
        learnt: The record of its training, or None.
        checked: The comparison with the original, or None where that was not made.
        sha256: Of the file that was compared.
        faster: Whether it was asked not to be slower than the original.
    """

    chosen: TimedResult
    lowering: tuple[LoweringCheck, ...]
    learnt: Training | None
    checked: Verification | None = None
    sha256: str = ""
    faster: bool = False

    @property
    def changed(self) -> bool:
        """Whether any layer was decomposed, or the model quantized."""
        return self.chosen.ran.decomposed or bool(self.chosen.ran.precision)

    def compared(self, file: Path) -> Verification | None:
        """The comparison, if it was made of just this file."""
        return self.checked if self.checked is not None and self.sha256 == sha256(file) else None


@dataclass(frozen=True, eq=False)
class Finisher:
    """What makes results.

    Attributes:
        original: The file that came in.
        again: Runs the pipeline with another plan, quantizing or not; with None it plans anew.
        meter, faster: Times; whether the result must not be slower.
        verify: Compares a file with the original; None where that can wait until it is written.
        calib, training: How to train afterwards, and on what; None for no training.
        threads, report: Of the training.
        alone_took: The time of quantization alone over the original's, where it is known.
    """

    original: Path
    again: Callable[[Plan | None, bool], PipelineResult]
    meter: LatencyMeter
    faster: bool
    verify: Callable[[Path], Verification] | None
    calib: Feeds | None
    training: Settings | None
    threads: int | None
    report: Callable[[str, int, int], None]
    alone_took: Ratio | None = None

    def finish(self, ran: PipelineResult, before: TimedResult | None = None) -> FinishedResult:
        """The result made ready, in place of the one before."""
        chosen = guard_latency(
            ran, self.again, self.meter, enabled=self.faster, before=before, alone_took=self.alone_took
        )
        made = FinishedResult(chosen, chosen.ran.checks, self._trained(chosen.ran), faster=self.faster)
        if self.verify is None or not made.changed:
            return made
        with staged(chosen.ran.model, None, None) as file:
            return replace(made, checked=self.verify(file), sha256=sha256(file))

    def _trained(self, ran: PipelineResult) -> Training | None:
        """Train the result in place; the record's `training`, or None where there is nothing to train."""
        if self.training is None or not ran.decomposed:
            return None
        from onnxdecomp.workflow.finetune import trained

        assert self.calib is not None  # it is required beforehand
        with on_disk(ran.model) as passing, blaming(self.original, self.calib):
            return trained(
                *(ran.model, passing, self.original, self.calib, self.training, self.report),
                threads=self.threads,
            )
