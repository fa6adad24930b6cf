"""Plans with siblings: what they say, cost and refuse, and what is left when layers are put back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from onnxdecomp.apply.apply_plan import carry_out
from onnxdecomp.core.chain import Chain
from onnxdecomp.core.layer import Array, Factors, Layer
from onnxdecomp.decompositions.shared import Shared
from onnxdecomp.errors import UsageError
from onnxdecomp.graph.traversal import slots
from onnxdecomp.layers.find import find
from onnxdecomp.search.check_plan import check_plan
from onnxdecomp.search.keep_layers import key_of, without
from onnxdecomp.search.plan import Choice, Cut, Plan
from onnxdecomp.workflow import compress
from onnxdecomp.workflow.result import Result
from tests.builders.feeds import calibration, normal
from tests.builders.graphs import loaded
from tests.builders.graphs import model as make
from tests.builders.running import op_types, run, values

node = helper.make_node
S, RANK = 16, 4
QKV = ("q", "k", "v")
SIZES = np.geomspace(4, 0.1, S).astype(np.float32)
FEEDS = [{"x": normal(1, 6, S, seed=index) * SIZES} for index in range(40)]


def low(outputs: int, seed: int) -> Array:
    """Weights [S, outputs] that need about RANK directions of the input, which others need too."""
    directions = normal(S, RANK, seed=99)
    made = directions @ normal(RANK, outputs, seed=seed) + 0.05 * normal(S, outputs, seed=seed)
    return np.asarray(made / 5, np.float32)


def attention() -> onnx.ModelProto:
    """Queries with a bias, keys without, values of another size, and a last layer."""
    weights = {name: low(size, seed) for seed, (name, size) in enumerate(zip(QKV, (16, 16, 12), strict=True))}
    weights |= {"b": normal(16), "o": normal(12, 12)}
    nodes = [
        node("Relu", ["x"], ["h"]),
        node("MatMul", ["h", "q"], ["qp"], name="q"),
        node("Add", ["qp", "b"], ["Q"]),
        node("MatMul", ["h", "k"], ["K"], name="k"),
        node("Transpose", ["K"], ["KT"], perm=[0, 2, 1]),
        node("MatMul", ["Q", "KT"], ["s"]),
        node("Softmax", ["s"], ["p"], axis=-1),
        node("MatMul", ["h", "v"], ["V"], name="v"),
        node("MatMul", ["p", "V"], ["c"]),
        node("MatMul", ["c", "o"], ["y"], name="o"),
    ]
    return make(nodes, {"x": ["N", 6, S]}, ["y"], weights)


def compressed(**options: Any) -> Result:
    usual = {"method": "shared", "rank": str(RANK), "skip_below": 0} if "plan" not in options else {}
    settings: dict[str, Any] = {"simplify": "none", **usual, **options}
    return compress.compress(attention(), bench=False, verify=False, **settings)


def planned(**options: Any) -> Plan:
    return compressed(dry_run=True, **options).plan


def carried_out(plan: Plan, **settings: Any) -> ir.Model:
    model = loaded(attention())
    carry_out(model, find(model)[0], plan, **settings)
    return model


def error(model: ir.Model) -> float:
    meant, seen = (values(m, ["y"], FEEDS)[0] for m in (loaded(attention()), model))
    return float(np.linalg.norm(seen - meant) / np.linalg.norm(meant))


def grouped(plan: Plan) -> list[str]:
    return [choice.layer for choice in plan.decomposed if choice.group == "q"]


def test_the_first_layer_bears_the_cost_of_what_they_have_in_common() -> None:
    result = compressed()
    assert grouped(result.plan) == list(QKV)
    named = {layer["name"]: layer.get("group") for layer in result.record["layers"]}
    assert named == {**dict.fromkeys(QKV, "q"), "o": None} | {name: None for name in named if name not in QKV}
    costs = {layer.name: (layer.params.after, layer.macs.after) for layer in result.layers}
    assert costs["q"] == (S * RANK + RANK * 16 + 16, 6 * (S * RANK + RANK * 16))
    assert costs["k"] == (RANK * 16, 6 * RANK * 16)
    assert costs["v"] == (RANK * 12, 6 * RANK * 12)
    stored = sum(slot.tensor.size for slot in slots(result.model) if slot.tensor.dtype.is_floating_point())
    assert stored == result.record["totals"]["params"]["after"]
    assert op_types(result.model)["MatMul"] == 2 + 1 + 3 + 1
    assert [layer.reason for layer in result.layers if layer.name == "o"] == [
        "no other layer of its kind reads its activation"
    ]


def test_a_plan_is_read_as_it_was_written_and_old_ones_are() -> None:
    plan = planned()
    written = plan.to_json()
    assert Plan.from_json(written) == plan
    again = compressed(plan=written)
    assert again.plan == plan
    choices: Any = written["choices"]
    assert [choice.get("group") for choice in choices][:4] == ["q", "q", "q", None]
    alone: Any = planned(method="svd").to_json()["choices"]
    assert [choice for choice in alone if "group" in choice] == []


def test_each_must_save_is_about_the_group() -> None:
    # At rank 10 a layer alone would cost more than it did: 10 (16 + 16) > 16 * 16.
    plan = planned(rank="10", must_save="both")
    assert grouped(plan) == list(QKV)
    kept = planned(rank="12", must_save="macs")
    assert grouped(kept) == []
    assert "needs 1.02x the MACs" in kept.choices[0].reason
    assert "q, k, v" in kept.choices[0].reason
    # Another method takes them then, and those that no group takes.
    assert [c.method for c in planned(method="shared,svd", rank="5").choices][:4] == ["shared"] * 3 + ["svd"]


def test_rules_make_groups_of_the_layers_with_one_rank() -> None:
    assert grouped(planned(layers=("v=keep",))) == ["q", "k"]
    assert planned(layers=("k=svd:rank=2", "v=keep")).decomposed[0].layer == "k"
    alone = planned(layers=("k=svd:rank=2", "v=keep")).choices[0]
    assert alone.reason == "no other layer that reads its activation is given the same"
    plan = planned(exclude=("q",))
    assert [choice.group for choice in plan.decomposed] == ["k", "k"]
    fraction = planned(rank="0.5")
    assert {choice.ranks for choice in fraction.decomposed} == {(8,)}
    assert {choice.ranks for choice in planned(rank="energy=0.9").decomposed} == {(3,)}
    with pytest.raises(UsageError, match="rank 17 is above the full rank 16"):
        planned(rank="17")


def changed(plan: Plan, layer: str, **fields: Any) -> Plan:
    choices = tuple(replace(c, **fields) if c.layer == layer else c for c in plan.choices)
    return replace(plan, choices=choices)


def test_groups_that_cannot_be_are_refused() -> None:
    model = loaded(attention())
    matched, plan = find(model)[0], planned()
    check_plan(plan, matched)
    with pytest.raises(UsageError, match=r"'o'.*: no other layer of its kind"):
        check_plan(changed(plan, "o", method="shared", ranks=(4,), group="q"), matched)
    with pytest.raises(UsageError, match="'k' is not given what 'q' is"):
        check_plan(changed(plan, "k", ranks=(3,)), matched)
    with pytest.raises(UsageError, match="'k': shared needs a group"):
        check_plan(changed(plan, "k", group=""), matched)
    with pytest.raises(UsageError, match="svd takes one layer at a time"):
        check_plan(changed(plan, "k", method="svd", options={}), matched)
    with pytest.raises(UsageError, match="no rank 17 there; ranks are from 1 to 16"):
        check_plan(changed(plan, "k", ranks=(17,)), matched)


def test_layers_of_two_activations_are_no_group() -> None:
    two = [node("MatMul", [x, f"w{x}{n}"], [f"{x}{n}"], name=f"{x}{n}") for x in "ab" for n in "12"]
    weights = {f"w{x}{n}": low(8, ord(x) + ord(n)) for x in "ab" for n in "12"}
    proto = make(two, {x: ["N", S] for x in "ab"}, [f"{x}{n}" for x in "ab" for n in "12"], weights)
    result = compress.compress(
        proto, bench=False, verify=False, simplify="none", method="shared", rank="4", must_save="none"
    )
    assert [choice.group for choice in result.plan.choices] == ["a1", "a1", "b1", "b1"]
    one = replace(result.plan, choices=tuple(replace(c, group="a1") for c in result.plan.choices))
    with pytest.raises(UsageError, match="'b1' does not read what 'a1' reads"):
        check_plan(one, find(loaded(proto))[0])


@pytest.mark.parametrize("back", [("q",), ("k",), ("q", "v")])
def test_what_is_left_when_layers_are_put_back_is_a_group(back: tuple[str, ...]) -> None:
    plan = without(planned(), {("", name) for name in back}, "put back")
    left = [name for name in QKV if name not in back]
    result = compressed(plan=plan.to_json())
    assert grouped(result.plan) == left
    costs = [layer.params.after for layer in result.layers if layer.name in left]
    own = {"q": RANK * 16 + 16, "k": RANK * 16, "v": RANK * 12}
    assert costs == [own[name] + (0 if index else S * RANK) for index, name in enumerate(left)]
    assert error(result.model) < 0.3
    assert op_types(result.model)["MatMul"] == 2 + 1 + len(left) + 1 + len(
        back
    )  # of the scores, the first factor, last ones, o and those kept


def test_fitted_together_they_lose_less_than_on_the_weights_alone() -> None:
    plan = replace(planned(rank="3"), repair=False)
    plain, fitted = carried_out(plan), carried_out(plan, calibration=calibration(FEEDS, held_out=0.25))
    assert error(fitted) < 0.8 * error(plain)
    model = loaded(attention())
    done = carry_out(model, find(model)[0], plan, calibration=calibration(FEEDS)).rewritten
    assert [rewritten.loss is not None for rewritten in done] == [True] * 3
    assert all(0 < (rewritten.loss or 0) < 0.2 for rewritten in done)
    assert [tensor.tobytes() for tensor in factors(model)] == [
        t.tobytes() for t in factors(carried_out(plan, calibration=calibration(FEEDS)))
    ]


def factors(model: ir.Model) -> list[Array]:
    return [slot.tensor.numpy() for slot in slots(model) if slot.tensor.dtype.is_floating_point()]


def test_a_layer_that_fails_leaves_the_others_their_group(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Shared.assemble

    def broken(self: Shared, layer: Layer, own: Factors) -> Chain:
        if layer.name == "q" and np.any(own[1]):  # not an outline
            raise ZeroDivisionError("q")
        return original(self, layer, own)

    plan = planned()
    monkeypatch.setattr(Shared, "assemble", broken)
    failed: list[str] = []
    model = loaded(attention())

    def told(choice: Choice | Cut, error: Exception) -> None:
        failed.append(key_of(choice)[1])

    done = carry_out(model, find(model)[0], plan, on_failure=told).rewritten
    assert failed == ["q"]
    assert [rewritten.match.layer.name for rewritten in done] == ["k", "v"]
    assert error(model) < 0.3


def test_int8_after_it() -> None:
    result = compressed(quantize="int8", calib=FEEDS, allow_slower=True)
    assert grouped(result.plan) == list(QKV)
    assert op_types(result.model)["DynamicQuantizeLinear"] or op_types(result.model)["QuantizeLinear"]
    seen, meant = (run(model, FEEDS[0])[0] for model in (result.model, attention()))
    assert np.linalg.norm(seen - meant) < 0.3 * np.linalg.norm(meant)


def gated() -> onnx.ModelProto:
    """x * sigmoid(x) of a gate, times the other factor, and what reads the product."""
    weights = {name: low(16, seed) for seed, name in enumerate(("gate", "up"))} | {"down": normal(16, 12)}
    nodes = [
        node("Relu", ["x"], ["h"]),
        node("MatMul", ["h", "gate"], ["g"], name="gate"),
        node("Sigmoid", ["g"], ["s"]),
        node("Mul", ["g", "s"], ["a"]),
        node("MatMul", ["h", "up"], ["u"], name="up"),
        node("Mul", ["a", "u"], ["m"]),
        node("MatMul", ["m", "down"], ["y"], name="down"),
    ]
    return make(nodes, {"x": ["N", 6, S]}, ["y"], weights)


@pytest.mark.parametrize("fitted", [False, True])
def test_siblings_of_which_a_cut_leaves_less(fitted: bool) -> None:
    """Gate and up lose a unit's rows each, and what is in common is fitted to what is left of them."""
    model = loaded(gated())
    shared = compress.compress(
        gated(), bench=False, simplify="none", method="shared", rank="4", skip_below=0, dry_run=True
    )
    cut = Cut("gate", "width", 16, 12, ("gate", "up"), ("down",))
    plan = replace(shared.plan, channels=(cut,))
    data = calibration(FEEDS) if fitted else None
    done = {
        one.match.layer.name: one
        for one in carry_out(model, find(model)[0], plan, calibration=data).rewritten
    }
    assert {name: [step.weight.shape for step in done[name].chain.weighted] for name in ("gate", "up")} == {
        name: [(S, 4), (4, 12)] for name in ("gate", "up")
    }
    assert op_types(model)["MatMul"] == 4
    assert [(done[name].loss is not None) for name in ("gate", "up")] == [fitted] * 2
    meant, seen = (values(m, ["y"], FEEDS)[0] for m in (loaded(gated()), model))
    assert np.linalg.norm(seen - meant) < (0.1 if fitted else 0.6) * np.linalg.norm(meant)
