"""What chains in place of a layer do to the network's output: some are tried in copies of the original."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from onnxdecomp.calibration.statistics import Calibration
from onnxdecomp.core.chain import Chain
from onnxdecomp.fitting.fit import stored
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.find import find_again
from onnxdecomp.layers.replace import Rewriter
from onnxdecomp.search.changed_part import errors_of_changes
from onnxdecomp.search.sensitivity import Effect, Outputs, effect_of


def effect(
    model: ir.Model,
    match: LayerMatch,
    chains: Sequence[tuple[float, Chain]],
    outputs: Outputs,
    calibration: Calibration,
    pending: Collection[ir.Node] = (),
) -> Effect:
    """Measure the effect of one layer's chains, each with its loss; only what follows the layer is computed.

    Args:
        model: The original.
        match: The layer.
        chains: With their losses.
        outputs: What the original gives.
        calibration: Where models are run.
        pending: The nodes of this layer and of all that will be measured later.

    Returns:
        The effect; without points, so that a layer's own loss stands for it, where no output can be compared
        or none shows anything: these inputs do not come to the layer, or what it gives is not used.
    """
    if not outputs.names:
        return Effect(())
    if chains:
        for _ in outputs.window.advance([match.x.name or ""] if not match.place.path else [], pending):
            pass
    tries = [partial(replaced, model, match, chain) for _, chain in chains]
    ends = [value for value in match.nodes[-1].outputs if value.name]
    known = outputs.window.held()
    errors = errors_of_changes(model, match.nodes, ends, tries, outputs, calibration, known)
    return effect_of([(loss, error) for (loss, _), error in zip(chains, errors, strict=True)], outputs)


def replaced(model: ir.Model, match: LayerMatch, chain: Chain) -> ir.Model:
    """A copy of the model with one layer replaced."""
    copy = model.clone()
    own = find_again(copy, match)
    own = replace(own, layer=replace(own.layer, weight=match.layer.weight))
    Rewriter(copy).replace(own, stored(chain, match.layer), {})
    return copy
