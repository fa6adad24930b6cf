"""merge: factors that mix channels only become one with what stands right before or behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxdecomp.layers.find import find
from onnxdecomp.layers.merge_pointwise import merge_pointwise, mergeable
from onnxdecomp.layers.replace import LAYER
from onnxdecomp.pipeline.base import Need, Pass, PassContext, PassResult, option

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Merge(Pass):
    """Merge factors into neighbours that mix channels only, where nothing stands between them.

    A 1x1 convolution behind a 1x1 convolution, and a product behind a product, are one, if that takes no more
    numbers: one kernel less, and one activation less that is written and read. One of the two is a
    factor of a decomposed layer; layers that were asked to stay do.
    """

    name: ClassVar[str] = "merge"
    summary: ClassVar[str] = "Merge 1x1 factors into 1x1 neighbours where nothing stands between them"

    enabled: bool = option(True, "whether it does anything")

    @property
    def idle(self) -> bool:
        """Whether it does nothing."""
        return not self.enabled

    @property
    def uses(self) -> frozenset[Need]:
        """What was asked to stay."""
        return frozenset(("decided",))

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Put a merged graph in the place of the model's, where there is anything to merge."""
        if not self.enabled or context.decided is None or not mergeable(model, _one_is_a_factor):
            return PassResult(model, modified=False)
        fixed = {(choice.graph, choice.layer) for choice in context.decided.choices if choice.fixed}
        # The layers are checked against their chains afterwards: what stands in the model must stay.
        copy = model.clone()
        stays = {
            node
            for match in find(copy, freeze=True)[0]
            if (match.layer.graph, match.layer.name) in fixed
            for node in match.nodes
        }

        def may(first: ir.Node, second: ir.Node) -> bool:
            return _one_is_a_factor(first, second) and not {first, second} & stays

        merged = merge_pointwise(copy, may)
        if merged:
            model.graph = copy.graph
        notes = (f"{merged} pairs of layers that mix channels only were merged",) if merged else ()
        return PassResult(model, modified=bool(merged), notes=notes, record={"merged": merged})


def _one_is_a_factor(first: ir.Node, second: ir.Node) -> bool:
    return LAYER in first.metadata_props or LAYER in second.metadata_props
