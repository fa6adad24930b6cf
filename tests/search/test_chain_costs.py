"""What chains cost, counted once for all layers of one form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxdecomp.core.layer import ConvSpec, Layer
from onnxdecomp.decompositions.base import outline
from onnxdecomp.decompositions.registry import get
from onnxdecomp.search import chain_costs
from onnxdecomp.search.chain_costs import Form, chain_cost
from onnxdecomp.search.plan import Cost, cost_after_first, cost_of

CONV = ConvSpec((1, 1), (1, 1), (1, 1, 1, 1))
LAYER = Layer("a", "Conv", np.ones((8, 6, 3, 3), np.float32), None, CONV, "", (None, 6, 16, 16), None)


@pytest.mark.parametrize(
    "layer",
    [
        LAYER,
        replace(LAYER, bias=np.ones(8, np.float32)),
        replace(LAYER, input_shape=(None, 6, 32, 32)),
        replace(LAYER, conv=replace(CONV, strides=(2, 2))),
        replace(LAYER, weight=LAYER.weight[:4]),
        Layer("b", "MatMul", np.ones((8, 6), np.float32), input_shape=(None, 6)),
        Layer("b", "Gather", np.ones((8, 6), np.float32), input_shape=(None, 6), lookup=True),
        Layer("b", "GRU", np.ones((8, 6), np.float32), input_shape=(None, 5, 6), recurrence=32),
    ],
)
def test_a_chain_costs_what_its_outline_says(layer: Layer) -> None:
    """Whatever was asked for before: all that a cost depends on tells layers apart."""
    method = get("svd").specialise(layer)
    chain = outline(method, layer, (3,))  # type: ignore[arg-type]
    assert chain_cost(method, Form.of(layer), (3,)) == cost_of(chain, layer)  # type: ignore[arg-type]
    after = chain_cost(method, Form.of(layer), (3,), after_first=True)  # type: ignore[arg-type]
    assert after == cost_after_first(chain, layer) != cost_of(chain, layer)


def test_layers_of_one_form_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[Layer] = []

    def count(chain: object, layer: Layer) -> Cost:
        counted.append(layer)
        return Cost(1, len(counted))

    monkeypatch.setattr(chain_costs, "cost_of", count)
    layer = replace(LAYER, input_shape=(None, 6, 11, 13))
    other = replace(layer, name="b", graph="If_1/then_branch", weight=2 * layer.weight)
    costs = [chain_cost(get("svd"), Form.of(own), (2,)) for own in (layer, other, layer)]
    assert costs == [Cost(1, 1)] * 3
    assert not any(counted[0].weight.strides)  # no numbers are kept
