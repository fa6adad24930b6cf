"""int8: models of many kinds, what they compute, and what is refused."""

from __future__ import annotations

import dataclasses
import platform
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxdecomp
from onnxdecomp.core.layer import Array
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.data.read import read_feeds
from onnxdecomp.errors import ModelError
from onnxdecomp.graph.load import load
from onnxdecomp.graph.save import save
from onnxdecomp.quantization.distance import distance
from onnxdecomp.quantization.int8 import int8, rough
from onnxdecomp.quantization.scheme import Scheme, scheme_for
from onnxdecomp.runtime import environment
from onnxdecomp.runtime.interface import differences, interface_of
from onnxdecomp.runtime.session import inputs_of, open_session, run
from tests.builders.cases import Case
from tests.builders.exported import KINDS, scaled, tied
from tests.builders.exported import batched as kind_of
from tests.builders.graphs import model, node

COARSE = 0.06
"""Relative L2 error that 8 bits may make in a model of a few layers."""

every_kind = pytest.mark.parametrize("name", KINDS)


@pytest.fixture
def kind(name: str) -> Case:
    return KINDS[name]()


@pytest.fixture
def file(kind: Case, tmp_path: Path) -> Path:
    onnx.save(kind.model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def relative(actual: Array, wanted: Array) -> float:
    return float(np.linalg.norm(actual - wanted) / np.linalg.norm(wanted))


def count(model: ir.Model, op_type: str) -> int:
    return sum(node.op_type == op_type for node in model.graph)


def quantized(file: Path, kind: Case, how: Scheme) -> ir.Model:
    feeds = read_feeds([kind.feeds], inputs_of(open_session(file)))
    return int8(load(file), feeds, how)


@every_kind
def test_it_computes_about_the_same(file: Path, kind: Case, tmp_path: Path) -> None:
    made = quantized(file, kind, scheme_for("cpu"))
    target = save(made, tmp_path / "new.onnx")
    assert count(made, "QuantizeLinear") > 0
    assert not differences(interface_of(file), interface_of(target))
    before, after = (run(open_session(path), kind.feeds)[0] for path in (file, target))
    assert relative(after, before) < COARSE


def test_a_weight_per_channel_has_other_readers(tmp_path: Path) -> None:
    """ONNX Runtime's quantizer by itself gives the Transpose the scales of its input's channels."""
    kind, file = tied(), tmp_path / "model.onnx"
    onnx.save(kind.model, file)
    how = dataclasses.replace(scheme_for("cpu"), per_channel=True)
    made = quantized(file, kind, how)
    before, after = (
        run(open_session(path), kind.feeds)[0] for path in (file, save(made, tmp_path / "new.onnx"))
    )
    assert count(made, "QuantizeLinear") > 0
    assert relative(after, before) < COARSE


@every_kind
def test_the_rough_one_has_the_same_nodes(file: Path, kind: Case) -> None:
    made, outline = quantized(file, kind, scheme_for("cpu")), rough(load(file), scheme_for("cpu"))
    assert Counter(node.op_type for node in outline.graph) == Counter(node.op_type for node in made.graph)


@every_kind
def test_what_compress_writes_can_be_quantized_by_anybody(file: Path, kind: Case, tmp_path: Path) -> None:
    """By ONNX Runtime's quantizer as its users call it; with a scale per channel where the opset has that."""
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static

    @dataclass
    class Reader:
        feeds: list[dict[str, Array]]

        def get_next(self) -> dict[str, Array] | None:
            return self.feeds.pop() if self.feeds else None

    written, target, dynamic = (tmp_path / f"{name}.onnx" for name in ("small", "static", "dynamic"))
    onnxdecomp.compress(
        file,
        written,
        method="tucker,svd",
        rank="0.5",
        skip_below=0.0,
        must_save="none",
        bench=False,
        simplify="none",
    )
    opset = load(written).opset_imports[""]
    quantize_static(
        str(written),
        str(target),
        Reader([kind.feeds]),
        per_channel=opset >= 13,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    quantize_dynamic(str(written), str(dynamic), weight_type=QuantType.QUInt8)
    for made in (target, dynamic):
        (output,) = run(open_session(made), kind.feeds)
        assert np.isfinite(output).all()


def test_a_model_that_is_quantized_already_is_refused(tmp_path: Path) -> None:
    kind = KINDS["plain"]()
    onnx.save(kind.model, tmp_path / "model.onnx")
    once = quantized(tmp_path / "model.onnx", kind, scheme_for("cpu"))
    save(once, tmp_path / "once.onnx")
    with pytest.raises(ModelError, match="quantized already"):
        quantized(tmp_path / "once.onnx", kind, scheme_for("cpu"))


def test_names_are_left_in_floating_point(tmp_path: Path) -> None:
    kind = KINDS["plain"]()
    onnx.save(kind.model, tmp_path / "model.onnx")
    made = quantized(tmp_path / "model.onnx", kind, Scheme(exclude=("c",)))
    weights = {node.name: node.inputs[1] for node in made.graph if node.op_type in ("Conv", "Gemm")}
    produced = {name: value is not None and value.producer() is not None for name, value in weights.items()}
    assert produced == {"a": True, "c": False, "y": True}


@pytest.mark.parametrize(("reduced", "largest"), [(False, 127), (True, 64)])
def test_seven_bits_are_seven_bits(reduced: bool, largest: int, tmp_path: Path) -> None:
    kind = KINDS["plain"]()
    onnx.save(kind.model, tmp_path / "model.onnx")
    made = quantized(tmp_path / "model.onnx", kind, Scheme(reduce_range=reduced))
    weights = [v.const_value for v in made.graph.initializers.values() if (v.name or "").startswith("w")]
    extremes = [
        int(np.abs(t.numpy().astype(int)).max()) for t in weights if t and t.dtype == ir.DataType.INT8
    ]
    assert len([value for value in extremes if value > 0]) == 3
    assert max(extremes) == largest


@pytest.mark.parametrize(
    ("machine", "flags", "provider", "expected"),
    [
        ("x86_64", {"avx2"}, "cpu", (False, True)),
        ("x86_64", {"avx512f"}, "cpu", (False, True)),
        ("x86_64", {"avx512_vnni"}, "cpu", (False, False)),
        ("AMD64", {"avx_vnni"}, "cpu", (False, False)),
        ("aarch64", set(), "cpu", (True, False)),
        ("x86_64", {"avx2"}, "tensorrt", (True, False)),
    ],
)
def test_the_scheme_suits_the_processor(
    machine: str,
    flags: set[str],
    provider: str,
    expected: tuple[bool, bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(environment, "cpu_flags", lambda: frozenset(flags))
    found = scheme_for(provider)
    assert (found.signed, found.reduce_range) == expected
    assert scheme_for(provider, weight_bits="7").reduce_range
    assert not scheme_for(provider, weight_bits="8").reduce_range


@pytest.mark.parametrize("name", ["plain", "shared", "constants", "branching"])
def test_the_model_that_is_given_stays_as_it_is(name: str) -> None:
    """Down to the names of tensors that it shares with the file's content."""
    made = KINDS[name]()
    before = made.model.SerializeToString(deterministic=True)
    model = ir.from_proto(made.model)
    own = ir.to_proto(model).SerializeToString(deterministic=True)
    int8(model, Feeds((made.feeds,), "test"), Scheme())
    assert made.model.SerializeToString(deterministic=True) == before
    assert ir.to_proto(model).SerializeToString(deterministic=True) == own


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_weight_of_several_matrices_runs_in_8_bits(per_channel: bool) -> None:
    made = kind_of([node("MatMul", "x w", "y")], {"w": scaled(3, 16, 8)}, {"x": scaled(1, 1, 4, 16)})
    model, feeds = ir.from_proto(made.model), Feeds((made.feeds,), "test")
    new = int8(model, feeds, Scheme(per_channel=per_channel))
    assert count(new, "QuantizeLinear") > 0
    assert distance(model, new, feeds) < COARSE


def test_what_onnx_does_not_infer_is_quantized_and_a_bias_behind_it_is_no_failure() -> None:
    nodes = [
        node("QuickGelu", "x", "a", domain="com.microsoft"),
        node("Gemm", "a w b", "h"),
        node("QuickGelu", "h", "c", domain="com.microsoft"),
        node("MatMul", "c v", "y"),
    ]
    weights = {"w": scaled(16, 8), "v": scaled(8, 8), "b": scaled(8)}
    feed = {"x": scaled(4, 16)}
    made = ir.from_proto(model(nodes, {"x": ["N", 16]}, {"y": ["N", 8]}, weights))
    feeds = Feeds((feed,), "test")
    new = int8(made, feeds, Scheme())
    assert {value.dtype for value in new.graph.initializers.values()} >= {
        ir.DataType.INT8,
        ir.DataType.INT32,
    }
    assert count(new, "DequantizeLinear") >= 6
    assert distance(made, new, feeds) < COARSE
