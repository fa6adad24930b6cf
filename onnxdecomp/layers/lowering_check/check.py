"""The lowering check: every rewritten layer, run alone in ONNX Runtime, does what its chain says.

It separates two kinds of difference. What a low rank loses is a choice and shows in the verification of the
whole model; what the *nodes* differ from the chain's own weight by is a defect, whatever the ranks are.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxdecomp.core.layer import Array, Layer
from onnxdecomp.errors import ModelError
from onnxdecomp.layers.lowering_check.inputs import probe_inputs, stored_type
from onnxdecomp.layers.lowering_check.reference import reference
from onnxdecomp.layers.lowering_check.submodel import of_new_nodes, run
from onnxdecomp.layers.replace import Rewritten

_log = logging.getLogger(__name__)

TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "float16": 5e-3, "bfloat16": 5e-2}
"""Largest relative L2 difference per element type; the half types round after every step of a chain."""

SMALLEST = {"float64": 4.9e-324, "float32": 1.4e-45, "float16": 6.0e-8, "bfloat16": 9.2e-41}
"""The smallest number above zero of each element type, whose multiples the subnormal numbers are."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a check of numbers has found.

    Attributes:
        rel_error: ||new - expected|| / ||expected||; None where it could not run.
        tolerance: What it may be at most.
        reason: Why it could not run: an element type that no CPU kernel takes, say.
    """

    rel_error: float | None
    tolerance: float
    reason: str = ""

    @property
    def passed(self) -> bool:
        return self.rel_error is None or self.rel_error <= self.tolerance


@dataclass(frozen=True)
class LoweringCheck(Check):
    """The check of one layer: its nodes on seeded random numbers, beside its chain's dense weight.

    The error is infinite where that it could not run is a defect. To its denominator is added what subnormal
    numbers cannot tell apart: a layer whose weights have decayed to such has no relative precision.

    Attributes:
        layer, graph: Which.
    """

    layer: str
    graph: str


def check_lowering(
    rewritten: Sequence[Rewritten], *, opset: int, ir_version: int, seed: int = 0
) -> tuple[LoweringCheck, ...]:
    """Check every rewritten layer on the CPU provider; what prevents a check is a layer's failure, too."""
    return tuple(_checked(r, opset, ir_version, seed) for r in rewritten)


def _checked(rewritten: Rewritten, opset: int, ir_version: int, seed: int) -> LoweringCheck:
    try:
        return _check(rewritten, opset, ir_version, seed)
    except Exception as error:
        layer = rewritten.match.layer
        _log.info("the check of %r has failed", layer.name, exc_info=error)
        what = str(error) if isinstance(error, ModelError) else f"{type(error).__name__}: {error}"
        reason = f"its lowering check fails: {' '.join(what.split())}"
        return _found(layer, math.inf, TOLERANCE[layer.dtype], reason)


def _check(rewritten: Rewritten, opset: int, ir_version: int, seed: int) -> LoweringCheck:
    layer = rewritten.match.layer
    match = rewritten.match
    stored = match.storage if rewritten.quantized else None
    tolerance = TOLERANCE[layer.dtype] * max(match.adapter.rounding, stored.rounding if stored else 1)
    rng = np.random.default_rng(seed)
    given = probe_inputs(rewritten, rng)
    feeds = {value.name or "": array for value, array in given}
    kind = ir.DataType.from_numpy(stored_type(layer))
    try:
        actual = run(of_new_nodes(rewritten, given, kind, opset, ir_version), feeds)
    except ModelError as error:
        if layer.dtype == "float32" and _runs(rewritten, feeds, opset, ir_version):
            raise ModelError(f"its rewritten nodes do not run ({error})") from error
        return _found(layer, None, tolerance, str(error))
    expected = reference(rewritten, feeds, opset, ir_version)
    difference = float(np.linalg.norm(np.asarray(actual, np.float64) - expected))
    # Each product of a sum may be off by the smallest number.
    floor = SMALLEST[layer.dtype] * layer.weight.size / layer.outputs * math.sqrt(expected.size)
    whole = float(np.linalg.norm(expected)) + floor / tolerance
    return _found(layer, difference / whole if whole else difference, tolerance)


def _found(layer: Layer, error: float | None, tolerance: float, reason: str = "") -> LoweringCheck:
    return LoweringCheck(layer.name, layer.graph, rel_error=error, tolerance=tolerance, reason=reason)


def _runs(rewritten: Rewritten, feeds: dict[str, Array], opset: int, ir_version: int) -> bool:
    """Whether the operator that was replaced runs: a kernel may lack an attribute, as layout is of LSTM's."""
    try:
        reference(rewritten, feeds, opset, ir_version)
    except ModelError:
        return False
    return True
