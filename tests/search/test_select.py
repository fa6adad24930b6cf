"""The search: plans that keep budgets, or say what can be reached."""

from __future__ import annotations

import re
from typing import Any, NoReturn

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnxdecomp_passes.decompose import Decompose

import onnxdecomp
from onnxdecomp.calibration.statistics import Calibration
from onnxdecomp.data.read import read_feeds
from onnxdecomp.errors import UsageError
from onnxdecomp.layers.find import find
from onnxdecomp.layers.shapes import infer_shapes
from onnxdecomp.pipeline.base import PassContext
from onnxdecomp.runtime.session import TensorSpec
from onnxdecomp.search import layer_profiles
from onnxdecomp.search.candidates import NOTHING_CHEAPER
from onnxdecomp.search.keep_layers import without
from onnxdecomp.search.layer_profiles import profile_layers
from onnxdecomp.search.metrics import costs
from onnxdecomp.search.plan import Plan
from onnxdecomp.search.plan_options import Objective
from onnxdecomp.search.plan_trials import cost_left
from onnxdecomp.search.scope import Scope, refusals
from onnxdecomp.search.search_record import SearchRecord
from onnxdecomp.search.select import Chosen, choose
from onnxdecomp.search.targets import Budget, parse_budgets
from tests.builders import graphs
from tests.builders.models import thin_middle


def calibration() -> Calibration:
    images = np.random.default_rng(0).standard_normal((40, 8, 6, 6)).astype(np.float32)
    spec = TensorSpec("x", ("N", 8, 6, 6), "float32")
    return Calibration(read_feeds({"x": images}, [spec]), threads=1)


CALIBRATION = calibration()


def totals(plan: Plan) -> dict[str, tuple[int, int]]:
    """MACs and parameters of all layers, before and after."""
    found = {}
    for quantity in ("macs", "params"):
        before = [getattr(choice.before, quantity) for choice in plan.choices]
        after = [getattr(c.after if c.method else c.before, quantity) for c in plan.choices]
        found[quantity] = (sum(before), sum(after))
    return found


def search(target: str, **options: Any) -> tuple[Plan, SearchRecord]:
    stage = Decompose(target=target, **{"method": "tucker,svd", "skip_below": 0.0, **options})
    found, _ = stage.plan(ir.from_proto(thin_middle()), PassContext(calibration=CALIBRATION))
    assert found.record is not None
    return found.plan, found.record


def kept(budget: Budget, plan: Plan) -> bool:
    before, after = totals(plan)[budget.quantity]
    return after <= budget.allowed(before)


@pytest.mark.parametrize(
    "target", ["macs=1x", "macs=1.3x", "macs=2x", "macs=5x", "params=3x", "macs=100k", "macs=2x,params=4x"]
)
def test_budgets_are_kept(target: str) -> None:
    plan, record = search(target)
    assert all(kept(budget, plan) for budget in parse_budgets(target))
    assert bool(plan.decomposed) == (target != "macs=1x")
    assert record.expected.bound <= record.expected.loss + 1e-12


def test_each_of_several_budgets_counts() -> None:
    # Parameters are in the classifier, too, MACs hardly: neither budget implies the other.
    both = parse_budgets("macs=1.2x,params=4x")
    macs, _ = search("macs=1.2x")
    together, _ = search("macs=1.2x,params=4x")
    assert [kept(budget, macs) for budget in both] == [True, False]
    assert [kept(budget, together) for budget in both] == [True, True]


def test_a_tighter_budget_loses_more() -> None:
    losses = [search(f"macs={factor}x")[1].expected.loss for factor in (1, 1.5, 2, 3, 5)]
    assert losses[0] == 0
    assert losses == sorted(losses)
    assert losses[1] < losses[-1]


def test_the_objective_is_least_within_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    # Parameters are in the classifier, too, MACs hardly: no plan has the least of both.
    monkeypatch.setattr(costs, "_OF_A_CHAIN", 0)
    model = ir.from_proto(thin_middle())
    infer_shapes(model)
    matched, skips = find(model)
    profiles = profile_layers(model, matched, Scope(("tucker", "svd"), skip_below=0.0), CALIBRATION)

    def least(objective: Objective) -> tuple[Chosen, dict[str, tuple[int, int]]]:
        found = choose(profiles, skips, (), max_loss=0.1, objective=objective)
        assert isinstance(found, Chosen)
        assert found.loss <= 0.1
        return found, totals(found.plan)

    (light, light_totals), (_, quick_totals) = least("size"), least("macs")
    assert light_totals["params"][1] < quick_totals["params"][1]
    assert quick_totals["macs"][1] < light_totals["macs"][1]
    before, after = light_totals["params"]
    assert cost_left(light) == pytest.approx(after / before, rel=0.01)
    # The nodes of a chain count: none is worth it that saves fewer bytes than these.
    monkeypatch.setattr(costs, "_OF_A_CHAIN", 10_000)
    assert [choice.layer for choice in least("size")[0].plan.decomposed] == ["two"]


@pytest.mark.parametrize(("came_in", "smaller"), [(25_000, True), (1_000, False)])
def test_a_file_that_gets_no_smaller_is_left_alone(came_in: int, *, smaller: bool) -> None:
    stage = Decompose(target="error=0.2", objective="size", method="tucker,svd", skip_below=0.0)
    context = PassContext(calibration=CALIBRATION, original_bytes=came_in)
    plan = stage.plan(ir.from_proto(thin_middle()), context)[0].plan
    assert bool(plan.decomposed) == smaller
    if not smaller:
        reason = next(choice.reason for choice in plan.choices if choice.layer == "two")
        assert reason.startswith("with chains or cuts the file has")
        assert reason.endswith("with every layer as it is 1,000")


def test_the_layer_that_loses_little_pays() -> None:
    plan, _ = search("macs=1.8x")
    assert [choice.layer for choice in plan.decomposed] == ["two"]
    assert next(c for c in plan.choices if c.layer == "one").reason.startswith("better kept")


def test_auto_chooses_among_all_methods() -> None:
    plan, record = search("macs=2x", method="auto", include=("two",))
    assert kept(Budget("macs", 2.0, relative=True), plan)
    (choice,) = plan.decomposed
    (layer,) = record.layers
    weighed = [(candidate.method, candidate.ranks) for candidate in layer.candidates]
    assert (choice.method, choice.ranks) in weighed
    for method in ("tucker", "svd", "spatial"):
        _, alone = search("macs=2x", method=method, include=("two",))
        assert record.expected.loss <= alone.expected.loss


def test_a_method_that_takes_a_layer_says_why_it_stays() -> None:
    """Not the others that were weighed with it, and do not take it."""
    model = ir.from_proto(thin_middle())
    infer_shapes(model)
    fc = next(match for match in find(model)[0] if match.layer.name == "fc")
    assert refusals(("spatial",), fc) == "no convolution: use svd"
    assert refusals(("spatial", "svd"), fc) == refusals(("auto",), fc) == NOTHING_CHEAPER


def test_a_plan_is_a_value_and_the_search_repeats_itself() -> None:
    plan, record = search("macs=2x")
    again, record_again = search("macs=2x")
    assert (plan, record) == (again, record_again)
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("quantity", ["macs", "params"])
def test_out_of_reach_says_what_can_be_reached(quantity: str) -> None:
    with pytest.raises(UsageError, match=f"{quantity}=1000x is out of reach") as raised:
        search(f"{quantity}=1000x")
    found = re.search(rf"at most {quantity}=([\d.]+)x", str(raised.value))
    assert found is not None
    # It is a bound that is known before layers are weighed, and then some methods go.
    within = parse_budgets(f"{quantity}={0.9 * float(found[1])}x")
    assert kept(within[0], search(str(within[0]))[0])


@pytest.mark.parametrize("target", ["macs=1000x", "params=1000x,error=0.1"])
def test_what_no_plan_can_reach_is_told_before_anything_is_weighed(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weighed(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a layer was weighed")

    monkeypatch.setattr(layer_profiles, "candidates", weighed)
    monkeypatch.setattr(layer_profiles, "observe_unchanged", weighed)
    with pytest.raises(UsageError, match="is out of reach: these methods and layers allow at most"):
        search(target)


def test_layers_left_out_cannot_pay() -> None:
    plan, _ = search("macs=1.3x", exclude=("two",))
    assert [choice.layer for choice in plan.decomposed] == ["one"]
    assert next(c for c in plan.choices if c.layer == "two").reason == "excluded by name"
    with pytest.raises(UsageError, match="out of reach"):
        search("macs=3x", exclude=("two",))


def test_a_limit_on_classes_that_change_is_used_and_kept() -> None:
    left = {}
    for limit in (0.0, 0.4):
        plan, record = search(f"disagreement={limit}")
        shares = [entry["disagreement"] for entry in record.tries]
        # a quarter of the inputs, ten, are not fitted to
        assert all(share is not None and (10 * share) % 1 == pytest.approx(0) for share in shares)
        assert any(share is not None and share <= limit for share in shares) or not plan.decomposed
        left[limit] = totals(plan)["macs"][1]
    assert left[0.4] < left[0.0]


def test_a_limit_on_the_error_is_used_and_kept() -> None:
    tries = {}
    for limit in (0.05, 0.3):
        plan, record = search(f"error={limit}")
        assert plan.decomposed
        errors = [entry["error"] for entry in record.tries]
        assert any(error is not None and error <= limit for error in errors)
        tries[limit] = totals(plan)["macs"][1]
    assert tries[0.3] < tries[0.05]


def test_no_error_allowed_changes_nothing() -> None:
    plan, _ = search("error=0")
    assert plan.decomposed == ()


def test_the_goal_where_none_is_named() -> None:
    assert Decompose().searches
    assert Decompose().goal == "error=0.05"
    assert Decompose(target="macs=2x").goal == "macs=2x"
    assert not Decompose(rank="4").searches


def test_a_rank_and_a_target_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        Decompose(rank="4", target="macs=2x")


@pytest.mark.parametrize("target", ["fast", "macs", "macs=two", "macs=0.5x", "drop=2x", "macs=2x,macs=3x"])
def test_targets_that_make_no_sense(target: str) -> None:
    with pytest.raises(UsageError, match="--target"):
        Decompose(target=target)


def test_without_inputs_it_says_so() -> None:
    stage = Decompose(target="macs=2x", method="svd", skip_below=0.0)
    found, _ = stage.plan(ir.from_proto(thin_middle()))
    assert kept(parse_budgets("macs=2x")[0], found.plan)
    (note,) = found.notes
    assert "random" in note
    assert "--calib" in note


def two_outputs() -> onnx.ModelProto:
    """x to y by a layer that has little but a rank of 3, and to a state by one of full rank."""
    rng = np.random.default_rng(3)
    low = rng.standard_normal((24, 3)) @ rng.standard_normal((3, 24)) + 0.01 * rng.standard_normal((24, 24))
    weights = {"w1": low, "w2": rng.standard_normal((24, 24))}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["y"], name="one"),
        helper.make_node("MatMul", ["x", "w2"], ["state"], name="two"),
        *(helper.make_node("Identity", ["y"], [f"copy{k}"]) for k in range(3)),
    ]
    names = ("y", "copy0", "copy1", "copy2", "state")
    return graphs.model(
        nodes,
        {"x": ["N", 24]},
        dict.fromkeys(names, ("N", 24)),
        {name: w.astype(np.float32) for name, w in weights.items()},
    )


def test_the_error_is_that_of_the_worst_output() -> None:
    """Not the mean, in which four good outputs would hide a bad state."""
    x = np.random.default_rng(0).standard_normal((64, 24)).astype(np.float32)
    done = onnxdecomp.compress(
        two_outputs(), target="error=0.3", calib={"x": x}, method="svd", bench=False, simplify="none"
    )
    assert done.plan.decomposed[0].layer == "one"
    assert done.verification is not None
    assert done.verification.worst is not None
    assert done.verification.worst <= 0.3


@pytest.mark.parametrize(
    ("target", "layers", "reason"),
    [
        ("macs=1x", (), "the target is met with every layer as it is"),
        ("macs=1.8x", ("two",), "better kept: other layers save as much at less loss"),
        ("error=0", (), "every candidate is expected to lose more than may be lost"),
        ("error=0.12", ("two", "fc"), "los"),
    ],
)
def test_why_a_layer_is_kept_is_true(target: str, layers: tuple[str, ...], reason: str) -> None:
    plan, record = search(target)
    assert tuple(choice.layer for choice in plan.decomposed) == layers
    weighed = {entry.layer for entry in record.layers}
    kept = [choice.reason for choice in plan.choices if choice.layer in weighed - set(layers)]
    assert kept
    assert all(reason in said for said in kept), kept


def test_no_layer_was_better_kept_where_all_are() -> None:
    plan, _ = search("macs=1.8x")
    left = without(plan, {("", "two")}, "put back")
    reasons = [choice.reason for choice in left.choices]
    assert left.decomposed == ()
    assert "put back" in reasons
    assert not any("better kept" in reason for reason in reasons)
    assert any(reason.startswith("left out of the plan that was put back: ") for reason in reasons)


@pytest.mark.parametrize(
    ("options", "needs", "uses_latency"),
    [
        ({"target": "latency=2x"}, {"latency"}, True),
        ({"target": "size=2x,latency=2x"}, {"latency", "original_bytes"}, True),
        ({"target": "size=2x"}, {"original_bytes"}, False),
        ({"target": "macs=2x"}, set(), False),
        ({"target": "drop=0.01"}, set(), True),
        ({}, set(), True),
        ({"rank": "4"}, set(), False),
    ],
)
def test_a_goal_says_what_a_run_has_to_measure(
    options: dict[str, Any], needs: set[str], uses_latency: bool
) -> None:
    stage = Decompose(**options)
    assert stage.needs == needs
    assert ("latency" in stage.uses) == uses_latency
