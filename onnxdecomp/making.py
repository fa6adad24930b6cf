"""Making a result ready to be written: settled, its layers checked, trained, compared with the original."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxdecomp.data.culprit import blaming
from onnxdecomp.errors import ModelError
from onnxdecomp.graph.load import sha256
from onnxdecomp.lowering import LoweringCheck, check_lowering
from onnxdecomp.settle import Settled, is_quantized, settle
from onnxdecomp.staging import on_disk, staged

if TYPE_CHECKING:
    from onnxdecomp.data.feeds import Feeds
    from onnxdecomp.pipeline import PipelineResult
    from onnxdecomp.plan.plan import Plan
    from onnxdecomp.training.settings import Settings
    from onnxdecomp.verification import Verification
    from onnxdecomp.watch import Watch


@dataclass(frozen=True, eq=False)
class Made:
    """A result that is ready to be written.

    Attributes:
        settled: The pipeline's result, not slower than the original where that was asked for.
        lowering: The lowering checks, all of them passed.
        learnt: The record of its training, or None.
        checked: The comparison with the original, or None where that was not made.
        sha256: Of the file that was compared.
    """

    settled: Settled
    lowering: tuple[LoweringCheck, ...]
    learnt: dict[str, Any] | None
    checked: Verification | None = None
    sha256: str = ""

    @property
    def changed(self) -> bool:
        """Whether any layer was decomposed, or the model quantized."""
        return bool(self.settled.ran.rewritten) or is_quantized(self.settled.ran)

    def compared(self, file: Path) -> Verification | None:
        """The comparison, if it was made of just this file."""
        return self.checked if self.checked is not None and self.sha256 == sha256(file) else None


@dataclass(frozen=True, eq=False)
class Maker:
    """What makes results.

    Attributes:
        original: The file that came in.
        opset, ir_version: Its own.
        again: Runs the pipeline with another plan, quantizing or not; with None it plans anew.
        watch, faster: Times; whether the result must not be slower.
        verify: Compares a file with the original; None where that can wait until it is written.
        calib, training: How to train afterwards, and on what; None for no training.
        threads, seed, report: Of the checks and of the training.
    """

    original: Path
    opset: int
    ir_version: int
    again: Callable[[Plan | None, bool], PipelineResult]
    watch: Watch
    faster: bool
    verify: Callable[[Path], Verification] | None
    calib: Feeds | None
    training: Settings | None
    threads: int | None
    seed: int
    report: Callable[[str, int, int], None]

    def make(self, ran: PipelineResult, before: Settled | None = None) -> Made:
        """The result made ready, in place of the one before.

        Raises:
            ModelError: A rewritten layer does not compute what its factors stand for.
        """
        settled = settle(ran, self.again, self.watch, enabled=self.faster, before=before)
        self.report("check layers", 0, 0)
        made = Made(settled, self._lowered(settled.ran), self._trained(settled.ran))
        if self.verify is None or not made.changed:
            return made
        with staged(settled.ran.model, None, None) as file:
            return replace(made, checked=self.verify(file), sha256=sha256(file))

    def _lowered(self, ran: PipelineResult) -> tuple[LoweringCheck, ...]:
        """The lowering checks, all of them passed."""
        checks = check_lowering(ran.rewritten, opset=self.opset, ir_version=self.ir_version, seed=self.seed)
        for check in checks:
            if not check.passed:
                raise ModelError(
                    f"{check.layer}: the rewritten nodes differ from their own weight by "
                    f"{check.rel_error:.3g} (at most {check.tolerance:g}); nothing was written. This is a "
                    "bug in onnxdecomp: please report it, and use --exclude for this layer until it is mended"
                )
        return checks

    def _trained(self, ran: PipelineResult) -> dict[str, Any] | None:
        """Train the result in place; the record's `training`, or None where there is nothing to train."""
        if self.training is None or not ran.rewritten:
            return None
        from onnxdecomp.training.run import trained

        calib: Any = self.calib
        with on_disk(ran.model) as passing, blaming(self.original, calib):
            return trained(
                *(ran.model, passing, self.original, calib, self.training, self.report), threads=self.threads
            )
