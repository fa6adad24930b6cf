"""--quantize and nothing else: no layer is decomposed, which a note says; what names a goal searches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxdecomp
from onnxdecomp.workflow.config import CompressConfig
from onnxdecomp.workflow.quantize_alone import NOTE, alone, quantizes_alone
from tests.builders.commands import command, files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """net.onnx, two products whose weights are all but of low rank, and calib.npz: a search would pay."""
    rng = np.random.default_rng(3)

    def weight() -> np.ndarray[Any, Any]:
        low = rng.standard_normal((96, 4)) @ rng.standard_normal((4, 96))
        return (low / 20).astype(np.float32)

    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w1"], ["y"], name="last"),
    ]
    tensors = [numpy_helper.from_array(weight(), name) for name in ("w0", "w1")]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 96]) for name in "xy"]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "net.onnx")
    np.savez(tmp_path / "calib.npz", x=rng.standard_normal((48, 96)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


QUANTIZED: dict[str, Any] = {"quantize": "int8-dynamic", "allow_slower": True, "bench": False}


def test_nothing_else_asked_for_is_quantization_alone(folder: Path) -> None:
    done = onnxdecomp.compress("net.onnx", "out.onnx", calib="calib.npz", **QUANTIZED)
    assert not done.plan.changes
    assert done.record["search"] is None
    assert done.record["passes"]["quantize"]["quantized_layers"] == 2
    assert NOTE in done.notes


def test_a_method_that_is_named_searches(folder: Path) -> None:
    """Also the one that is the default."""
    done = onnxdecomp.compress("net.onnx", "out.onnx", calib="calib.npz", method="auto", **QUANTIZED)
    assert {choice.layer for choice in done.plan.decomposed} == {"first", "last"}
    assert NOTE not in done.notes


@pytest.mark.parametrize(
    "said",
    [
        {"target": "macs=2x"},
        {"rank": "4"},
        {"layers": ("first=keep",)},
        {"method": "svd"},
        {"max_error": 0.1},
        {"metric": "top1"},
        {"exclude": ("last",)},
        {"skip_below": 0.0},
        {"plan": "plan.json"},
        {"finetune": "epochs=1"},
    ],
)
def test_what_says_how_far_to_go(said: dict[str, Any]) -> None:
    config = CompressConfig.of(None, {"quantize": "int8", **said})
    assert not quantizes_alone(config)
    assert alone(config) is config


@pytest.mark.parametrize(
    "said", [{}, {"calib": "calib.npz"}, {"allow_slower": True}, {"block_size": 64}, {"table_bits": "4"}]
)
def test_what_does_not(said: dict[str, Any]) -> None:
    config = CompressConfig.of(None, {"quantize": "int8", **said})
    assert quantizes_alone(config)
    assert alone(config).idle


def test_without_fewer_bits_it_is_a_search_as_ever() -> None:
    assert not quantizes_alone(CompressConfig.of(None, {}))


@pytest.mark.parametrize(
    ("file", "only"),
    [
        ({"quantize": {"kind": "int8-dynamic"}}, True),
        ({"quantize": {"kind": "int8-dynamic"}, "decompose": {"target": "macs=2x"}}, False),
        ({"pipeline": ["simplify", "quantize"], "quantize": {"kind": "fp16"}}, False),
    ],
)
def test_a_pipelines_file_may_say_it(file: dict[str, Any], only: bool) -> None:
    assert quantizes_alone(CompressConfig.of(file, {})) == only


def test_a_dry_run_shows_that_nothing_is_decomposed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = command(capsys, "compress", "net.onnx", "--quantize", "int8-dynamic", "--dry-run")
    assert ran.code == 0
    assert NOTE in " ".join(ran.err.split())
    assert files() == ["calib.npz", "net.onnx"]


def test_the_file_is_called_after_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(capsys, "compress", "net.onnx", "--quantize", "int8-dynamic", "--no-bench").code == 0
    assert files() == ["calib.npz", "net.int8-dynamic.onnx", "net.onnx"]
