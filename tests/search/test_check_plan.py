"""Plans written by hand: what the model's layers cannot be given is one clear line."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
from onnxdecomp_passes.decompose import Decompose

from onnxdecomp.core.steps import Convolve
from onnxdecomp.errors import UsageError
from onnxdecomp.pipeline.base import PassContext
from onnxdecomp.runtime import jsonio
from onnxdecomp.search.plan import Plan
from tests.builders.models import thin_middle

PLAN: dict[str, Any] = jsonio.plain(
    Decompose(rank="3", method="svd", skip_below=0.0).plan(ir.from_proto(thin_middle()))[0].plan.to_json()
)


def changed(**choice: Any) -> dict[str, Any]:
    """The plan with another choice for the layer two, a convolution 16 -> 24 with a 3x3 kernel."""
    assert [entry["layer"] for entry in PLAN["choices"]] == ["one", "two", "fc"]
    return {
        **PLAN,
        "choices": [entry | (choice if entry["layer"] == "two" else {}) for entry in PLAN["choices"]],
    }


@pytest.mark.parametrize(
    ("choice", "fragments"),
    [
        ({"ranks": [17]}, ("'two'", "svd", "rank 17", "1 to 16")),
        ({"ranks": [0]}, ("'two'", "svd", "rank 0", "1 to 16")),
        ({"ranks": [-3]}, ("'two'", "svd", "rank -3", "1 to 16")),
        ({"ranks": []}, ("'two'", "svd", "1 of ranks", "16", "none")),
        ({"ranks": [4, 4]}, ("'two'", "svd", "1 of ranks", "16", "4,4")),
        ({"method": "tucker", "options": {}, "ranks": [25, 8]}, ("'two'", "tucker", "25,8", "24,16")),
        ({"method": "magic"}, ("'two'", "unknown method 'magic'")),
        ({"options": {"size": 3}}, ("'two'", "svd", "no option 'size'")),
        ({"layer": "nobody"}, ("'nobody'", "inspect")),
        ({"layer": "one"}, ("twice", "'one'")),
    ],
)
@pytest.mark.parametrize("planned_only", [False, True])
def test_what_a_layer_cannot_be_given(
    choice: dict[str, Any], fragments: tuple[str, ...], planned_only: bool
) -> None:
    stage, given = Decompose(), PassContext(plan=Plan.from_json(changed(**choice)))
    with pytest.raises(UsageError) as raised:
        (stage.plan if planned_only else stage.run)(ir.from_proto(thin_middle()), given)
    assert [fragment for fragment in fragments if fragment not in str(raised.value)] == []


def test_a_method_that_refuses_the_layer() -> None:
    refused = changed(layer="fc", method="spatial", options={})
    refused["choices"] = refused["choices"][:2]
    with pytest.raises(UsageError, match=r"'fc': spatial does not take it"):
        Decompose().plan(ir.from_proto(thin_middle()), PassContext(plan=Plan.from_json(refused)))


@pytest.mark.parametrize(
    ("choice", "fragment"),
    [
        ({"ranks": [2.5]}, "'two': the rank 2.5 is no whole number"),
        ({"ranks": ["4"]}, "'two': the rank '4' is no whole number"),
        ({"ranks": [True]}, "'two': the rank True is no whole number"),
        ({"ranks": "16"}, "'two': '16' is no list of ranks"),
        ({"ranks": None}, "'two': None is no list of ranks"),
        ({"method": 3}, "'two': 3 is no name of a method"),
    ],
)
def test_what_is_no_plan(choice: dict[str, Any], fragment: str) -> None:
    with pytest.raises(UsageError, match="the plan is damaged") as raised:
        Plan.from_json(changed(**choice))
    assert fragment in str(raised.value)


def test_the_largest_ranks_are_taken() -> None:
    given = PassContext(plan=Plan.from_json(changed(ranks=[16])))
    result = Decompose().run(ir.from_proto(thin_middle()), given)
    (two,) = (done for done in result.rewritten if done.match.layer.name == "two")
    first = two.chain.steps[0]
    assert isinstance(first, Convolve)
    assert first.weight.shape[0] == 16
