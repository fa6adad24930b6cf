from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxdecomp.cli.main import cli
from onnxdecomp.errors import ModelError, UsageError
from onnxdecomp.evaluate import verify as verification
from onnxdecomp.evaluate.task_metrics import measure
from onnxdecomp.evaluate.verify import verify
from onnxdecomp.runtime.session import open_session
from tests.builders.graphs import model, saved, value
from tests.builders.models import scores, stateful

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((6, 4))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A model, and the same with 1 % on its weight."""
    original = saved(scores(WEIGHT), tmp_path / "original.onnx")
    return original, saved(scores(WEIGHT * 1.01), tmp_path / "new.onnx")


def test_a_known_error_is_found(pair: tuple[Path, Path]) -> None:
    result = verify(*pair)
    assert result.status == "passed"
    assert result.passed
    assert result.rel_l2 == pytest.approx(0.01, rel=1e-3)
    assert result.worst == pytest.approx(0.01, rel=1e-3)
    assert result.worst_output == "scores"
    (scores,) = result.outputs
    assert scores.cosine == pytest.approx(1)
    assert scores.sqnr_db == pytest.approx(40, abs=0.1)
    assert scores.top1_agreement == 1
    assert [shapes["x"] for shapes in result.shapes] == [(1, 6), (2, 6)]
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["outputs"][0]["name"] == "scores"


def test_the_gate(pair: tuple[Path, Path]) -> None:
    assert verify(*pair, max_error=0.009).status == "failed"
    assert "above 0.009" in str(verify(*pair, max_error=0.009).reason)
    assert verify(*pair, max_error=None).status == "passed"
    same = verify(pair[0], pair[0], max_error=0)
    assert same.status == "passed"
    assert same.to_json()["outputs"][0]["sqnr_db"] is None  # infinite


def test_accuracy_on_labels_in_batches(tmp_path: Path) -> None:
    original = saved(scores(np.eye(4)), tmp_path / "original.onnx")
    swapped = saved(scores(np.eye(4)[[1, 0, 2, 3]]), tmp_path / "new.onnx")
    labels = RNG.integers(0, 4, 50)
    x = np.eye(4, dtype=np.float32)[labels]
    x[:5] = np.roll(x[:5], 1, axis=1)  # the original is wrong on these
    np.savez(tmp_path / "data.npz", x=x, labels=labels)
    for batch in (1, 7, 64):
        result = verify(original, swapped, data=tmp_path / "data.npz", max_error=None, batch=batch)
        assert result.accuracy is not None
        assert result.accuracy.original == pytest.approx(0.9)
        predicted = np.array([1, 0, 2, 3])[x.argmax(1)]
        assert result.accuracy.new == pytest.approx(np.mean(predicted == labels))
        assert result.outputs[0].top1_agreement == pytest.approx(np.mean(predicted == x.argmax(1)))
        assert result.samples == 50


def test_a_batch_that_the_model_does_not_take_is_not_forced_on_it(tmp_path: Path) -> None:
    """The first axis is free on paper, but a Reshape has 1 built in."""
    shape = {"shape": np.array([1, 6], np.int64)}
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    made = model([node], [value("x", ["N", 6])], [value("y", ["M", 6])], shape)
    path = saved(made, tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", x=np.ones((5, 6), np.float32))
    assert verify(path, path, data=tmp_path / "data.npz").samples == 5


def test_the_original_runs_once_on_what_it_is_compared_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether samples can be stacked, and what differs by itself, a few samples tell."""
    node = helper.make_node("Relu", ["x"], ["y"])
    path = saved(model([node], [value("x", ["N", 6])], [value("y", ["N", 6])]), tmp_path / "m.onnx")
    seen: list[int] = []
    for module in (verification, measure):
        ran = module.run

        def counted(session: Any, feed: Any, ran: Any = ran) -> Any:
            seen.append(len(feed["x"]))
            return ran(session, feed)

        monkeypatch.setattr(module, "run", counted)
    np.savez(tmp_path / "data.npz", x=np.ones((64, 6), np.float32))
    assert verify(path, path, data=tmp_path / "data.npz").samples == 64
    assert 128 <= sum(seen) <= 136


def reduced(path: Path, sign: float) -> Path:
    """The mean over the batch of x times a sign, beside x and a constant."""
    nodes = [
        helper.make_node("Mul", ["x", "sign"], ["signed"]),
        helper.make_node("Mul", ["signed", "x"], ["square"]),
        helper.make_node("ReduceMean", ["signed"], ["mean"], axes=[0], keepdims=0),
        helper.make_node("Identity", ["sign"], ["constant"]),
    ]
    outputs = [value("mean", [2]), value("square", ["N", 2]), value("constant", [1])]
    made = model(nodes, [value("x", ["N", 2])], outputs, {"sign": np.array([sign], np.float32)})
    return saved(made, path)


def test_outputs_that_are_reduced_over_the_batch_are_compared_sample_by_sample(tmp_path: Path) -> None:
    """Stacked, samples of both signs would cancel out."""
    x = np.array([[1, 2], [-1, -2], [3, 4], [-3, -4]], np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    original, new = reduced(tmp_path / "a.onnx", 1.0), reduced(tmp_path / "b.onnx", 1.5)
    mean, square, constant = verify(original, new, data=tmp_path / "data.npz", max_error=None).outputs
    assert (mean.values, square.values, constant.values) == (8, 8, 4)
    assert mean.rel_l2 == pytest.approx(0.5)


def test_a_constant_output_does_not_keep_samples_apart(tmp_path: Path) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Identity", ["c"], ["constant"])]
    made = model(
        nodes,
        [value("x", ["N", 2])],
        [value("y", ["N", 2]), value("constant", [1])],
        {"c": np.ones(1, np.float32)},
    )
    path = saved(made, tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", x=np.ones((6, 2), np.float32))
    ran: list[int] = []
    result = verify(path, path, data=tmp_path / "data.npz", advance=partial(ran.append, 1))
    assert (result.samples, len(ran)) == (6, 2)  # one run of each model


def test_outputs_that_do_not_fit_into_memory_are_compared_too(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = verify(*pair)
    monkeypatch.setattr(verification, "_IN_MEMORY", 10)
    assert verify(*pair) == expected


def test_states_and_recorded_data(tmp_path: Path) -> None:
    path = saved(stateful(), tmp_path / "m.onnx")
    data: dict[str, NDArray[Any]] = {
        "frame": np.ones((3, 4), np.float32),
        "state": RNG.standard_normal((3, 2, 1, 4)).astype(np.float32),
        "gain": np.array([1, 2, 3], np.int64),
    }
    np.savez(tmp_path / "data.npz", **data)  # type: ignore[arg-type]
    result = verify(path, path, data=tmp_path / "data.npz")
    assert (result.status, result.samples, result.rel_l2) == ("passed", 3, 0)
    assert [error.name for error in result.outputs] == ["out", "next"]


def test_interface_differences_fail(tmp_path: Path) -> None:
    original = scores(WEIGHT).SerializeToString()
    result = verify(original, scores(WEIGHT, batch=1).SerializeToString())
    assert result.status == "failed"
    assert result.interface == (
        "input 'x' has shape [1, 6] instead of [N, 6]",
        "output 'scores' has shape [1, 4] instead of [N, 4]",
    )
    renamed = scores(WEIGHT)
    renamed.graph.output[0].name = renamed.graph.node[0].output[0] = "y"
    result = verify(original, renamed.SerializeToString())
    assert result.status == "failed"
    assert "output 'scores' is missing" in str(result.reason)
    assert result.outputs == ()


def test_values_that_become_infinite_fail(tmp_path: Path) -> None:
    result = verify(
        scores(WEIGHT).SerializeToString(), scores(WEIGHT * np.inf).SerializeToString(), max_error=None
    )
    assert result.status == "failed"
    assert "not finite" in str(result.reason)


def test_integer_outputs_are_compared_by_equality() -> None:
    def classify(weight: NDArray[Any]) -> bytes:
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["s"]),
            helper.make_node("ArgMax", ["s"], ["class"], axis=1, keepdims=0),
        ]
        outputs = [value("class", ["N"], TensorProto.INT64)]
        weights = {"w": weight.astype(np.float32)}
        return bytes(model(nodes, [value("x", ["N", 4])], outputs, weights).SerializeToString())

    feeds = [{"x": np.eye(4, dtype=np.float32)}]
    result = verify(classify(np.eye(4)), classify(np.eye(4)[[1, 0, 2, 3]]), data=feeds)
    assert result.status == "failed"
    assert result.outputs[0].agreement == 0.5
    assert result.worst == 0.5
    assert verify(classify(np.eye(4)), classify(2 * np.eye(4)), data=feeds).passed


def test_an_original_that_runs_on_nothing_is_skipped() -> None:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    shape = {"shape": np.array([7], np.int64)}
    made = model([node], [value("x", [2, 3])], [value("y", [7])], shape).SerializeToString()
    result = verify(made, made)
    assert result.status == "skipped"
    assert "no random input" in str(result.reason)
    with pytest.raises(UsageError, match="sample 0: the original fails on it"):
        verify(made, made, data=[{"x": np.ones((2, 3), np.float32)}])


def test_a_new_model_that_fails_where_the_original_runs() -> None:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    good, bad = (
        model([node], [value("x", ["N", 6])], [value("y", ["N", 6])], {"shape": np.array(shape, np.int64)})
        for shape in ([-1, 6], [1, 6])
    )
    result = verify(good.SerializeToString(), bad.SerializeToString())
    assert result.status == "failed"
    assert "the new model fails on sample" in str(result.reason)


def test_nonsense() -> None:
    made = scores(WEIGHT).SerializeToString()
    with pytest.raises(UsageError, match="largest error"):
        verify(made, made, max_error=float("nan"))
    with pytest.raises(UsageError, match="number of samples"):
        verify(made, made, samples=0)
    with pytest.raises(UsageError, match="inputs are x"):
        verify(made, made, shapes={"y": (1, 6)})
    with pytest.raises(ModelError):
        verify(made, b"nothing")


def invoke(*arguments: object) -> tuple[int, str]:
    """Exit code and stdout of the command line."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    code = getattr(result.exception, "exit_code", result.exit_code)
    return int(code), result.stdout


def test_command(pair: tuple[Path, Path], tmp_path: Path) -> None:
    code, out = invoke("verify", *pair)
    assert code == 0
    assert "PASSED: worst rel L2 0.01 of scores" in out
    assert "\x1b" not in out
    code, out = invoke("verify", *pair, "--max-error", "0.001", "--input-shape", "x:3x6")
    assert code == 1
    assert "FAILED" in out
    code, out = invoke("verify", *pair, "--json", "-")
    assert code == 0
    assert json.loads(out)["status"] == "passed"
    code, out = invoke("verify", *pair, "--json", tmp_path / "v.json")
    assert "PASSED" in out
    assert json.loads((tmp_path / "v.json").read_text())["samples"] == 4


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--input-shape", "x=3x6"), 2),
        (("--input-shape", "x:3x7"), 2),
        (("--data", "nowhere"), 2),
        (("--max-error", "-1"), 2),
        (("--provider", "gpu"), 2),
    ],
)
def test_wrong_usage(pair: tuple[Path, Path], arguments: tuple[str, ...], code: int) -> None:
    assert invoke("verify", *pair, *arguments)[0] == code


def test_a_missing_model_is_exit_code_3(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert invoke("verify", pair[0], tmp_path / "missing.onnx")[0] == 3


def test_a_streaming_model_binds_by_itself(corpus: Path) -> None:
    """It has a scalar, and a state whose batch is on the second axis."""
    path = corpus / "models" / "published" / "silero_vad.onnx"
    result = verify(path, path, samples=1)
    assert (result.status, result.rel_l2) == ("passed", 0)
    assert len(result.shapes) == 2


def test_values_that_are_not_finite_in_the_original_are_said_to_be_left_out(tmp_path: Path) -> None:
    weight = np.array(WEIGHT)
    weight[0, 0] = np.nan  # one of four columns
    partly = saved(scores(weight), tmp_path / "partly.onnx")
    result = verify(partly, partly)
    assert result.status == "passed"
    assert any("are not finite in the original" in note for note in result.notes)
    nowhere = saved(scores(np.full((6, 4), np.nan)), tmp_path / "nowhere.onnx")
    result = verify(nowhere, nowhere)
    assert (result.status, result.reason) == ("skipped", "no value that the original gives is finite")


def test_both_run_under_the_options_of_the_provider(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[object]()

    def opened(model: Any, *, options: object, **given: Any) -> Any:
        seen.append(options)
        return open_session(model, **given)

    monkeypatch.setattr(verification, "open_session", opened)
    verify(*pair, options={"prefer_nhwc": "1"})
    assert seen == [{"prefer_nhwc": "1"}] * 2
