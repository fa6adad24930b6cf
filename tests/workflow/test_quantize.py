"""--quantize: what compress promises of a quantized result, and what it says where it cannot keep it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxdecomp_passes.decompose import Decompose
from onnxdecomp_passes.quantize import Quantize

import onnxdecomp
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.errors import UsageError
from onnxdecomp.evaluate.task_metrics.classes import Top1
from onnxdecomp.evaluate.task_metrics.measure import Task
from onnxdecomp.pipeline.base import PassContext
from onnxdecomp.runtime.timing import Ratio
from onnxdecomp.workflow import compress
from onnxdecomp.workflow.config import CompressConfig
from onnxdecomp.workflow.context import RunContext, pass_context
from tests.builders.commands import Outcome, command, files, process
from tests.workflow.test_latency_guard import FASTER, SLOWER, Fake, result
from tests.workflow.test_targets import filled

Run = Callable[..., Outcome]

INT8 = ("--quantize", "int8-static", "--calib", "calib.npz")
QUICK = ("--simplify", "none", "--no-bench", "--method", "tucker", "--rank", "4")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """net.onnx and calib.npz, alone in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    return filled(tmp_path)


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs compress on net.onnx with ranks given and without timing."""
    return lambda *given: command(capsys, "compress", "net.onnx", *QUICK, *given)


def op_types(path: str | Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_int8_after_the_decomposition(run: Run) -> None:
    done = run(*INT8, "-o", "out.onnx", "--json", "run.json", "--max-error", "0.6")
    assert done.code == 0
    (note,) = done.err.splitlines()
    assert "on the calibration inputs, which the numbers were fitted to" in note
    record = json.loads(Path("run.json").read_text())
    found = op_types("out.onnx")
    assert found["Conv"] == 6
    assert found["QuantizeLinear"] > 6
    assert record["passes"]["quantize"]["kind"] == "int8-static"
    assert record["passes"]["quantize"]["samples"] == 40
    assert record["verify"]["interface"] == []
    assert 0 < record["verify"]["rel_l2"] < 0.6
    assert [layer["lowering"] < 1e-5 for layer in record["layers"]] == [True, True]
    written = onnx.load("out.onnx")
    assert {"pkg.onnxdecomp.quantize": "int8-static", "pkg.onnxdecomp.methods": "tucker"}.items() <= {
        entry.key: entry.value for entry in written.metadata_props
    }.items()
    assert written.producer_name == onnx.load("net.onnx").producer_name
    provenance = [n for n in written.graph.node if any("onnxdecomp.layer" in e.key for e in n.metadata_props)]
    assert {node.op_type for node in provenance} == {"Conv"}
    assert len(provenance) == 6


def test_fp16_needs_no_calibration(run: Run) -> None:
    done = run("--quantize", "fp16", "-o", "out.onnx", "--json", "run.json")
    assert (done.code, done.err) == (0, "")
    facts = json.loads(Path("run.json").read_text())["passes"]["quantize"]
    assert 0 < facts["error"] < 0.01
    assert (facts["kept"], len(facts["tried"])) == ([], 1)
    graph = onnx.load("out.onnx").graph
    assert {tensor.data_type for tensor in graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {
        onnx.TensorProto.FLOAT
    }


def test_what_float16_cannot_hold_stays_and_is_named(folder: Path) -> None:
    model = onnx.load("net.onnx")
    read = model.graph.node[-1].input[1]
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == read)
    array = onnx.numpy_helper.to_array(tensor) * 1e7
    tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype("float32"), tensor.name))
    onnx.save(model, "large.onnx")
    done = onnxdecomp.compress("large.onnx", "out.onnx", quantize="fp16", exclude=("*",), bench=False)
    facts = done.record["passes"]["quantize"]
    assert facts["kept"]
    assert any(facts["kept"][0] in note and "in float32" in note for note in done.notes)
    assert done.verification is not None
    assert done.verification.rel_l2 is not None
    assert done.verification.rel_l2 < 0.01
    kinds = {tensor.data_type for tensor in onnx.load("out.onnx").graph.initializer}
    assert kinds == {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}


def test_int8_without_calibration_is_refused(run: Run) -> None:
    run("--quantize", "int8-static").is_error(2, "--calib")
    assert files() == ["calib.npz", "net.onnx"]


def test_a_pipeline_without_the_pass_is_refused(run: Run) -> None:
    Path("own.toml").write_text('pipeline = ["decompose", "check"]\n')
    run(*INT8, "--config", "own.toml").is_error(2, "quantize pass")


def test_the_configuration_says_it_as_well(folder: Path) -> None:
    config = {"quantize": {"kind": "int8", "exclude": ["c1*"], "samples": 8, "weight_bits": "7"}}
    done = onnxdecomp.compress(
        "net.onnx", config=config, simplify="none", rank="4", calib="calib.npz", bench=False
    )
    facts = done.record["passes"]["quantize"]
    assert (facts["samples"], facts["weight_bits"]) == (8, 7)
    assert done.changed


def test_the_file_says_what_it_is(run: Run) -> None:
    assert run(*INT8).code == 0
    assert run("--quantize", "fp16").code == 0
    assert files() == ["calib.npz", "net.onnx", "net.tucker.fp16.onnx", "net.tucker.int8-static.onnx"]


def test_a_gate_holds_for_the_quantized_model(run: Run) -> None:
    assert run("-o", "float.onnx", "--rank", "1.0", "--must-save", "none", "--max-error", "1e-4").code == 0
    failed = run("-o", "int8.onnx", "--rank", "1.0", "--must-save", "none", "--max-error", "1e-4", *INT8)
    failed.is_error(1, "verification failed")
    assert not Path("int8.onnx").exists()


def test_the_same_bytes_whatever_the_order_of_sets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        done = process("compress", "net.onnx", *QUICK, *INT8, "-o", f"{seed}.onnx", cwd=folder)
        assert done.code == 0, done.err
    assert Path("1.onnx").read_bytes() == Path("2.onnx").read_bytes()


def test_an_older_opset_is_raised_and_named(folder: Path) -> None:
    model = onnx.load("net.onnx")
    model.opset_import[0].version = 11
    onnx.save(model, "old.onnx")
    done = onnxdecomp.compress(
        "old.onnx",
        "new.onnx",
        simplify="none",
        rank="4",
        quantize="int8-static",
        calib="calib.npz",
        bench=False,
    )
    assert "quantize: int8-static needs opset 13: raised from 11" in done.notes
    assert onnx.load("new.onnx").opset_import[0].version == 13
    assert done.verification is not None
    assert done.verification.interface == ()


def test_a_target_is_one_for_the_quantized_model(folder: Path) -> None:
    options: dict[str, Any] = {"simplify": "none", "method": "tucker", "calib": "calib.npz", "bench": False}
    whole = onnxdecomp.compress("net.onnx", target="error=0.1", quantize="int8-static", **options)
    assert whole.plan.decomposed
    assert whole.verification is not None
    assert whole.verification.rel_l2 is not None
    assert whole.verification.rel_l2 < 0.1
    with pytest.raises(UsageError, match=r"out of reach: without any decomposition .* error=0\.0"):
        onnxdecomp.compress("net.onnx", target="error=0.0005", quantize="int8-static", **options)


def timed_as(monkeypatch: pytest.MonkeyPatch, *ratios: Ratio) -> None:
    """The timings of compress give these ratios in turn, then the last one."""
    looks: list[Any] = []

    def made(*given: Any, **options: Any) -> Fake:
        return replace(Fake(*given, **options), ratios=ratios, looks=looks)

    monkeypatch.setattr(compress, "LatencyMeter", made)
    monkeypatch.setattr(Fake, "time", lambda self, new, decide: result(FASTER))


@pytest.mark.parametrize(
    ("ratios", "layers", "quantized", "note"),
    [
        ((FASTER, FASTER), ["c1", "c2"], True, None),
        ((FASTER, SLOWER, FASTER), ["c2"], True, "the time of the original quantized"),
        ((FASTER, SLOWER), [], True, "the time of the original quantized"),
        (
            (SLOWER, FASTER),
            ["c1", "c2"],
            False,
            "not quantized, for int8-static alone takes 1.20x the original's",
        ),
        ((SLOWER, SLOWER), [], False, "not quantized, for int8-static alone takes 1.20x the original's"),
    ],
)
def test_what_does_not_pay_is_undone(
    ratios: tuple[Ratio, ...],
    layers: list[str],
    quantized: bool,
    note: str | None,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first timing is of quantization alone, the others of layers, against what they would replace."""
    timed_as(monkeypatch, *ratios)
    done = onnxdecomp.compress(
        "net.onnx",
        "out.onnx",
        simplify="none",
        method="tucker",
        rank="4",
        quantize="int8-static",
        calib="calib.npz",
        allow_slower=False,
    )
    assert [choice.layer for choice in done.plan.decomposed] == layers
    assert ("QuantizeLinear" in op_types("out.onnx")) == quantized
    assert done.changed == (quantized or bool(layers))
    assert (done.latency is not None) == done.changed
    assert note is None or any(note in line for line in done.notes)
    gain = done.record["passes"].get("quantize", {}).get("gain")
    assert (gain is not None) == (quantized and bool(layers))


def test_a_plan_for_integer_kernels_is_not_that_of_the_unquantized_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where quantization is undone, the ranks are searched for anew."""
    timed_as(monkeypatch, SLOWER, FASTER)
    planned: list[bool] = []
    plan = Decompose.plan

    def remembered(stage: Decompose, model: ir.Model, context: PassContext) -> Any:
        planned.append(context.quantization is not None)
        return plan(stage, model, context)

    monkeypatch.setattr(Decompose, "plan", remembered)
    done = onnxdecomp.compress(
        "net.onnx",
        "out.onnx",
        simplify="none",
        method="tucker",
        target="macs=1.5x",
        quantize="int8-static",
        calib="calib.npz",
        allow_slower=False,
    )
    # With integer kernels, for quantization alone (a plan with nothing in it), and without.
    assert planned == [True, True, False]
    assert done.plan.decomposed
    assert done.record["search"] is not None


def test_without_timing_quantization_stays(folder: Path) -> None:
    done = onnxdecomp.compress(
        "net.onnx",
        simplify="none",
        rank="4",
        exclude=("*",),
        quantize="int8-static",
        calib="calib.npz",
        bench=False,
        fail_if_unchanged=True,
    )
    assert done.changed
    assert not done.plan.decomposed


def test_an_initializer_that_is_an_output_stays_as_it_is(folder: Path) -> None:
    model = onnx.load("net.onnx")
    table = np.arange(6, dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(table, "table"))
    model.graph.output.append(helper.make_tensor_value_info("table", TensorProto.FLOAT, [6]))
    onnx.save(model, "net.onnx")
    found = onnxdecomp.compress("net.onnx", "out.onnx", rank="2", quantize="fp16", bench=False)
    assert found.verification is not None
    session = ort.InferenceSession("out.onnx", providers=["CPUExecutionProvider"])
    (found_table,) = session.run(["table"], {"x": np.zeros((1, 8, 8, 8), np.float32)})
    np.testing.assert_array_equal(found_table, table)


def test_what_is_asked_reaches_the_quantizer_and_what_it_finds_the_next_run() -> None:
    data = Feeds(({"x": np.zeros((1, 4), np.float32)},) * 2, "test", labels=np.zeros(2, np.int64))
    asked = {"max_error": 0.2, "samples": 1, "bench": False}
    config = CompressConfig.of(None, asked)
    task = Task(Top1(), Path("net.onnx"), data.first(1))
    run = RunContext(
        *(config, Path("net.onnx"), lambda: data, 1, lambda *_: None), calib=data, data=data, task=task
    )
    quantize = Quantize(kind="int8-static")
    passes = (quantize, Decompose(target="drop=0.1,error=0.3"))
    first, second = (pass_context(passes, run, None).only(quantize.uses) for _ in range(2))
    assert (first.max_error, first.max_drop) == (0.2, 0.1)
    assert first.evaluation is not None
    assert first.evaluation.labels is not None
    assert len(first.evaluation.labels) == 1
    assert first.memory is not None
    assert first.memory is second.memory
