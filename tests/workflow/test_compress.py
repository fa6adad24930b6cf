"""The Python functions: what they return, and what they leave alone."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxdecomp
from onnxdecomp.errors import GateError, UnchangedError, UsageError
from onnxdecomp.workflow.result import Result
from tests.builders.commands import environment, files
from tests.builders.models import network

QUICK: dict[str, Any] = {"simplify": "none", "rank": "4", "bench": False}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return network(tmp_path / "net.onnx")


def serialized(model: Any) -> bytes:
    return bytes((ir.to_proto(model) if isinstance(model, ir.Model) else model).SerializeToString())


@pytest.mark.parametrize("kind", ["path", "text", "proto", "ir"])
def test_the_callers_model_is_untouched(kind: str, model: Path) -> None:
    content = model.read_bytes()
    subject: Any = {"path": model, "text": str(model)}.get(kind)
    if subject is None:
        subject = onnx.load(model) if kind == "proto" else ir.load(model)
    before = None if isinstance(subject, Path | str) else serialized(subject)
    output = model.with_name("out.onnx")
    result = onnxdecomp.compress(subject, output, **QUICK)
    assert model.read_bytes() == content
    if before is not None:
        assert serialized(subject) == before
        assert result.record["model"]["path"] is None
    assert result.path == output
    assert files(model.parent) == ["net.onnx", "out.onnx"]
    # The same model, however it was given, becomes the same layers.
    assert [(layer.name, layer.method, layer.ranks) for layer in result.layers] == [
        ("c1", "tucker", (4, 4)),
        ("c2", "tucker", (4, 4)),
    ]


def test_the_result(model: Path) -> None:
    result = onnxdecomp.compress(model, **{**QUICK, "bench": True}, bench_seconds=0.01, threads=1)
    assert isinstance(result, Result)
    assert (result.path, result.changed, result.notes) == (None, True, ())
    assert files(model.parent) == ["net.onnx"]
    assert [choice.method for choice in result.plan.choices] == ["tucker", "tucker"]
    assert all(check.passed and check.rel_error is not None for check in result.lowering)
    assert result.verification is not None
    assert result.verification.passed
    assert result.verification.rel_l2 is not None
    assert 0 < result.verification.rel_l2 < 1.5
    assert result.latency is not None
    assert len(result.latency.settings[0].models) == 2
    assert result.record["latency"]["compressed"]["count"] >= 5
    # The model in hand is the one that was verified: it runs, and has the layer's names.
    assert {"c1", "c2"} <= {node.name for node in result.model.graph}
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.changed = False  # type: ignore[misc]


def test_two_runs_write_the_same_bytes(model: Path) -> None:
    first, second = (
        onnxdecomp.compress(model, model.with_name(f"{i}.onnx"), verify=False, **QUICK).path for i in range(2)
    )
    assert first is not None
    assert second is not None
    assert first.read_bytes() == second.read_bytes()


def test_progress_says_what_is_done(model: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    onnxdecomp.compress(model, progress=lambda *step: seen.append(step), **QUICK)
    assert [what for what, _, _ in seen] == [
        *("load", "simplify", "normalise", "decompose", "decompose c1", "decompose c2"),
        *("merge", "annotate", "check", "check layers", "verify", "save"),
    ]
    assert [step[1:] for step in seen if step[0].startswith("decompose c")] == [(0, 2), (1, 2)]


def test_what_progress_raises_ends_the_run_and_leaves_nothing(model: Path) -> None:
    class StopError(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if what == "verify":
            raise StopError

    with pytest.raises(StopError):
        onnxdecomp.compress(model, model.with_name("out.onnx"), progress=stop, **QUICK)
    assert files(model.parent) == ["net.onnx"]


def test_gates(model: Path) -> None:
    output = model.with_name("out.onnx")
    with pytest.raises(GateError, match="nothing was written"):
        onnxdecomp.compress(model, output, max_error=1e-6, **QUICK)
    with pytest.raises(UnchangedError, match="nothing was decomposed"):
        onnxdecomp.compress(model, output, fail_if_unchanged=True, **{**QUICK, "exclude": ("c*",)})
    with pytest.raises(UsageError, match="no option 'rnak'"):
        onnxdecomp.compress(model, output, rnak="4")  # type: ignore[call-arg]
    assert files(model.parent) == ["net.onnx"]


def test_nothing_decomposed_is_a_copy(model: Path) -> None:
    output = model.with_name("out.onnx")
    result = onnxdecomp.compress(model, output, **{**QUICK, "exclude": ("c*",)})
    assert (result.changed, result.latency) == (False, None)
    assert output.read_bytes() == model.read_bytes()


def test_inspect_plans_and_leaves_the_model(model: Path) -> None:
    proto = onnx.load(model)
    before = serialized(proto)
    result = onnxdecomp.inspect(proto, method="svd", rank="2")
    assert serialized(proto) == before
    assert [(layer.status, layer.method, layer.ranks) for layer in result.layers] == [
        ("planned", "svd", (2,))
    ] * 2
    assert (result.path, result.verification, result.lowering) == (None, None, ())
    assert result.layers[1].weight == (16, 16, 3, 3)
    assert result.layers[1].params.after == 2 * (16 * 9 + 16)
    assert result.record["totals"]["params"]["after"] < result.record["totals"]["params"]["before"]


def test_verify_and_bench(model: Path) -> None:
    feeds = [{"x": np.ones((1, 8, 8, 8), np.float32)}]
    checked = onnxdecomp.verify(model, model, data=feeds)
    assert (checked.status, checked.rel_l2) == ("passed", 0.0)
    timed = onnxdecomp.bench([model], iterations=5, memory=False)
    assert timed.settings[0].models[0].latency.count == 5


def test_data_that_can_be_read_only_once(model: Path) -> None:
    feeds = ({"x": np.full((1, 8, 8, 8), value, np.float32)} for value in (1.0, 2.0, 3.0))
    result = onnxdecomp.compress(model, data=feeds, **QUICK)
    assert result.verification is not None
    assert result.verification.samples == 3


def test_functions_at_the_root_stay_functions() -> None:
    # A submodule of the same name would take a function's place once it is imported.
    folders = [module.name for module in pkgutil.iter_modules(onnxdecomp.__path__)]
    assert "workflow" in folders
    for name in (*folders, "workflow.compress", "workflow.finetune", "evaluate.verify", "cli.bench"):
        importlib.import_module(f"onnxdecomp.{name}")
    for name in onnxdecomp.__all__:
        assert getattr(onnxdecomp, name) is not None
        assert name in dir(onnxdecomp)
    assert all(callable(getattr(onnxdecomp, name)) for name in ("compress", "inspect", "verify", "bench"))
    with pytest.raises(AttributeError, match="no attribute 'decompress'"):
        onnxdecomp.decompress  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = ("onnx", "onnx_ir", "onnxruntime", "numpy", "tensorly", "scipy", "rich", "click")
    program = f"import sys, onnxdecomp; sys.exit(','.join(n for n in {heavy!r} if n in sys.modules) or None)"
    line = [sys.executable, "-c", program]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_model_that_calls_the_default_domain_by_its_long_name(model: Path) -> None:
    proto = onnx.load(model)
    proto.opset_import[0].domain = "ai.onnx"
    for node in proto.graph.node:
        node.domain = "ai.onnx"
    onnx.save(proto, model)
    result = onnxdecomp.compress(model, model.with_name("out.onnx"), **QUICK)
    assert [layer.method for layer in result.layers] == ["tucker", "tucker"]
    assert result.record["model"]["opset"] == 17
    onnx.checker.check_model(onnx.load(model.with_name("out.onnx")))


def test_an_error_on_what_the_fit_has_seen_is_told_as_that(model: Path) -> None:
    rng = np.random.default_rng(0)
    fitted, others = (
        [{"x": rng.standard_normal((1, 8, 8, 8)).astype(np.float32)} for _ in range(8)] for _ in range(2)
    )
    said = "the error is that on the calibration inputs, which the numbers were fitted to"

    def told(**more: Any) -> bool:
        notes = onnxdecomp.compress(model, **{**QUICK, **more}).record["notes"]
        return any(note.startswith(said) for note in notes)

    assert told(calib=fitted)
    assert not told(calib=fitted, data=others)
    assert not told(calib=fitted, verify=False)
    assert not told(calib=fitted, exclude=("c*",))
    assert not told(data=others)
