"""Heads made smaller: what no head needs goes at no loss, whatever way an exporter writes attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

import onnxdecomp
from onnxdecomp.apply.layer_fitter import Fitter
from onnxdecomp.core.layer import Array
from onnxdecomp.fitting.fit import Fit
from onnxdecomp.fitting.refine_scores import AttentionSample
from onnxdecomp.layers.adapter import LayerMatch
from tests.builders import graphs
from tests.builders.graphs import node, saved
from tests.builders.vit import vit
from tests.channels.transformers import HEADS, SIZE, WIDTH, attention

HALF = SIZE // 2


def thin(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The network with heads that have half as many dimensions as numbers: queries, keys and values."""
    rng = np.random.default_rng(5)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for own in proto.graph.node:
        if own.name in ("q", "k", "v", "qkv"):
            (added,) = [other for other in proto.graph.node if own.output[0] in other.input]
            bias = next(name for name in added.input if name in tensors)
            weight, shift = (numpy_helper.to_array(tensors[name]) for name in (own.input[1], bias))
            runs = np.concatenate([weight, shift[None]]).reshape(WIDTH + 1, -1, SIZE)
            mixed = np.einsum("dhi,hij->dhj", runs[..., :HALF], rng.normal(size=(runs.shape[1], HALF, SIZE)))
            flat = mixed.reshape(WIDTH + 1, -1).astype(np.float32)
            for name, array in ((own.input[1], flat[:-1]), (bias, flat[-1])):
                tensors[name].CopyFrom(numpy_helper.from_array(array, name))
    return proto


def run(file: str | Path, x: Array) -> Array:
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return np.stack([np.asarray(session.run(None, {"x": one})[0]) for one in x])


@pytest.mark.parametrize(
    ("form", "calibrated"),
    [
        ("plain", True),
        ("split", True),
        ("split", False),
        ("crossed", True),
        ("einsum", True),
        ("grouped", True),
        ("fused", True),
        ("fused", False),
        ("one node", True),
        ("one node of 3 axes", False),
        ("one node of 4 axes", True),
    ],
)
def test_heads_of_half_the_dimensions(
    form: str, calibrated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = saved(thin(attention(form, free=False)), tmp_path / "net.onnx")
    x = np.random.default_rng(2).standard_normal((16, 2, 5, WIDTH)).astype(np.float32)
    np.savez("calib.npz", x=x)
    calib = "calib.npz" if calibrated else None
    done = onnxdecomp.compress(
        *(model, "out.onnx"), method="attention", rank="0.5", bench=False, simplify="none", calib=calib
    )
    cut = [c.kept / c.width for c in done.channels if c.status == "cut"]
    assert cut == ([0.5] if form == "fused" else [0.5, 0.5])
    wanted, got = run(model, x), run("out.onnx", x)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("masked", [False, True])
def test_heads_of_one_node_that_makes_queries_keys_and_values(
    masked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of their dimensions go at no loss, with the scale that they had."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(5)
    runs = rng.normal(size=(WIDTH + 1, 3 * HEADS, HALF))
    packed = np.einsum("dhi,hij->dhj", runs, rng.normal(size=(3 * HEADS, HALF, SIZE))).reshape(WIDTH + 1, -1)
    weights = {"w": packed[:-1], "b": packed[-1], "o": rng.normal(size=(WIDTH, 4))}
    operands = "x w b attention_mask" if masked else "x w b"
    nodes = [
        node("Attention", operands, "h", name="att", domain="com.microsoft", num_heads=HEADS),
        node("MatMul", "h o", "y", name="o"),
    ]
    inputs: dict[str, Array] = {"x": rng.standard_normal((24, 5, WIDTH)).astype(np.float32)}
    declared: dict[str, Any] = {"x": ["N", 5, WIDTH]}
    proto = graphs.model(
        nodes, declared, {"y": ["N", 5, 4]}, {name: w.astype(np.float32) for name, w in weights.items()}
    )
    if masked:
        proto.graph.input.append(
            helper.make_tensor_value_info("attention_mask", onnx.TensorProto.INT32, ["N", 5])
        )
        inputs["attention_mask"] = (np.arange(5) < rng.integers(2, 6, (24, 1))).astype(np.int32)
    model = saved(proto, tmp_path / "net.onnx")
    np.savez("calib.npz", **inputs)  # type: ignore[arg-type]
    done = onnxdecomp.compress(
        *(model, "out.onnx"), method="attention", rank="0.5", bench=False, simplify="none", calib="calib.npz"
    )
    assert [c.kept / c.width for c in done.channels if c.status == "cut"] == [0.5, 0.5]
    wanted, got = (_first(file, inputs) for file in (model, "out.onnx"))
    real = inputs.get("attention_mask", np.ones((24, 5))).astype(bool)
    np.testing.assert_allclose(got[real], wanted[real], rtol=0, atol=1e-3 * np.abs(wanted).max())


def _first(file: str | Path, inputs: dict[str, Array]) -> Array:
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0])


def test_maps_are_fitted_behind_the_repair_of_queries_and_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the original's scores, and with a loss on samples that were held out."""
    order: list[str] = []
    repair, attention_of = Fitter.repair, Fitter.attention

    def repaired(self: Fitter, match: LayerMatch, *rest: Any) -> Fit | None:
        order.append(match.layer.name)
        return repair(self, match, *rest)

    def fitted(self: Fitter, *rest: Any, **options: Any) -> list[AttentionSample]:
        found = attention_of(self, *rest, **options)
        order.append("scores")
        assert all(sample.wanted is not None for sample in found)
        return found

    monkeypatch.setattr(Fitter, "repair", repaired)
    monkeypatch.setattr(Fitter, "attention", fitted)
    monkeypatch.chdir(tmp_path)
    model = saved(vit(1), tmp_path / "net.onnx")
    x = np.random.default_rng(2).standard_normal((40, 3, 16, 16)).astype(np.float32)
    np.savez("calib.npz", x=x)
    done = onnxdecomp.compress(
        *(model, "out.onnx"),
        method="attention",
        rank="0.5",
        layers=("/Conv_*=svd:rank=1",),
        simplify="none",
        bench=False,
        calib="calib.npz",
    )
    (scores,) = [channel for channel in done.channels if channel.status == "cut" and not channel.readers]
    assert scores.held_out is not None
    assert scores.loss is not None
    assert 0 < scores.loss < scores.held_out + 1
    query, key = scores.producers
    assert order.index("scores") > max(order.index(query), order.index(key))


def test_a_reader_of_several_channels_is_left_to_widths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Branches without an activation, joined by a Concat: of no one of them the reader's inputs are all."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(7)
    sizes = {"a": (24, 8), "b": (24, 8), "r": (16, 12)}
    weights = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    nodes = [
        node("MatMul", "x a", "p", name="first"),
        node("MatMul", "x b", "q", name="second"),
        node("Concat", "p q", "both", name="both", axis=-1),
        node("MatMul", "both r", "y", name="reader"),
    ]
    model = saved(graphs.model(nodes, {"x": ["N", 24]}, ["y"], weights), tmp_path / "net.onnx")
    np.savez("calib.npz", x=rng.standard_normal((64, 24)).astype(np.float32))
    done = onnxdecomp.compress(
        *(model, "out.onnx"), target="macs=1.5x", bench=False, simplify="none", calib="calib.npz"
    )
    assert [note for note in done.notes if "error of onnxdecomp" in note] == []
