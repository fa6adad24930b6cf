"""Settings: what a provider has, and what wins where two say different things."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxdecomp
from onnxdecomp.errors import UsageError
from onnxdecomp.evaluate.benchmark import bench
from onnxdecomp.latency.as_run import as_run
from onnxdecomp.latency.cache import where
from onnxdecomp.runtime.providers import PROVIDERS, preference
from onnxdecomp.runtime.setting import Setting, setting_of
from onnxdecomp.workflow.config import CompressConfig
from tests.builders.commands import command
from tests.builders.models import thin_middle


def test_what_the_user_names_wins_over_the_profile() -> None:
    plain = setting_of("cuda", 1)
    assert (plain.options, plain.graph) == ({}, False)
    deployed = setting_of("cuda", 1, profile="deploy", precision="fp32", options={"prefer_nhwc": "0"})
    assert deployed.options["use_tf32"] == "0"
    assert deployed.options["prefer_nhwc"] == "0"
    assert deployed.options["fuse_conv_bias"] == "1"
    assert deployed.graph
    assert not deployed.without_graph.graph
    assert deployed.quick.options["cudnn_conv_algo_search"] == "HEURISTIC"
    named = setting_of("cuda", 1, profile="deploy", options={"cudnn_conv_algo_search": "EXHAUSTIVE"})
    assert named.quick == named
    assert plain.quick.options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert Setting("cpu").quick == Setting("cpu")


def test_caches_of_engines_lie_beside_the_timings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(tmp_path))
    found = setting_of("tensorrt", 1, profile="deploy", precision="bf16").options
    assert found["trt_engine_cache_path"] == str(tmp_path / "tensorrt")
    assert found["trt_bf16_enable"] == "1"
    assert setting_of("tensorrt", 1, precision="fp16").converted == ""
    assert setting_of("cuda", 1, precision="fp16").converted == "fp16"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"provider": "cpu", "precision": "tf32"}, "cpu does not compute in tf32 on request"),
        ({"provider": "cuda", "precision": "bf16"}, "cuda does not compute in bf16 on request"),
        ({"provider": "cpu", "profile": "deploy"}, "leave --profile out"),
        ({"provider": "cpu", "provider_options": {"a": "1"}}, "leave --provider-option out"),
    ],
)
def test_what_a_provider_has_not_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    onnx.save(thin_middle(), tmp_path / "net.onnx")
    with pytest.raises(UsageError, match=said):
        onnxdecomp.compress(tmp_path / "net.onnx", rank="2", **options)


def test_a_quantized_model_is_not_converted() -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        onnxdecomp.compress("net.onnx", rank="2", precision="fp16", quantize="int8-dynamic")


def test_timings_under_other_options_are_others() -> None:
    plain, tuned = Setting("dml"), Setting("dml", given=(("a", "1"),))
    assert where(plain).described() != where(tuned).described()
    assert "options" not in where(plain).described()


def test_every_provider_says_what_it_needs_in_its_row() -> None:
    rows = {row.name: row for row in PROVIDERS}
    assert all(row.graph in dict(row.deploy) for row in PROVIDERS if row.graph)
    assert all(row.needs and row.install for row in PROVIDERS if row.deploy)
    assert preference("tensorrt", {"a": "1"}) == [
        (rows["tensorrt"].ort_name, {"a": "1"}),
        rows["cuda"].ort_name,
        rows["cpu"].ort_name,
    ]


def test_both_models_are_timed_in_half_precision(tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    onnx.save(thin_middle(), file)
    halves = as_run(file, setting_of("cpu", 1, precision="fp16"), tmp_path)
    stored = {tensor.data_type for tensor in onnx.load(halves).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in stored
    assert as_run(halves, setting_of("cpu", 1, precision="fp16"), tmp_path) == halves
    assert as_run(file, setting_of("cpu", 1), tmp_path) == file
    (timed,) = bench([file, file], precision="fp16", iterations=1, memory=False, convert=as_run).settings
    assert timed.precision == "fp16"
    assert [model.model for model in timed.models] == [str(file), str(file)]


def test_a_run_says_under_what_it_was_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(thin_middle(), "net.onnx")
    done = command(
        capsys, "compress", "net.onnx", *("--rank", 4, "--simplify", "none", "--threads", 1),
        *("--precision", "fp16", "--batch", 2, "--report", "page.html", "--json", "run.json"),
    )  # fmt: skip
    assert done.code == 0, done.err
    first = json.loads(Path("run.json").read_text(encoding="utf-8"))["settings"][0]
    page = Path("page.html").read_text(encoding="utf-8")
    assert "CPU, batch 2, 1 thread, fp16" in page
    assert (first["precision"], first["profile"], first["options"]) == ("fp16", "default", {})
    asked = json.loads(Path("run.json").read_text(encoding="utf-8"))["demand"]
    assert asked["after"]["launches"] > asked["before"]["launches"] > 2
    assert asked["after"]["flops"] < asked["before"]["flops"]
    assert "operations" in page
    written = onnx.load(next(tmp_path.glob("net.*.onnx")))
    assert {tensor.data_type for tensor in written.graph.initializer} == {onnx.TensorProto.FLOAT}


def test_options_come_from_the_command_line() -> None:
    config = CompressConfig(provider="cuda", provider_options={"use_tf32": "1"}, profile="deploy", threads=2)
    assert config.setting.options["use_tf32"] == "1"
    assert config.setting.threads == 2
    assert np.isin("enable_cuda_graph", list(config.setting.options))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("--provider-option", "a"), "is not of the form NAME=VALUE"),
        (("--provider-option", "a=1"), "leave --provider-option out"),
        (("--precision", "half"), "is not one of"),
        (("--profile", "deploy"), "leave --profile out"),
    ],
)
@pytest.mark.parametrize("what", ["bench", "compress"])
def test_the_command_line_refuses_in_one_line(
    what: str, line: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(thin_middle(), tmp_path / "net.onnx")
    rest = ("--rank", "2") if what == "compress" else ()
    command(capsys, what, tmp_path / "net.onnx", *rest, *line).is_error(2, said)
