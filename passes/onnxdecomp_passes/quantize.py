"""quantize: fewer bits, after the decomposition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import onnx_ir as ir

from onnxdecomp.core.names import some
from onnxdecomp.core.patterns import Names, literal, matches
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.errors import OnnxDecompError, UsageError
from onnxdecomp.graph.traversal import places, slots
from onnxdecomp.layers.replace import LAYER
from onnxdecomp.pipeline.base import Need, PassContext, PassResult, Quantizer, option
from onnxdecomp.quantization.kinds import (
    BLOCK,
    BLOCKS,
    CHOSEN,
    DYNAMIC,
    STATIC,
    Block,
    Kind,
    in_blocks,
    kernels,
    storage_of,
)

if TYPE_CHECKING:
    from onnxdecomp.layers.storage import Storage
    from onnxdecomp.quantization.bounds import Bounds
    from onnxdecomp.quantization.guard import Guarded

KEY = "pkg.onnxdecomp.quantize"


@dataclass(frozen=True)
class Quantize(Quantizer):
    """Store weights in fewer bits: int8 in three ways, int4, or fp16; inputs and outputs stay.

    The result is compared with the model. What does not survive stays in floating point, and a note names it;
    a model of which nothing can be quantized stays as it is, and a note says so.
    """

    name: ClassVar[str] = "quantize"
    summary: ClassVar[str] = "Store weights in fewer bits: int8, int4 or fp16"

    kind: Kind = option(
        "none",
        "int8-static needs calibration inputs, the others none; int8 is one of int8-static, int8-dynamic and "
        "int8-block, by measurement",
    )
    per_channel: bool = option(
        True, "int8-static: a scale for each output channel of a weight, not one in all"
    )
    weight_bits: Literal["auto", "7", "8"] = option(
        "auto",
        "int8-static, int8-dynamic: 7 where this machine's products of 8 bits saturate (x86-64 without VNNI)",
    )
    block_size: Block = option(BLOCK, "int4, int8-block: numbers of a weight that share a scale")
    table_bits: Literal["auto", "4", "8"] = option(
        "auto", "int8, int4: of tables of embeddings (auto: as many as other weights)"
    )
    samples: int = option(256, "int8-static: calibration inputs used at most")
    exclude: tuple[str, ...] = option(
        (), "int8, int4: nodes that stay floating point, by shell patterns of names"
    )
    provider: str = option("", "int8, int4: the provider that it is meant for (default: the run's)")

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UsageError(f"quantize's samples must be at least 1, not {self.samples}")

    @property
    def precision(self) -> str:
        """The kind of fewer bits, or "none" for no change."""
        return self.kind

    def kinds(self, *, calibrated: bool) -> tuple[str, ...]:
        """Those that int8 stands for; the static kind needs calibration."""
        if self.kind != CHOSEN:
            return ()
        return (STATIC, DYNAMIC, BLOCKS) if calibrated else (DYNAMIC, BLOCKS)

    @property
    def kernels(self) -> str:
        """The kind, with the block size where that is not the usual one."""
        return kernels(self.kind, self.block_size)

    @property
    def uses(self) -> frozenset[Need]:
        """Inputs, what earlier tries of the run have found, and what layers take."""
        return frozenset(("calibration", "evaluation", "memory", "latency"))

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Replace the graph by the quantized one."""
        if self.kind == "none":
            return PassResult(model, modified=False)
        imports = dict(model.opset_imports)
        before = int(imports.get("", 1))
        made, record, note = self._guarded(model, context)
        if made is None:
            return PassResult(model, modified=False, notes=(note,), record=record)
        if 0 in (record.get("quantized_activations"), record.get("quantized_layers")):
            none = "nothing to quantize: no operator of the main graph that has an integer kernel"
            told = note if record.get("slower") else none
            return PassResult(model, modified=False, notes=(told,), record=record)
        if self.kind == "fp16" and _halves(made) == _halves(model):
            none = "the model is in float16 already" if _halves(model) else "no operator has a float16 form"
            why = note or none
            return PassResult(model, modified=False, notes=(f"nothing became float16: {why}",), record=record)
        model.graph = made.graph
        opset = int(made.opset_imports.get("", 1))
        notes: list[str] = [note] if note else []
        if opset != before:
            notes.append(f"{self.kind} needs opset {opset}: raised from {before}")
        model.metadata_props[KEY] = str(record["kind"])
        return PassResult(
            model,
            modified=True,
            notes=tuple(notes),
            record=record,
            precision=str(record["kind"]),
            opset=opset if opset != before else None,
            imports={name: n for name, n in made.opset_imports.items() if name not in imports},
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
            UsageError: There are no calibration inputs for int8-static.
            ModelError: The model cannot be quantized.
        """
        from onnxdecomp.quantization.guard import guarded, guarded_half
        from onnxdecomp.quantization.scheme import scheme_for

        bounds, memory = _bounds(context), context.memory
        kind: Kind = self.kind
        provider = self.provider or context.provider or "cpu"
        if kind == CHOSEN:  # a run measures which; without one nobody knows
            kind = STATIC if context.calibration is not None else DYNAMIC
        if kind == "fp16":
            found = guarded_half(model, _inputs(model, context), bounds=bounds, memory=memory, trial=trial)
            return found.model, {"kind": "fp16", **_facts(found)}, found.note
        if kind != STATIC:
            return self._stored(model, context, kind, provider, trial=trial)
        if context.calibration is None:
            raise UsageError(
                f"{STATIC} needs inputs to find the ranges of activations on: give them with --calib"
            )
        feeds = context.calibration.feeds
        scheme = scheme_for(provider, weight_bits=self.weight_bits, per_channel=self.per_channel)
        scheme = replace(scheme, exclude=_matching(model, self.exclude))
        found = guarded(
            *(model, feeds, scheme),
            samples=self.samples,
            rows=self._rows(provider),
            bounds=bounds,
            memory=memory,
            trial=trial,
        )
        nodes = () if found.model is None else found.model.graph
        facts = {
            "kind": kind,
            **scheme.facts(),
            "samples": min(self.samples, len(feeds)),
            "quantized_activations": sum(node.op_type == "QuantizeLinear" for node in nodes),
            **_facts(found),
        }
        return found.model, facts, found.note

    def _rows(self, provider: str) -> Storage | None:
        """How int8-static stores tables; None where the provider has no kernel for heads that share them."""
        from onnxdecomp.runtime.providers import provider_of

        if not provider_of(provider).mlas:
            return None
        return storage_of(DYNAMIC, provider, self.weight_bits, self._table_bits)

    @property
    def _table_bits(self) -> int | None:
        return None if self.table_bits == "auto" else int(self.table_bits)

    def _stored(
        self, model: ir.Model, context: PassContext, kind: Kind, provider: str, *, trial: bool
    ) -> tuple[ir.Model | None, dict[str, object], str]:
        """As `_guarded`, where the weights of products and tables alone are stored in fewer bits."""
        from onnxdecomp.quantization.guard import guarded_products
        from onnxdecomp.quantization.products import kept, products

        name = kernels(kind, self.block_size)
        storage = storage_of(name, provider, self.weight_bits, self._table_bits)
        assert storage is not None
        slow = () if context.latency is None else context.latency.slower(model, name)
        keep = {*_matching(model, self.exclude), *slow}
        inputs = _inputs(model, context)
        if inputs is None:
            raise UsageError(
                f"--quantize {kind}: the model runs on no random inputs to compare it on: give --calib"
            )
        found = guarded_products(
            *(model, inputs, kind, storage, keep),
            bounds=_bounds(context),
            memory=context.memory,
            trial=trial,
        )
        layers = products(model)
        left = {} if found.model is None else {match.layer.name for match in products(found.model)}
        floats = [match.layer.name for match in layers if kept(match, slow)]
        note = f"not quantized, for they are slower so: {some(floats)}" if floats else ""
        facts = {
            "kind": kind,
            **({"block_size": self.block_size} if in_blocks(kind) else {}),
            "weights": storage.name,
            "quantized_layers": len(layers) - len(left),
            "slower": floats,
            **_facts(found),
        }
        return found.model, facts, "; ".join(filter(None, (found.note, note)))


def _bounds(context: PassContext) -> Bounds:
    from onnxdecomp.quantization.bounds import Bounds

    limit, mask, task = context.max_error, context.mask, context.task
    if context.max_drop is None or task is None:
        return Bounds(limit, mask=mask)
    return Bounds(limit, context.max_drop, task.loss, mask)


def _inputs(model: ir.Model, context: PassContext) -> Feeds | None:
    """What is compared on: the user's inputs, else random ones that the model runs on."""
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
