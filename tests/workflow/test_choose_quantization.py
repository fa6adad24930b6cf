"""--quantize int8: which kind is taken, by what was measured of each, and what is said where none pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxdecomp
from onnxdecomp.errors import GateError, ModelError, UsageError
from onnxdecomp.graph.load import load
from onnxdecomp.quantization import int8
from onnxdecomp.runtime.timing import Ratio
from onnxdecomp.search import latency_model
from onnxdecomp.workflow import choose_quantization, compress
from tests.builders.commands import command, files
from tests.workflow.test_latency_guard import FASTER, SLOWER, Fake, result

STATIC, DYNAMIC, BLOCKS = "int8-static", "int8-dynamic", "int8-block"
ALONE: dict[str, Any] = {"simplify": "none", "method": "none", "quantize": "int8"}


def about(value: float) -> Ratio:
    return Ratio(value, value * 0.99, value * 1.01, 0.95)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """net.onnx, of two products of matrices, and calib.npz, alone in the folder that the test runs in."""
    rng = np.random.default_rng(5)
    weights = {f"w{k}": rng.standard_normal((64, 64)).astype(np.float32) / 8 for k in range(2)}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w1"], ["y"], name="last"),
    ]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 64]) for name in "xy"]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "net.onnx")
    np.savez(tmp_path / "calib.npz", x=rng.standard_normal((16, 64)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def timed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives the kinds' times over the original's, in their order; all else is faster than before."""

    def of(*kinds: float, layers: float = 0.5, alone: Ratio = FASTER) -> list[int]:
        counts: list[int] = []

        def every(meter: Fake, models: Sequence[Path]) -> list[Ratio]:
            counts.append(len(models))
            return [about(value) for value in kinds]

        def made(*given: Any, **options: Any) -> Fake:
            return replace(Fake(*given, **options), ratios=(alone,), looks=[])

        monkeypatch.setattr(compress, "LatencyMeter", made)
        monkeypatch.setattr(Fake, "time", lambda self, new, decide: result(FASTER))
        monkeypatch.setattr(Fake, "time_all", every, raising=False)
        monkeypatch.setattr(latency_model, "ratios", lambda asked, *_, **__: [layers] * len(asked))
        return counts

    return of


def convolutions(rng: np.random.Generator) -> onnx.ModelProto:
    """A convolution before a smaller product of matrices."""
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["h"], name="conv", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["h"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("MatMul", ["f", "w"], ["y"], name="fc"),
    ]
    shapes = {"k": (8, 8, 3, 3), "w": (8, 4)}
    tensors = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 8, 6, 6])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph(nodes, "convs", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def kinds_of(done: onnxdecomp.Result) -> dict[str, Any]:
    return {entry["kind"]: entry for entry in done.record["passes"]["quantize"].get("candidates", ())}


def taken(done: onnxdecomp.Result) -> str:
    return str(done.record["passes"]["quantize"]["kind"])


@pytest.mark.parametrize(
    ("times", "kind"),
    [((0.9, 0.5, 0.7), DYNAMIC), ((0.4, 0.5, 0.7), STATIC), ((0.9, 0.8, 0.6), BLOCKS)],
)
def test_the_fastest_is_taken(times: tuple[float, ...], kind: str, timed: Any) -> None:
    timed(*times)
    done = onnxdecomp.compress("net.onnx", "out.onnx", calib="calib.npz", **ALONE)
    assert taken(done) == kind
    found = kinds_of(done)
    assert [entry["chosen"] for entry in found.values()] == [name == kind for name in found]
    assert [entry["ratio"]["value"] for entry in found.values()] == list(times)
    assert [name for name, entry in found.items() if entry["error"] is not None] == [kind]
    (note,) = [line for line in done.notes if "is taken for int8" in line]
    assert note.startswith(f"{kind} is taken for int8: {min(times):.2f}x the original's time, an error of ")
    assert all(
        f"{name} {value:.2f}x" in note for name, value in zip(found, times, strict=True) if name != kind
    )


def test_what_is_as_fast_is_told_apart_by_its_error(timed: Any) -> None:
    """Blocks lose least here; ranges are not even made, as they are slower."""
    timed(0.9, 0.500, 0.505)
    done = onnxdecomp.compress("net.onnx", calib="calib.npz", **ALONE)
    assert taken(done) == BLOCKS
    found = kinds_of(done)
    assert found[BLOCKS]["error"] < found[DYNAMIC]["error"]
    assert found[STATIC]["error"] is None


def test_the_fastest_is_compared_by_the_time_of_what_it_has_made(
    timed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(kind: Any, meter: Any, *, slower: bool) -> Any:
        return replace(kind, ratio=about(0.55)) if kind.name == STATIC else kind

    monkeypatch.setattr(choose_quantization, "_retimed", made)
    timed(0.4, 0.56, 0.9)
    found = kinds_of(done := onnxdecomp.compress("net.onnx", "out.onnx", calib="calib.npz", **ALONE))
    assert found[STATIC]["ratio"]["value"] == 0.55
    assert found[DYNAMIC]["error"] < found[STATIC]["error"]
    assert taken(done) == DYNAMIC


def test_ranges_are_made_by_the_middle_of_their_interval_others_where_it_overlaps(
    timed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine intervals are wide, and ranges take many times as long to find."""
    timed(0.55, 0.50, 0.58)
    wide = [Ratio(value, value - 0.1, value + 0.1, 0.95) for value in (0.55, 0.50, 0.58)]
    monkeypatch.setattr(Fake, "time_all", lambda meter, models: wide, raising=False)
    done = onnxdecomp.compress("net.onnx", calib="calib.npz", **ALONE)
    found = kinds_of(done)
    assert (taken(done), found[STATIC]["error"]) == (BLOCKS, None)
    assert found[BLOCKS]["error"] < found[DYNAMIC]["error"]


def test_a_slower_kind_is_taken_where_the_fastest_loses_too_much(timed: Any) -> None:
    timed(0.5, 0.5, 0.9)
    free = onnxdecomp.compress("net.onnx", calib="calib.npz", **ALONE)
    limit = 0.9 * min(kinds_of(free)[name]["error"] for name in (STATIC, DYNAMIC))
    held = onnxdecomp.compress("net.onnx", calib="calib.npz", max_error=limit, **ALONE)
    assert (taken(free), taken(held)) == (DYNAMIC, BLOCKS)


def test_a_slower_kind_is_taken_where_the_fastest_spoils_the_outputs(
    timed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(0.5, 0.5, 0.9)
    free = onnxdecomp.compress("net.onnx", calib="calib.npz", **ALONE)
    spoilt = 0.9 * min(kinds_of(free)[name]["error"] for name in (STATIC, DYNAMIC))
    monkeypatch.setattr(choose_quantization, "_SPOILT", spoilt)
    assert taken(onnxdecomp.compress("net.onnx", calib="calib.npz", **ALONE)) == BLOCKS
    monkeypatch.setattr(choose_quantization, "_SPOILT", 0.0)  # all do: the fastest is as good as any
    assert taken(onnxdecomp.compress("net.onnx", calib="calib.npz", **ALONE)) == DYNAMIC


def test_without_calibration_no_ranges_are_made(timed: Any) -> None:
    counts = timed(0.5, 0.6)
    done = onnxdecomp.compress("net.onnx", **ALONE)
    assert list(kinds_of(done)) == [DYNAMIC, BLOCKS]
    assert counts == [2]


@pytest.mark.parametrize("target", [{}, {"method": "svd", "target": "macs=2x", "allow_slower": False}])
def test_where_none_pays_the_original_comes_back_with_the_reason(target: dict[str, Any], timed: Any) -> None:
    timed(1.5, 1.2, 1.3, alone=SLOWER)
    done = onnxdecomp.compress("net.onnx", "out.onnx", calib="calib.npz", **{**ALONE, **target})
    (note,) = [line for line in done.notes if line.startswith("not quantized, for no kind of int8 is faster")]
    assert all(f"{kind} {value:.2f}x" in note for kind, value in ((STATIC, 1.5), (DYNAMIC, 1.2)))
    assert not done.changed
    assert Path("out.onnx").read_bytes() == Path("net.onnx").read_bytes()


def test_where_none_pays_without_inputs_the_kind_that_needs_some_is_named(timed: Any) -> None:
    timed(1.5, 1.2, alone=SLOWER)
    done = onnxdecomp.compress("net.onnx", **ALONE)
    (note,) = [line for line in done.notes if line.startswith("not quantized, for no kind of int8 is faster")]
    assert note.endswith(
        f"{STATIC}, the kind for convolutions, takes its ranges from inputs: give some with --calib"
    )


def test_slower_ones_are_taken_where_they_may_be(timed: Any) -> None:
    timed(1.5, 1.2, 1.3)
    done = onnxdecomp.compress("net.onnx", calib="calib.npz", allow_slower=True, **ALONE)
    assert taken(done) == DYNAMIC


def test_layers_that_are_slower_so_stay_and_are_named(timed: Any) -> None:
    """With all of them slower there is nothing to choose but ranges."""
    timed(0.5, layers=1.5)
    done = onnxdecomp.compress("net.onnx", calib="calib.npz", **ALONE)
    assert taken(done) == STATIC
    assert "faster" in kinds_of(done)[DYNAMIC]["reason"]
    one = onnxdecomp.compress("net.onnx", "out.onnx", **{**ALONE, "quantize": "int8-dynamic"})
    assert not one.changed
    assert any("not quantized, for they are slower so: first, last" in note for note in one.notes)


def test_what_cannot_be_made_is_passed_over(timed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ModelError("the quantizer fails on this")

    timed(0.4, 0.5, 0.6)
    monkeypatch.setattr("onnxdecomp.quantization.guard.int8", broken)
    done = onnxdecomp.compress("net.onnx", "out.onnx", calib="calib.npz", **ALONE)
    assert taken(done) == DYNAMIC
    assert "the quantizer fails on this" in kinds_of(done)[STATIC]["reason"]


def test_a_kind_that_cannot_be_timed_is_passed_over(timed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ModelError("no such ranges")

    timed(0.5, 0.6)
    monkeypatch.setattr(int8, "rough", broken)
    done = onnxdecomp.compress("net.onnx", calib="calib.npz", **ALONE)
    assert taken(done) == DYNAMIC
    assert kinds_of(done)[STATIC]["ratio"] is None


@pytest.mark.parametrize("kind", [DYNAMIC, BLOCKS, "int4"])
def test_a_kind_that_is_named_needs_no_choice(kind: str, timed: Any) -> None:
    counts = timed()
    done = onnxdecomp.compress("net.onnx", "out.onnx", **{**ALONE, "quantize": kind})
    assert counts == []
    assert taken(done) == kind
    assert done.record["passes"]["quantize"]["quantized_layers"] == 2
    assert kinds_of(done) == {}
    with pytest.raises(GateError):
        onnxdecomp.compress(
            "net.onnx", "no.onnx", max_error=1e-6, **{**ALONE, "quantize": kind, "bench": False}
        )
    assert not Path("no.onnx").exists()


def test_without_timing_the_usual_kind_is_taken(timed: Any) -> None:
    """Activations are rounded as they come for products of matrices, by ranges for convolutions."""
    counts = timed()
    assert taken(onnxdecomp.compress("net.onnx", bench=False, **ALONE)) == DYNAMIC
    assert taken(onnxdecomp.compress("net.onnx", calib="calib.npz", bench=False, **ALONE)) == DYNAMIC
    rng = np.random.default_rng(6)
    onnx.save(convolutions(rng), "convs.onnx")
    np.savez("pictures.npz", x=rng.standard_normal((8, 8, 6, 6)).astype(np.float32))
    assert taken(onnxdecomp.compress("convs.onnx", calib="pictures.npz", bench=False, **ALONE)) == STATIC
    assert counts == []


def test_a_search_knows_the_kind(timed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its chains are timed with the kernels that were chosen, block size and all."""
    precisions: list[str] = []
    time = latency_model.Stopwatch.time

    def remembered(watch: latency_model.Stopwatch, *given: Any) -> Any:
        precisions.append(watch.precision)
        return time(watch, *given)

    monkeypatch.setattr(latency_model.Stopwatch, "time", remembered)
    timed(0.9, 0.8, 0.5)
    options: dict[str, Any] = {**ALONE, "method": "svd", "target": "latency=1.01x", "block_size": 16}
    with pytest.raises(UsageError, match="out of reach") as problem:
        onnxdecomp.compress("net.onnx", calib="calib.npz", **{**options, "target": "latency=1000x"})
    assert "latency" in str(problem.value)
    assert precisions == ["int8-block:16"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("--method", "none"), "--quantize"),
        (("--method", "none", "--quantize", "int8", "--rank", "4"), "--rank"),
        (("--method", "none", "--quantize", "int8", "--target", "macs=2x"), "--target"),
        (("--quantize", "int4", "--block-size", "24", "--rank", "4"), "--block-size"),
        (("--quantize", "int8-static", "--method", "none"), "--calib"),
    ],
)
def test_what_does_not_go_together(
    given: tuple[str, ...], named: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(capsys, "compress", "net.onnx", *given).is_error(2, named)
    assert files() == ["calib.npz", "net.onnx"]


def test_the_file_is_called_after_what_was_asked(timed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    timed(0.5, 0.6)
    assert command(capsys, "compress", "net.onnx", "--method", "none", "--quantize", "int8").code == 0
    assert files() == ["calib.npz", "net.int8.onnx", "net.onnx"]


@pytest.mark.parametrize("kind", [DYNAMIC, "int4"])
def test_weights_beside_the_file_stay_beside_it(kind: str, timed: Any) -> None:
    timed()
    onnx.save(
        onnx.load("net.onnx"),
        "net.onnx",
        save_as_external_data=True,
        location="net.onnx.data",
        size_threshold=0,
    )
    onnxdecomp.compress("net.onnx", "out.onnx", **{**ALONE, "quantize": kind})
    assert files() == ["calib.npz", "net.onnx", "net.onnx.data", "out.onnx", "out.onnx.data"]
    for name in ("net.onnx", "net.onnx.data"):
        Path(name).unlink()
    assert onnxdecomp.verify("out.onnx", "out.onnx").passed


@pytest.mark.parametrize(("precision", "kept"), [(DYNAMIC, {"y", "h"}), ("int4", set()), (STATIC, set())])
def test_four_bits_may_be_a_little_slower(precision: str, kept: set[str], timed: Any) -> None:
    """They are for the file; what is slower by as much in 8 bits stays in floating point."""
    timed(layers=1.3)
    watch = latency_model.Stopwatch(Path("net.onnx"), {"x": np.zeros((1, 64), np.float32)})
    assert watch.slower(load("net.onnx"), precision) == kept
