"""Trials: plans carried out on copies of a model, to see what they lose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property

import onnx_ir as ir

from onnxdecomp.apply.apply_plan import carry_out
from onnxdecomp.apply.kept_stages import CODEC
from onnxdecomp.apply.stages_ahead import StageOptions, StagesAhead
from onnxdecomp.calibration.statistics import Calibration
from onnxdecomp.errors import DefectError
from onnxdecomp.layers.find import find
from onnxdecomp.search.layer_errors import keeping
from onnxdecomp.search.plan import Plan
from onnxdecomp.tasks.course import Course


@dataclass(frozen=True, eq=False)
class Trials:
    """Carries plans out on copies of a model.

    Attributes:
        model: As a search has it; it stays as it is.
        options: How.
        quantized: Makes a quantized copy of a result; None where none is wanted.
        course: Keeps the stages of every plan, or None.
        pool: Carries out ahead what will be tried in any case, or None.
    """

    model: ir.Model
    options: StageOptions
    quantized: Callable[[ir.Model], ir.Model] | None = None
    course: Course | None = None
    pool: Executor | None = None

    @cached_property
    def _ahead(self) -> StagesAhead:
        return StagesAhead(self.pool, self.course, self.model, self.options)

    def begun(self, plans: Sequence[Plan], calibration: Calibration) -> AbstractContextManager[None]:
        """Begin with these plans elsewhere; see `StagesAhead.begun`."""
        return self._ahead.begun(plans, calibration)

    def __call__(self, plan: Plan, calibration: Calibration) -> ir.Model:
        """The model that a plan makes, fitted to these inputs; a layer that an error of ours meets stays."""
        plan = replace(plan, repair=self.options.repair)
        fitted = None if calibration.synthetic else calibration
        self._ahead.wait_for(plan, fitted)
        copy = self.model.clone()
        matched, _ = find(copy, freeze=self.options.freeze)
        kept = None if self.course is None else self.options.course(self.course, plan, fitted).journal(CODEC)
        try:
            carry_out(
                copy,
                matched,
                plan,
                seed=self.options.seed,
                calibration=fitted,
                on_failure=lambda choice, error: None,  # it will fail again where it counts
                journal=kept,
            )
        except DefectError as error:
            if error.layer is None:
                raise
            return self(keeping(plan, {error.layer: ""}), calibration)
        return copy if self.quantized is None else self.quantized(copy)
