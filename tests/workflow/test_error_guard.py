"""A largest error is held where a search chose the ranks: layers give way until the verification passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxdecomp
from onnxdecomp.errors import GateError, UsageError
from onnxdecomp.search.plan import Choice, Cost, Plan
from onnxdecomp.search.search_record import CandidateRecord, Expected, LayerCandidates, Measured, SearchRecord
from onnxdecomp.search.tighten import tighter
from tests.builders import graphs
from tests.builders.commands import command, files

WIDTH = 24
OPTIONS: dict[str, Any] = {"method": "svd", "simplify": "none", "bench": False, "threads": 1}


def twice() -> onnx.ModelProto:
    """x [N, 24] to y by three products in a row, and to a state by the first and another one."""
    rng = np.random.default_rng(0)

    def weight(rank: int) -> Any:
        low = rng.standard_normal((WIDTH, rank)) @ rng.standard_normal((rank, WIDTH)) / np.sqrt(rank)
        return ((low + 0.15 * rng.standard_normal((WIDTH, WIDTH))) / 5).astype(np.float32)

    weights = {"w1": weight(6), "w2": weight(4), "w3": weight(5), "w4": weight(8)}
    nodes = [
        helper.make_node("MatMul", [x, w], [y], name=name)
        for name, x, w, y in (
            ("one", "x", "w1", "a"),
            ("two", "a", "w2", "b"),
            ("three", "b", "w3", "y"),
            ("four", "a", "w4", "state"),
        )
    ]
    return graphs.model(nodes, {"x": ["N", WIDTH]}, dict.fromkeys(("y", "state"), ("N", WIDTH)), weights)


def inputs(rank: int = WIDTH, count: int = 64, seed: int = 1) -> dict[str, Any]:
    """Samples within a space of few dimensions: what is fitted to them is of little use elsewhere."""
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(2).standard_normal((rank, WIDTH)) if rank < WIDTH else np.eye(WIDTH)
    return {"x": (rng.standard_normal((count, rank)) @ basis).astype(np.float32)}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(twice(), "net.onnx")
    return tmp_path / "net.onnx"


def test_other_inputs_than_those_of_the_search(model: Path) -> None:
    """What the search has seen of the error is not what the verification finds."""
    wide = onnxdecomp.compress(model, target="error=0.2", calib=inputs(12), data=inputs(), **OPTIONS)
    assert wide.verification is not None
    assert wide.verification.worst is not None
    assert wide.verification.worst > 0.2
    held = onnxdecomp.compress(model, "out.onnx", max_error=0.2, calib=inputs(12), data=inputs(), **OPTIONS)
    assert held.verification is not None
    assert held.verification.passed
    assert held.changed
    assert len(held.plan.decomposed) >= 1
    assert files() == ["net.onnx", "out.onnx"]
    assert any("is above 0.2: " in note and "layers got ranks that lose less" in note for note in held.notes)
    checked = onnxdecomp.verify(model, "out.onnx", data=inputs(), max_error=0.2)
    assert checked.passed
    assert checked.worst == pytest.approx(held.verification.worst, rel=1e-3)


def test_layers_that_are_put_back_say_why(model: Path) -> None:
    held = onnxdecomp.compress(model, target="macs=2.2x", max_error=0.12, data=inputs(), **OPTIONS)
    assert held.verification is not None
    assert held.verification.passed
    back = [choice for choice in held.plan.choices if choice.reason.startswith("put back: with it the error")]
    assert back
    assert all("is above 0.12" in choice.reason and choice.after is None for choice in back)
    assert any(note == "the target macs=2.2x gives way to the largest error" for note in held.notes), (
        held.notes
    )


def test_where_nothing_holds_the_answer_is_the_original(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez("calib.npz", **inputs(3))
    np.savez("eval.npz", **inputs())
    line = ("compress", model, "--simplify", "none", "--no-bench", "--method", "svd", "--threads", 1)
    given = ("--calib", "calib.npz", "--eval", "eval.npz", "-o", "out.onnx")
    done = command(capsys, *line, *given, "--max-error", "0.002")
    assert done.code == 0, done.err
    assert "a copy of the original" in done.out
    assert "above 0.002" in done.err
    assert Path("out.onnx").read_bytes() == model.read_bytes()


@pytest.mark.parametrize("kind", ["rank", "plan", "rules"])
def test_ranks_given_by_hand_fail(kind: str, model: Path) -> None:
    found = onnxdecomp.compress(model, dry_run=True, rank="2", **OPTIONS)
    ways: dict[str, dict[str, Any]] = {
        "rank": {"rank": "2"},
        "rules": {"layers": ("two=svd:rank=2",)},
        "plan": {"plan": found.plan},
    }
    given = ways[kind]
    options = {name: value for name, value in OPTIONS.items() if kind != "plan" or name != "method"}
    with pytest.raises(GateError, match="verification failed, nothing was written"):
        onnxdecomp.compress(model, "out.onnx", max_error=0.01, **given, **options)
    assert files() == ["net.onnx"]


def test_quantization_gives_way_too(model: Path) -> None:
    """8 bits alone lose more than is allowed: nothing was asked for that they could be weighed against."""
    with pytest.raises(UsageError, match="out of reach"):
        onnxdecomp.compress(model, target="error=0.001", quantize="int8-static", calib=inputs(), **OPTIONS)
    held = onnxdecomp.compress(
        model, "out.onnx", max_error=0.001, quantize="int8-static", calib=inputs(), **OPTIONS
    )
    assert held.verification is not None
    assert held.verification.passed
    assert any(note.startswith("not quantized, for that alone has an error of") for note in held.notes)
    assert "quantize" not in held.record["passes"]


def test_quantization_that_the_search_did_not_judge_gives_way_after_the_layers(model: Path) -> None:
    held = onnxdecomp.compress(
        model, target="macs=2x", max_error=0.002, quantize="int8-static", calib=inputs(), **OPTIONS
    )
    assert held.verification is not None
    assert held.verification.passed
    assert any(note.startswith("not quantized, for with that alone the error") for note in held.notes)
    assert "quantize" not in held.record["passes"]


def test_layers_give_way_before_quantization(model: Path) -> None:
    held = onnxdecomp.compress(
        model, target="macs=3x", max_error=0.1, quantize="int8-static", calib=inputs(), **OPTIONS
    )
    assert held.verification is not None
    assert held.verification.passed
    assert any("is above 0.1: " in note for note in held.notes)
    assert "quantize" in held.record["passes"]


def searched(*losses: float) -> tuple[Plan, SearchRecord]:
    """A plan of layers "0", "1", … at rank 1, and what a search weighed: each further rank halves it."""
    choices = [
        Choice(str(k), "", "MatMul", "svd", {"left": 1}, (1,), before=Cost(100, 100), after=Cost(10, 10))
        for k in range(len(losses))
    ]
    layers = tuple(
        LayerCandidates(
            *(str(k), "", 100, None, ()),
            tuple(
                CandidateRecord(
                    *("svd", {"order": "out"}, (rank,), 20 * rank, 20 * rank),
                    *(loss, loss / 2 ** (rank - 1), None),
                )
                for rank in (1, 2, 3, 4)
            ),
        )
        for k, loss in enumerate(losses)
    )
    weighed = SearchRecord(Expected(sum(losses), 0.0, 0.0, None), Measured(None), None, 4, (), (), layers)
    return Plan((*choices, Choice("last", "", "MatMul", reason="too small"))), weighed


def expected(plan: Plan, losses: tuple[float, ...]) -> float:
    return float(sum(losses[int(choice.layer)] / 2 ** (choice.ranks[0] - 1) for choice in plan.decomposed))


@pytest.mark.parametrize("share", [0.9, 0.5, 0.3, 0.1, 0.01])
@pytest.mark.parametrize("losses", [(0.5, 0.3, 0.2), (0.9, 0.05, 0.05), (1.0,)])
def test_a_tighter_plan_loses_less(share: float, losses: tuple[float, ...]) -> None:
    plan, search = searched(*losses)
    found = tighter(plan, search, share, "put back")
    assert expected(found, losses) <= share * sum(losses) + 1e-12
    assert {choice.layer for choice in found.decomposed} <= {choice.layer for choice in plan.decomposed}
    kept = [choice for choice in found.choices[:-1] if choice.method is None]
    assert all((choice.reason, choice.ranks, choice.after) == ("put back", (), None) for choice in kept)
    for choice in found.decomposed:
        assert choice.after == Cost(20 * choice.ranks[0], 20 * choice.ranks[0]) or choice in plan.choices


def test_the_worst_layer_gives_way_first() -> None:
    plan, search = searched(0.9, 0.01, 0.01)
    found = tighter(plan, search, 0.2, "put back")
    ranks = {choice.layer: choice.ranks for choice in found.decomposed}
    assert ranks["1"] == ranks["2"] == (1,)
    assert ranks.get("0") != (1,)


def test_where_no_loss_was_expected_half_of_the_layers_go() -> None:
    plan, search = searched(0.0, 0.0, 0.0, 0.0)
    found = tighter(plan, search, 0.9, "put back")
    assert len(found.decomposed) == 2


def test_layers_behind_cuts_get_higher_ranks_too() -> None:
    """Their ranks are those of what a cut has left: the plan is that of the candidates which come to them."""
    plan, search = searched(0.5, 0.3)
    left = replace(plan.choices[0], ranks=(2,), left=(2, 10))
    weighed = replace(search.layers[0], candidates=search.layers[0].candidates[2:])  # of ranks 3 and 4
    behind = replace(plan, choices=(left, *plan.choices[1:]))
    found = tighter(behind, replace(search, layers=(weighed, *search.layers[1:])), 0.7, "put back")
    ranks = {choice.layer: choice.ranks for choice in found.decomposed}
    assert ranks["0"] in ((2,), (3,), (4,))
    assert ranks["1"] > (1,)
