"""Carrying out plans with calibration inputs: the order of the work, and what kept layers make up for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from onnxdecomp.apply.apply_plan import carry_out
from onnxdecomp.apply.layer_fitter import Fitter
from onnxdecomp.calibration.activations import open_observer
from onnxdecomp.core.layer import Array
from onnxdecomp.layers.adapter import LayerMatch
from onnxdecomp.layers.find import find
from onnxdecomp.record.layers import layer_records
from onnxdecomp.search.fixed_ranks import Request, plan_uniform
from onnxdecomp.search.plan import Choice, Plan
from onnxdecomp.search.rules import Defaults, parse_rule
from tests.builders.feeds import calibration, normal
from tests.builders.graphs import conv, loaded, value
from tests.builders.graphs import model as make
from tests.builders.running import values

FEEDS = [{"x": normal(1, 4, 6, 6, seed=index)} for index in range(40)]


def two_branches() -> onnx.ModelProto:
    """y = relu(left(relu(first(x))) + right(x)), then last."""
    sizes = {"first": (8, 4, 3, 3), "left": (6, 8, 3, 3), "right": (6, 4, 1, 1), "last": (5, 6, 3, 3)}
    weights = {f"{name}.w": normal(*size) / np.float32(3) for name, size in sizes.items()}
    weights |= {f"{name}.b": normal(size[0]) for name, size in sizes.items()}
    padded = {"pads": [1, 1, 1, 1]}
    nodes = [
        conv("first", "x", "h", **padded),
        helper.make_node("Relu", ["h"], ["r"]),
        conv("left", "r", "a", **padded),
        conv("right", "x", "b"),
        helper.make_node("Add", ["a", "b"], ["s"]),
        helper.make_node("Relu", ["s"], ["t"]),
        conv("last", "t", "y", **padded),
    ]
    return make(nodes, [value("x", ["N", 4, 6, 6])], [value("y", None)], weights)


def planned(model: ir.Model, *rules: str) -> Plan:
    defaults = Defaults("0.5", {})
    request = Request(tuple(parse_rule(rule, defaults) for rule in rules), must_save="none", skip_below=0)
    return plan_uniform(*find(model), request)


def carried_out(plan: Plan, **settings: object) -> ir.Model:
    model = loaded(two_branches())
    carry_out(model, find(model)[0], plan, calibration=calibration(FEEDS, **{"held_out": 0.25, **settings}))
    return model


def error(model: ir.Model, name: str = "y") -> float:
    meant, seen = (values(m, [name], FEEDS)[0] for m in (loaded(two_branches()), model))
    return float(np.linalg.norm(seen - meant) / np.linalg.norm(meant))


def free(plan: Plan) -> Plan:
    """Every layer that stays may be repaired."""
    return replace(plan, choices=tuple(replace(choice, fixed=False) for choice in plan.choices))


def test_kept_layers_make_up_for_what_was_lost() -> None:
    plan = free(planned(loaded(two_branches()), "first=svd:rank=2", "*=keep"))
    repaired, left = carried_out(plan), carried_out(replace(plan, repair=False))
    assert error(repaired) < 0.97 * error(left)
    names = [node.name for node in left.graph if node.op_type == "Conv"]
    assert [node.name for node in repaired.graph if node.op_type == "Conv"] == names
    for node in repaired.graph:
        expected = "true" if node.name in ("left", "right", "last") else None
        assert node.metadata_props.get("pkg.onnxdecomp.repaired") == expected


def weights_of(model: ir.Model, name: str) -> Array:
    node = next(node for node in model.graph if node.name == name)
    tensor = ir.convenience.get_const_tensor(node.inputs[1])  # type: ignore[arg-type]
    assert tensor is not None
    return tensor.numpy()


def test_layers_asked_to_stay_and_layers_before_stay_bit_for_bit() -> None:
    plan = planned(loaded(two_branches()), "left=svd:rank=2", "*=keep")
    made, original = carried_out(plan), loaded(two_branches())
    for name in ("first", "right", "last"):
        np.testing.assert_array_equal(weights_of(made, name), weights_of(original, name))
    before = carried_out(free(plan))
    np.testing.assert_array_equal(weights_of(before, "first"), weights_of(original, "first"))
    assert np.any(weights_of(before, "last") != weights_of(original, "last"))


def test_a_layer_comes_after_the_layers_of_the_branch_it_is_added_to(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    original = Fitter.fit

    def spy(self: Fitter, match: LayerMatch, *rest: object) -> object:
        order.append(match.layer.name)
        return original(self, match, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Fitter, "fit", spy)
    carried_out(planned(loaded(two_branches()), "*=svd:rank=2"))
    assert order == ["first", "right", "left", "last"]


def test_a_last_sweep_would_change_nothing() -> None:
    """Everything that a layer was fitted to is final by then: fitted again, it comes out the same."""
    plan = planned(loaded(two_branches()), "*=svd:rank=2")
    seen: dict[str, Array] = {}
    original = Fitter.fit
    with pytest.MonkeyPatch.context() as patch:

        def spy(self: Fitter, match: LayerMatch, *rest: object) -> object:
            names = [str(match.x.name), *(["b"] if match.layer.name == "left" else [])]
            observer = open_observer(self.model, names, threads=1)
            for name, array in zip(
                names, observer.run({"x": np.concatenate([f["x"] for f in FEEDS])}), strict=True
            ):
                seen[f"{match.layer.name} {name}"] = array
            return original(self, match, *rest)  # type: ignore[arg-type]

        patch.setattr(Fitter, "fit", spy)
        made = carried_out(plan)
    assert len(seen) == 5
    for key, array in seen.items():
        np.testing.assert_allclose(values(made, [key.split()[1]], FEEDS)[0], array, rtol=1e-4, atol=1e-5)


def test_a_fit_that_knows_the_activation_is_better_behind_it() -> None:
    plan = planned(loaded(two_branches()), "first=svd:rank=3", "*=keep")
    behind, before = (error(carried_out(plan, rectified=knows, held_out=0.0), "r") for knows in (True, False))
    assert behind < 0.99 * before


def test_plans_keep_what_may_be_repaired() -> None:
    plan = planned(loaded(two_branches()), "left=svd:rank=2", "last=keep", "*=svd:rank=1")
    assert [choice.fixed for choice in plan.choices] == [False, False, False, True]
    assert Plan.from_json(plan.to_json()) == plan
    assert not Plan.from_json({**plan.to_json(), "repair": False}).repair
    # A plan of an earlier version knew no repair, and gives the bytes that it gave.
    assert not Plan.from_json({"version": 1, "choices": []}).repair
    assert not Choice("layer", "", "Conv").fixed


def hidden() -> ir.Model:
    """A stack, an Einsum, a layer in a branch, and one that can be observed."""
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["h", "inner"], ["z"], "within")], "branch", [], [value("z", None)]
    )
    nodes = [
        helper.make_node("MatMul", ["x", "seen"], ["a"], "seen"),
        helper.make_node("Einsum", ["a", "summed"], ["b"], "einsum", equation="nabc,cd->nabd"),
        helper.make_node("MatMul", ["b", "stack"], ["h"], "stack"),
        helper.make_node("If", ["yes"], ["y"], "if", then_branch=branch, else_branch=branch),
    ]
    weights = {name: normal(8, 8) for name in ("seen", "summed", "inner")}
    weights |= {"stack": normal(2, 8, 8), "yes": np.asarray(True)}
    return loaded(make(nodes, [value("x", ["N", 2, 3, 8])], [value("y", None)], weights))


def test_a_layer_that_is_not_fitted_to_its_inputs_says_why() -> None:
    feeds = [{"x": normal(1, 2, 3, 8, seed=index)} for index in range(8)]
    reasons: list[dict[str, str]] = []
    for given in (calibration(feeds), None):
        model = hidden()
        plan = planned(model, "*=svd:rank=2")
        rewritten = carry_out(model, find(model)[0], plan, calibration=given)
        reasons.append({record.name: record.reason for record in layer_records(plan, rewritten.rewritten)})
    alone = "fitted to its weight alone: "
    assert reasons[0] == {
        "seen": "",
        "einsum": f"{alone}the input of Einsum is not made of rows",
        "stack": f"{alone}its weight is a stack of matrices",
        "within": f"{alone}it stands in a subgraph or a function",
    }
    assert reasons[1] == dict.fromkeys(reasons[0], "")
