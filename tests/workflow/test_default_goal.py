"""The goal where none is named: by what an output is taken for, said to the user, and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxdecomp
from onnxdecomp.quantization.kinds import Kind
from onnxdecomp.workflow.config import CompressConfig
from onnxdecomp.workflow.default_goal import EMBEDDINGS, SCORES, goal_of, goal_of_places, said_of_unnamed
from tests.builders.graphs import model, saved
from tests.workflow.test_targets import OPTIONS

DRAW = np.random.default_rng(0)
TABLE = DRAW.standard_normal((3, 20))
STATES = DRAW.standard_normal((2, 5, 24))
UNIT = TABLE / np.linalg.norm(TABLE, axis=1, keepdims=True)
SHARES = np.exp(TABLE) / np.exp(TABLE).sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("name", "output", "given", "metric"),
    [
        ("y", TABLE, {}, None),
        ("logits", TABLE, {}, "kl"),
        ("class_scores", TABLE, {}, "kl"),
        ("y", SHARES, {}, "kl"),
        ("y", TABLE, {"labels": np.array([0, 19, 3])}, "kl"),
        ("y", TABLE, {"labels": np.array([0, 20, 3])}, None),
        ("y", UNIT, {}, "spearman"),
        ("sentence_embedding", TABLE, {}, "spearman"),
        ("pooler_output", TABLE[:, :4], {}, None),
        ("last_hidden_state", STATES, {"masked": True}, "spearman"),
        ("last_hidden_state", STATES, {}, None),
        ("logits", STATES, {"masked": True}, "kl"),
        ("y", np.zeros((1, 2, 5000)), {"masked": True}, "kl"),
        ("y", SHARES[None], {}, "kl"),
        ("y", TABLE[:, :1], {}, None),
        ("image", np.zeros((1, 3, 8, 8)), {}, None),
        ("logits", np.full((3, 4), np.nan), {}, None),
    ],
)
def test_what_an_output_is_taken_for(
    name: str, output: Any, given: dict[str, Any], metric: str | None
) -> None:
    goal = goal_of(name, [output, output], **{"masked": False, **given})
    if metric is None:
        assert goal is None
        return
    assert goal is not None
    assert (goal.metric, goal.target) == (metric, SCORES if metric == "kl" else EMBEDDINGS)
    assert repr(name) in goal.note
    assert "--metric" in goal.note
    assert CompressConfig.of(None, {"metric": goal.metric, "target": goal.target}).target == goal.target


def classifier(path: Path, output: str = "logits") -> Path:
    """x [N, 24] -> two layers of 64 units that have little but a rank of 6 -> scores of 8 classes."""
    draw = np.random.default_rng(3)

    def low(rows: int, columns: int) -> Any:
        made = draw.standard_normal((rows, 6)) @ draw.standard_normal((6, columns))
        return ((made + 0.3 * draw.standard_normal(made.shape)) / rows).astype(np.float32)

    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="f1"),
        helper.make_node("Relu", ["a"], ["b"], name="r"),
        helper.make_node("MatMul", ["b", "w2"], ["c"], name="f2"),
        helper.make_node("Relu", ["c"], ["d"], name="s"),
        helper.make_node("MatMul", ["d", "w3"], [output], name="f3"),
    ]
    weights = {"w1": low(24, 64), "w2": low(64, 64), "w3": 30 * low(64, 8)}
    return saved(model(nodes, {"x": ["N", 24]}, {output: ["N", 8]}, weights), path)


@pytest.fixture
def calib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    return {"x": np.random.default_rng(1).standard_normal((64, 24)).astype(np.float32)}


QUICK: dict[str, Any] = {**OPTIONS, "method": "svd"}


def test_a_classifier_keeps_its_distribution(tmp_path: Path, calib: dict[str, Any]) -> None:
    found = onnxdecomp.compress(classifier(tmp_path / "net.onnx"), calib=calib, **QUICK)
    assert found.plan.decomposed
    request = found.record["run"]["request"]
    assert (request["metric"], request["target"]) == ("kl", SCORES)
    assert any("'logits' is taken for scores of 8 classes" in note for note in found.notes)
    assert found.record["verify"]["metric"]["new"] < 0.05
    (target,) = found.record["targets"]
    assert target["quantity"] == "metric"
    assert target["reached"] == found.record["verify"]["metric"]["new"]


def encoder(path: Path) -> Path:
    """x [N, L, 24], attention_mask [N, L] -> two layers of little but rank 6 -> states of 32 features."""
    draw = np.random.default_rng(5)

    def low(rows: int, columns: int) -> Any:
        made = draw.standard_normal((rows, 6)) @ draw.standard_normal((6, columns))
        return ((made + 0.2 * draw.standard_normal(made.shape)) / rows).astype(np.float32)

    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="f1"),
        helper.make_node("Relu", ["a"], ["b"], name="r"),
        helper.make_node("MatMul", ["b", "w2"], ["c"], name="f2"),
        helper.make_node("Cast", ["attention_mask"], ["real"], name="cast", to=1),
        helper.make_node("Unsqueeze", ["real", "axis"], ["each"], name="unsqueeze"),
        helper.make_node("Mul", ["c", "each"], ["last_hidden_state"], name="mask"),
    ]
    weights = {"w1": low(24, 64), "w2": low(64, 32), "axis": np.array([2])}
    made = model(nodes, {"x": ["N", "L", 24]}, {"last_hidden_state": ["N", "L", 32]}, weights)
    mask = helper.make_tensor_value_info("attention_mask", onnx.TensorProto.INT64, ["N", "L"])
    made.graph.input.append(mask)
    return saved(made, path)


@pytest.mark.parametrize("quantize", ["none", "int8-dynamic"])
def test_an_encoder_keeps_the_order_of_its_similarities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantize: Kind
) -> None:
    """Decomposed, and in int8 as well where a method is named; with --quantize alone no goal is needed."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((64, 6, 24)).astype(np.float32)
    calib: dict[str, Any] = {
        "x": x,
        "attention_mask": (np.arange(6) < rng.integers(2, 7, (64, 1))).astype(np.int64),
    }
    source = encoder(tmp_path / "net.onnx")
    found = onnxdecomp.compress(source, calib=calib, quantize=quantize, **QUICK)
    assert found.plan.decomposed
    request = found.record["run"]["request"]
    assert (request["metric"], request["target"]) == ("spearman", EMBEDDINGS)
    assert any("embeddings of 32 features at each position" in note for note in found.notes)
    assert found.record["verify"]["metric"]["new"] > 0.9
    if quantize != "none":
        assert found.record["passes"]["quantize"]["quantized_layers"] >= 2
        alone = onnxdecomp.compress(source, calib=calib, quantize=quantize, bench=False, allow_slower=True)
        assert not alone.plan.decomposed
        assert alone.record["run"]["request"]["target"] is None
        assert alone.record["passes"]["quantize"]["quantized_layers"] == 2


@pytest.mark.parametrize(
    "given",
    [{"max_error": 0.1}, {"target": "macs=1.5x"}, {"rank": "0.5"}, {"verify": False}, {"calib": None}],
)
def test_what_is_named_is_not_assumed(tmp_path: Path, calib: dict[str, Any], given: dict[str, Any]) -> None:
    asked = {"calib": calib, **QUICK, **given}
    found = onnxdecomp.compress(classifier(tmp_path / "net.onnx"), **asked)
    assert found.record["run"]["request"]["metric"] is None
    assert not any("is taken for scores" in note for note in found.notes)


def test_a_denoiser_is_judged_by_its_correction(tmp_path: Path, calib: dict[str, Any]) -> None:
    """The output is nearly the input: an error of 0.05 of it is more than half of what the network does."""
    draw = np.random.default_rng(3)
    low = (draw.standard_normal((24, 12)) @ draw.standard_normal((12, 24)) / 1000).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["noise"], name="f"),
        helper.make_node("Sub", ["x", "noise"], ["y"], name="s"),
    ]
    source = saved(model(nodes, {"x": ["N", 24]}, {"y": ["N", 24]}, {"w": low}), tmp_path / "net.onnx")
    correction = np.linalg.norm(calib["x"] @ low) / np.linalg.norm(calib["x"] - calib["x"] @ low)
    assert correction < 0.2
    found = onnxdecomp.compress(source, calib=calib, **{**QUICK, "skip_below": 0})
    target = found.record["run"]["request"]["target"]
    assert float(target.removeprefix("error=")) == pytest.approx(0.05 * correction, rel=0.2)
    assert any("the input with a correction" in note for note in found.notes)
    assert found.record["verify"]["rel_l2"] < 0.06 * correction


@pytest.mark.parametrize(
    ("shapes", "taken"),
    [
        ({"scores": (1, 300, 2), "boxes": (1, 300, 4)}, True),
        ({"scores": (1, 300, 2), "boxes": (1, 40, 4)}, False),  # of each kind there must be two
        ({"scores": (1, 20, 2), "boxes": (1, 20, 4)}, False),
        ({"tags": (1, 224, 9), "words": (1, 224, 30)}, False),  # as many as a side of the input
        ({"hidden": (1, 300, 768), "more": (1, 300, 768)}, False),
        ({"logits": (1, 80), "state": (1, 300, 64)}, False),
        ({"output0": (1, 84, 8400)}, True),
        ({"output": (1, 25200, 85)}, True),
        ({"output": (1, 25200, 4)}, False),
        ({"features": (1, 768, 1024)}, False),
        ({"mask": (1, 21, 64, 64)}, False),
    ],
)
def test_outputs_of_many_places_are_a_detectors(shapes: dict[str, tuple[int, ...]], taken: bool) -> None:
    outputs = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    goal = goal_of_places(outputs, {"image": np.zeros((1, 3, 224, 224), np.float32)})
    assert (goal is not None) == taken
    assert goal is None or (goal.metric, goal.target) == (None, "error=0.01")


def test_a_detector_is_asked_for_more(tmp_path: Path, calib: dict[str, Any]) -> None:
    draw = np.random.default_rng(4)
    weights = {f"w{k}": draw.standard_normal((24, 150 * k)).astype(np.float32) for k in (2, 4)}
    shapes = {f"s{k}": np.array([-1, 150, k]) for k in (2, 4)}
    nodes = []
    for k, name in ((2, "scores"), (4, "boxes")):
        nodes.append(helper.make_node("MatMul", ["x", f"w{k}"], [f"flat{k}"], name=f"m{k}"))
        nodes.append(helper.make_node("Reshape", [f"flat{k}", f"s{k}"], [name], name=f"r{k}"))
    source = model(nodes, {"x": ["N", 24]}, ["scores", "boxes"], {**weights, **shapes})
    found = onnxdecomp.compress(saved(source, tmp_path / "net.onnx"), calib=calib, **QUICK)
    assert found.record["run"]["request"]["target"] == "error=0.01"
    assert any("taken for a detector's, of 150 places" in note for note in found.notes)


def test_an_output_that_says_nothing_goes_by_its_numbers(tmp_path: Path, calib: dict[str, Any]) -> None:
    few = {"x": calib["x"][:16]}
    for name, given in (("y", calib), ("logits", few)):
        found = onnxdecomp.compress(classifier(tmp_path / f"{name}.onnx", name), calib=given, **QUICK)
        assert found.record["run"]["request"]["target"] == "error=0.05"


def test_what_is_sought_is_told_where_nobody_has_named_it() -> None:
    (note,) = said_of_unnamed(CompressConfig(calib="inputs.npz"))
    assert "at most 0.05 of their norm, as by --target error=0.05" in note
    named: list[dict[str, Any]] = [
        {"target": "error=0.05"},
        {"target": "macs=2x"},
        {"rank": "0.5"},
        {"max_error": 0.05},
        {"metric": "kl"},
    ]
    assert not any(said_of_unnamed(CompressConfig(calib="inputs.npz", **options)) for options in named)
