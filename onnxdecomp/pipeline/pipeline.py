"""Running the passes of a pipeline one after the other, and what that gives."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from onnxdecomp.core.plugins import line
from onnxdecomp.errors import DefectError, OnnxDecompError
from onnxdecomp.search.plan import FREE, Cost

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxdecomp.channels.channel_cut import ChannelCut
    from onnxdecomp.core.refinement import Refinement
    from onnxdecomp.layers.lowering_check import LoweringCheck
    from onnxdecomp.layers.replace import Rewritten
    from onnxdecomp.pipeline.base import Interface, Pass, PassContext, PassResult
    from onnxdecomp.search.plan import Plan
    from onnxdecomp.search.search_record import SearchRecord
    from onnxdecomp.search.spectra import LayerSpectra


_SMALL = 32 << 20
"""Bytes of weights that may live on until Python looks for garbage by itself."""


@dataclass(frozen=True)
class PipelineResult:
    """What a run of the pipeline did.

    Attributes:
        model: The model after the last pass; the object that came in if every pass works in place.
        notes: What a user should know, each led by its pass's name.
        rewritten: The layers that were replaced, in the order of their replacement.
        cuts: What became of the channels that were cut.
        record: Facts for the run's record, by pass.
        modified: The passes that changed the model.
        plan: The decision for every layer as it was carried out; None where no pass plans.
        search, search_notes: How it was found, and what was said of that; None where it was given.
        spectra: Of the layers that were decomposed, where they were asked for.
        saved: What the model has less than its layers' chains say.
        precisions: What the model was quantized to, by the pass that did it.
        unquantized: What a quantizer that has left the model as it is has said.
        refinement: What became of the blocks that were refined together, or None.
        checks: The lowering checks of the layers that were replaced, where they were made.
    """

    model: ir.Model
    notes: tuple[str, ...] = ()
    rewritten: tuple[Rewritten, ...] = ()
    cuts: tuple[ChannelCut, ...] = ()
    record: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    modified: tuple[str, ...] = ()
    plan: Plan | None = None
    search: SearchRecord | None = None
    search_notes: tuple[str, ...] = ()
    spectra: Sequence[LayerSpectra] = ()
    saved: Cost = FREE
    precisions: Mapping[str, str] = field(default_factory=dict)
    unquantized: tuple[str, ...] = ()
    refinement: Refinement | None = None
    checks: tuple[LoweringCheck, ...] = ()

    @property
    def decomposed(self) -> bool:
        """Whether any layer was replaced or channel cut."""
        return bool(self.rewritten or self.cuts)

    @property
    def precision(self) -> str:
        """The kind of fewer bits that the model has got, or "" for none."""
        return next(reversed(list(self.precisions.values())), "")


def run(
    model: ir.Model,
    passes: Iterable[Pass],
    context: PassContext | None = None,
    on_pass: Callable[[str], None] | None = None,
) -> PipelineResult:
    """Run the passes one after the other, on the model itself.

    Args:
        model: Changed in place; work on a clone to keep the original.
        passes: As `build` returns them.
        context: What the run has for them; each gets what it asks for.
        on_pass: Called with a pass's name before it starts.

    Raises:
        OnnxDecompError: A pass gave up, with its own line; DefectError for anything it did not foresee, and
            PlanFailedError where a plan had been made by then.
    """
    from onnxdecomp.graph.traversal import slots
    from onnxdecomp.pipeline.base import PassContext, PlanFailedError, Planner, Quantizer

    interface = _interface(model)
    large = sum(slot.tensor.nbytes for slot in slots(model)) > _SMALL
    known = context or PassContext()
    done = PipelineResult(model)
    passes = tuple(passes)
    compared = any("original" in each.needs | each.uses for each in passes)
    for each in passes:
        if on_pass is not None:
            on_pass(each.name)
        if compared and known.original is None and isinstance(each, Planner):
            known = replace(known, original=model.clone())
        try:
            result: PassResult = each.apply(model, replace(known, interface=interface))
        except Exception as error:
            shown = _translated(each.name, error)
            if isinstance(shown, DefectError) and not isinstance(shown, PlanFailedError) and done.plan:
                shown = PlanFailedError(shown, done.plan, done.search)
            raise shown from error
        if result.modified and large:
            # Nodes and values refer to each other in circles: weights that were replaced live until this.
            gc.collect()
        raised = {} if result.opset is None else {"": result.opset}
        interface = replace(interface, opsets={**interface.opsets, **result.imports, **raised})
        if result.plan is not None:
            known = replace(known, decided=result.plan)
        done = _with(done, each.name, result)
        if isinstance(each, Quantizer) and not result.modified:
            done = replace(done, unquantized=tuple(f"{each.name}: {note}" for note in result.notes))
    return done


def _with(done: PipelineResult, name: str, result: PassResult) -> PipelineResult:
    """What was done so far, and what one more pass did."""
    record = {**done.record, name: {**done.record.get(name, {}), **result.record}}
    if result.plan is not None:
        done = replace(
            done,
            plan=result.plan,
            search=result.search,
            search_notes=tuple(f"{name}: {note}" for note in result.search_notes),
            spectra=result.spectra,
        )
        if not record[name]:  # a plan has a place of its own in a run's record
            record.pop(name)
    return replace(
        done,
        notes=(*done.notes, *(f"{name}: {note}" for note in result.notes)),
        rewritten=(*done.rewritten, *result.rewritten),
        cuts=(*done.cuts, *result.cuts),
        record=record,
        saved=done.saved + result.saved,
        modified=(*done.modified, name) if result.modified else done.modified,
        precisions={**done.precisions, name: result.precision} if result.precision else done.precisions,
        refinement=result.refinement or done.refinement,
    )


def _interface(model: ir.Model) -> Interface:
    from onnxdecomp.graph.traversal import places
    from onnxdecomp.pipeline.base import Interface

    seen: set[str] = set()
    shared: set[str] = set()
    for place in places(model):
        for node in place.graph:
            if node.name:
                (shared if node.name in seen else seen).add(node.name)
    graph = model.graph
    return Interface(
        ir_version=model.ir_version,
        opsets=dict(model.opset_imports),
        inputs=tuple(v.name for v in graph.inputs if v.name not in graph.initializers),
        outputs=tuple(v.name for v in graph.outputs),
        shared_names=frozenset(shared),
    )


def _translated(name: str, error: Exception) -> OnnxDecompError:
    """The error to show: our own from inside onnx_ir's wrapping, else one that names the pass."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OnnxDecompError):
            return inner
        inner = inner.__cause__
    return DefectError(f"pass {name} failed: {line(error)} (run with --debug for the traceback)")
