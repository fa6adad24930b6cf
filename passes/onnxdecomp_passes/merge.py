"""merge: factors that mix channels only become one with what stands right before or behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxdecomp.graph.attributes import attribute
from onnxdecomp.layers.find import find
from onnxdecomp.layers.merge_pointwise import MERGED, Merged, merge_pointwise, mergeable
from onnxdecomp.layers.replace import LAYER
from onnxdecomp.pipeline.base import Need, Pass, PassContext, PassResult, option
from onnxdecomp.search.plan import Cost

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxdecomp.search.plan import Choice


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
        if not self.enabled or context.decided is None or not mergeable(model, _counted):
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
            return _counted(first, second) and not {first, second} & stays

        merged = merge_pointwise(copy, may)
        if merged:
            model.graph = copy.graph
        notes = (_told(len(merged)),) if merged else ()
        saved = _saved(merged, context.decided.choices)
        record: dict[str, object] = {"merged": len(merged), "params": saved.params, "macs": saved.macs}
        return PassResult(model, modified=bool(merged), notes=notes, saved=saved, record=record)


def _counted(first: ir.Node, second: ir.Node) -> bool:
    """Whether one is a factor of a layer that the other is none of, and what is saved is known.

    A chain by itself stays a chain: its ranks are what was asked for. Strides behind change the positions.
    """
    layers = {node.metadata_props.get(LAYER) for node in (first, second)}
    apart = layers != {None} and (
        len(layers) == 2 or any(MERGED in n.metadata_props for n in (first, second))
    )
    return apart and all(stride == 1 for stride in attribute(second, "strides", ()))


def _told(pairs: int) -> str:
    what = (
        "a pair of layers that mix channels only was"
        if pairs == 1
        else f"{pairs} pairs of layers that mix channels only were"
    )
    return f"{what} merged"


def _saved(merged: Sequence[Merged], choices: Sequence[Choice]) -> Cost:
    """What the layers' chains have and the model has no more."""
    known = {choice.layer: choice for choice in choices if not choice.graph}
    macs = 0
    for pair in merged:
        choice = known.get(pair.first.metadata_props.get(LAYER) or pair.first.name or "")
        if choice is not None and choice.before is not None and choice.sized:
            positions = choice.before.macs // math.prod(choice.weight)
            macs += pair.weights * positions
    return Cost(sum(pair.weights + pair.biases for pair in merged), macs)
