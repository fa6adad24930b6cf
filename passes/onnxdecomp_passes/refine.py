"""refine: what the decomposition has left, made up for by the weights of whole blocks together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxdecomp.core.refinement import Refinement
from onnxdecomp.errors import UsageError
from onnxdecomp.graph.traversal import operands
from onnxdecomp.layers.find import find
from onnxdecomp.pipeline.base import Need, Pass, PassContext, PassResult, option
from onnxdecomp.search.layer_errors import foreseen, reason_for

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxdecomp.search.plan import Plan


@dataclass(frozen=True)
class Refine(Pass):
    """Refine the compressed model block after block against the original, on the calibration inputs.

    Only numbers of the blocks' weights, biases and normalisation change. Samples that are held out decide for
    each block, and for the model as a whole, whether they do. Needs the extra `train` (torch).
    """

    name: ClassVar[str] = "refine"
    summary: ClassVar[str] = "Refine the factors of whole blocks together against the original"

    enabled: bool = option(False, "whether it does anything")
    layers: int = option(4, "rewritten layers in a block, about")
    epochs: int = option(5, "passes over the calibration inputs for each block; 0: the whole model only")
    whole: int = option(3, "passes for the model as a whole, behind the blocks; 0: none")
    rate: float = option(1e-2, "largest learning rate, as a share of a tensor's root mean square")

    def __post_init__(self) -> None:
        if self.layers < 1 or self.epochs < 0 or self.whole < 0 or not self.rate > 0:
            raise UsageError(
                "refine: layers must be at least 1, epochs and whole not below 0, and rate above 0"
            )

    @property
    def idle(self) -> bool:
        """Whether it does nothing."""
        return not self.enabled

    @property
    def uses(self) -> frozenset[Need]:
        """Inputs, the model before the decomposition, and what was decided there."""
        needed: frozenset[Need] = frozenset(("calibration", "held_out", "original", "decided"))
        return needed if self.enabled else frozenset()

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Put a refined graph in the place of the model's."""
        calibration, original, plan = context.calibration, context.original, context.decided
        if not self.enabled or original is None or plan is None or not plan.changes:
            return PassResult(model, modified=False)
        if calibration is None:
            raise UsageError("refine needs inputs to compare blocks on: give them with --calib")
        from onnxdecomp.training.refinement.refine import How, refine

        # The layers are checked against their chains afterwards: what stands in the model must stay.
        copy = model.clone()
        how = How(self.layers, self.epochs, self.whole, self.rate, seed=context.seed)
        try:
            made = refine(
                copy,
                original,
                calibration.feeds,
                context.held_out,
                how,
                fixed=set(_fixed(copy, plan)),
                mask=calibration.mask,
                threads=calibration.threads or None,
                report=context.progress,
            )
        except Exception as error:  # the copy alone is damaged
            why = str(error) if foreseen(error) else reason_for(error, "")
            return PassResult(model, modified=False, notes=(f"nothing was refined: {why}",))
        if made is None:
            return PassResult(
                model, modified=False, notes=("nothing was refined: no weight is one that can be",)
            )
        if made.kept:
            model.graph = copy.graph
        return PassResult(model, modified=made.kept, notes=_notes(made), refinement=made)


def _fixed(model: ir.Model, plan: Plan) -> Iterator[str]:
    """The initializers that layers read which were asked to stay."""
    asked = {(choice.graph, choice.layer) for choice in plan.choices if choice.fixed}
    for match in find(model, freeze=True)[0]:
        if (match.layer.graph, match.layer.name) not in asked:
            continue
        todo = [value for node in match.nodes for value in operands(node)]
        for value in todo:  # grows
            node = value.producer()
            if value.is_initializer():
                yield str(value.name)
            elif node is not None and node not in match.nodes and _constant(node):
                todo += operands(node)


def _constant(node: ir.Node) -> bool:
    """Whether a node computes with initializers alone: a weight on its way."""
    return all(value.is_initializer() for value in operands(node))


def _notes(made: Refinement) -> tuple[str, ...]:
    """What a user should know."""
    moved = f"{made.before:.3g} before, {made.after:.3g} after it"
    if not made.kept:
        return (f"undone, for the error on inputs held out did not fall: {moved}",)
    better = sum(block.epoch > 0 for block in made.blocks)
    return (
        f"{better} of {len(made.blocks)} blocks are better together; the error on inputs held out: {moved}",
    )
