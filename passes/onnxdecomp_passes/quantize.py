"""quantize: fewer bits, after the decomposition, by ONNX Runtime's own tools."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import onnx_ir as ir

from onnxdecomp.core.patterns import Names, literal, matches
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.errors import OnnxDecompError, UsageError
from onnxdecomp.graph.traversal import places, slots
from onnxdecomp.layers.replace import LAYER
from onnxdecomp.pipeline.base import Need, PassContext, PassResult, Quantizer, option

if TYPE_CHECKING:
    from onnxdecomp.quantization.bounds import Bounds
    from onnxdecomp.quantization.guard import Guarded

KEY = "pkg.onnxdecomp.quantize"


@dataclass(frozen=True)
class Quantize(Quantizer):
    """Make the model int8 (weights and activations, as QDQ nodes) or fp16; inputs and outputs stay.

    The result is compared with the model. What does not survive stays in floating point, and a note names it;
    a model of which nothing can be quantized stays as it is, and a note says so.
    """

    name: ClassVar[str] = "quantize"
    summary: ClassVar[str] = "Quantize to int8 or fp16 with ONNX Runtime's own tools"

    kind: Literal["none", "int8", "fp16"] = option("none", "int8 needs calibration inputs, fp16 none")
    per_channel: bool = option(True, "int8: a scale for each output channel of a weight, not one in all")
    weight_bits: Literal["auto", "7", "8"] = option(
        "auto", "int8: 7 where this machine's products of 8 bits saturate (x86-64 without VNNI)"
    )
    samples: int = option(256, "int8: calibration inputs used at most")
    exclude: tuple[str, ...] = option((), "int8: nodes that stay floating point, by shell patterns of names")
    provider: str = option("", "int8: the provider that it is meant for (default: the run's)")

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UsageError(f"quantize's samples must be at least 1, not {self.samples}")

    @property
    def precision(self) -> str:
        """What weights and activations are stored in: "int8", "fp16", or "none" for no change."""
        return self.kind

    @property
    def uses(self) -> frozenset[Need]:
        """Inputs, and what earlier tries of the run have found."""
        return frozenset(("calibration", "evaluation", "memory"))

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Replace the graph by the quantized one."""
        if self.kind == "none":
            return PassResult(model, modified=False)
        before = int(model.opset_imports.get("", 1))
        made, record, note = self._guarded(model, context)
        if made is None:
            return PassResult(model, modified=False, notes=(note,), record=record)
        if record.get("quantized_activations") == 0:
            note = "nothing to quantize: no operator of the main graph that has an integer kernel"
            return PassResult(model, modified=False, notes=(note,), record=record)
        if self.kind == "fp16" and _halves(made) == _halves(model):
            none = "the model is in float16 already" if _halves(model) else "no operator has a float16 form"
            why = note or none
            return PassResult(model, modified=False, notes=(f"nothing became float16: {why}",), record=record)
        model.graph = made.graph
        opset = int(made.opset_imports.get("", 1))
        notes: list[str] = [note] if note else []
        if opset != before:
            notes.append(f"{self.kind} needs opset {opset}: raised from {before}")
        model.metadata_props[KEY] = self.kind
        return PassResult(
            model,
            modified=True,
            notes=tuple(notes),
            record=record,
            precision=self.kind,
            opset=opset if opset != before else None,
        )

    def quantized(self, model: ir.Model, context: PassContext) -> ir.Model:
        """A quantized copy, for a trial; a plain one where quantization breaks the model.

        With a `memory` as much stays in floating point as was found before.

        Raises:
            UsageError, ModelError: As `run`.
        """
        return self._guarded(model, context, trial=True)[0] or model.clone()

    def _guarded(
        self, model: ir.Model, context: PassContext, *, trial: bool = False
    ) -> tuple[ir.Model | None, dict[str, object], str]:
        """A quantized copy or None, facts for the record, and a note or "".

        Raises:
            UsageError: There are no calibration inputs for int8.
            ModelError: The model cannot be quantized.
        """
        from onnxdecomp.quantization.guard import guarded, guarded_half
        from onnxdecomp.quantization.scheme import scheme_for

        bounds, memory = _bounds(context), context.memory
        if self.kind == "fp16":
            found = guarded_half(model, _inputs(model, context), bounds=bounds, memory=memory, trial=trial)
            return found.model, {"kind": "fp16", **_facts(found)}, found.note
        if context.calibration is None:
            raise UsageError("int8 needs inputs to find the ranges of activations on: give them with --calib")
        feeds, provider = context.calibration.feeds, self.provider or context.provider or "cpu"
        scheme = scheme_for(provider, weight_bits=self.weight_bits, per_channel=self.per_channel)
        scheme = replace(scheme, exclude=_matching(model, self.exclude))
        found = guarded(model, feeds, scheme, samples=self.samples, bounds=bounds, memory=memory, trial=trial)
        nodes = () if found.model is None else found.model.graph
        facts = {
            "kind": "int8",
            **scheme.facts(),
            "samples": min(self.samples, len(feeds)),
            "quantized_activations": sum(node.op_type == "QuantizeLinear" for node in nodes),
            **_facts(found),
        }
        return found.model, facts, found.note


def _bounds(context: PassContext) -> Bounds:
    from onnxdecomp.calibration.statistics import Calibration
    from onnxdecomp.quantization.bounds import Bounds
    from onnxdecomp.quantization.int8 import stacked
    from onnxdecomp.search.metrics.losses import accuracy

    limit, mask, labelled = context.max_error, context.mask, context.evaluation
    if context.max_drop is None or labelled is None or labelled.labels is None:
        return Bounds(limit, mask=mask)
    run = Calibration(labelled, batch=stacked(labelled))
    return Bounds(limit, context.max_drop, lambda model: accuracy(model, labelled, run), mask)


def _inputs(model: ir.Model, context: PassContext) -> Feeds | None:
    """What a float16 model is judged on: the user's inputs, else random ones that the model runs on."""
    from onnxdecomp.calibration.random_set import synthetic

    if context.calibration is not None:
        return context.calibration.feeds
    if context.evaluation is not None:
        return context.evaluation
    try:
        return synthetic(model, seed=context.seed, shapes=context.shapes).feeds
    except OnnxDecompError:
        return None


def _halves(model: ir.Model) -> int:
    """How much is stored in float16, or cast to it."""
    nodes = (node for place in places(model) for node in place.graph)
    casts = (
        node.attributes["to"].value for node in nodes if node.op_type == "Cast" and "to" in node.attributes
    )
    stored = (slot.tensor.dtype for slot in slots(model))
    return [*casts, *stored].count(ir.DataType.FLOAT16)


def _facts(found: Guarded) -> dict[str, object]:
    """What the record holds of the tries; errors that are not finite are null."""

    def finite(error: float | None) -> float | None:
        return error if error is not None and math.isfinite(error) else None

    tried = [{"kept": kept, "error": finite(error)} for kept, error in found.tried]
    return {"error": finite(found.error), "kept": list(found.kept), "tried": tried}


def _matching(model: ir.Model, patterns: Sequence[str]) -> tuple[str, ...]:
    """The nodes of the main graph that the patterns name, themselves or by the layer that they came of."""
    known = {node.name: names for node in model.graph if node.name and (names := _names(node))}
    wanted = literal(patterns, known.values())
    return tuple(name for name, names in known.items() if matches(names, wanted))


def _names(node: ir.Node) -> Names:
    layer = node.metadata_props.get(LAYER)
    return tuple(name for name in (node.name, layer) if name)
