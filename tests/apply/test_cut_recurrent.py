"""Cutting recurrent states: what others can stand in for goes, and the recurrence makes up for the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import onnxdecomp
from onnxdecomp.core.layer import Array
from tests.builders.feeds import normal
from tests.builders.graphs import model as make
from tests.builders.graphs import node as node_of
from tests.builders.graphs import saved, value
from tests.builders.recurrent import FEATURES, STEPS, Recurrent

HALF = 4
"""Units of a direction that are needed."""


def doubled(network: Recurrent) -> onnx.ModelProto:
    """The network with every unit twice: the second copies come after all first ones."""
    proto = network.model()
    for tensor in proto.graph.initializer:
        whole = numpy_helper.to_array(tensor)
        if tensor.name.startswith("rnn") and tensor.name.endswith((".w", ".r", ".b", ".p")):
            runs = whole.reshape(network.directions, -1, HALF, *whole.shape[2:])
            whole = np.concatenate([runs, runs], axis=2).reshape(network.directions, -1, *whole.shape[2:])
        if tensor.name.endswith(".r"):
            whole = np.concatenate([0.25 * whole, 0.75 * whole], axis=2)
        inner = tensor.name.endswith(".w") and not tensor.name.startswith("rnn0")
        if inner:  # what reads the layer before
            axis = 0 if tensor.name == "dense.w" else 2
            parts = np.split(whole, network.directions, axis=axis)
            whole = np.concatenate([part * share for part in parts for share in (0.5, 0.5)], axis=axis)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(whole), tensor.name))
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.name == "hidden_size":
                attribute.i = 2 * HALF
        for at, name in enumerate(node.input):
            if node.op_type == "Reshape" and at == 1 and network.reads in ("last", "cell"):
                shape = next(t for t in proto.graph.initializer if t.name == name)
                shape.CopyFrom(numpy_helper.from_array(np.array([-1, 2 * HALF * network.directions]), name))
    del proto.graph.value_info[:]
    return proto


def samples(count: int) -> Array:
    return np.random.default_rng(3).standard_normal((count, STEPS, 2, FEATURES)).astype(np.float32)


def run(file: str | Path, x: Array) -> list[Array]:
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return [np.asarray(session.run(None, {"x": one})[0]) for one in x]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "calib.npz", x=samples(24))
    return tmp_path


NETWORKS = {
    "lstm": Recurrent(hidden=HALF, peepholes=True),
    "gru": Recurrent("GRU", hidden=HALF, stacked=2, attributes={"linear_before_reset": 1}),
    "both directions": Recurrent(hidden=HALF, directions=2, stacked=2),
    "last state": Recurrent("GRU", hidden=HALF, reads="last"),
    "rnn, last states": Recurrent("RNN", hidden=HALF, directions=2, reads="last", bias=False),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("calibrated", [True, False])
def test_copies_of_units_are_not_missed(here: Path, name: str, calibrated: bool) -> None:
    network = NETWORKS[name]
    model = saved(doubled(network), here / "net.onnx")
    how: dict[str, Any] = {"calib": here / "calib.npz"} if calibrated else {"simplify": "none"}
    done = onnxdecomp.compress(model, "out.onnx", method="width", rank="0.5", bench=False, **how)
    assert [(c.status, c.width, c.kept) for c in done.channels if c.width > 1] == [
        ("cut", 2 * HALF * network.directions, HALF * network.directions)
    ] * network.stacked
    x = samples(3)
    for got, wanted in zip(run("out.onnx", x), run(model, x), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=5e-4 * np.abs(wanted).max())
    left = onnx.load("out.onnx")
    for node in left.graph.node:
        if node.op_type == network.op_type:
            assert [a.i for a in node.attribute if a.name == "hidden_size"] == [HALF]
            assert bool(node.output[0]) == (network.reads != "last")


@pytest.mark.parametrize("name", ["gru", "both directions"])
def test_costs_and_plans_count_the_recurrence(here: Path, name: str) -> None:
    """What the operator multiplies its state by is smaller in its rows and in its columns."""
    network = NETWORKS[name]
    model = saved(network.model(), here / "net.onnx")
    done = onnxdecomp.compress(model, "out.onnx", method="width", rank="0.5", bench=False, calib="calib.npz")
    for file, which in ((model, "before"), ("out.onnx", "after")):
        stored = {one.name: numpy_helper.to_array(one).size for one in onnx.load(file).graph.initializer}
        for layer in done.record["layers"]:
            if layer["op"] == network.op_type:
                own = onnx.load(file).graph.node
                (node,) = [node for node in own if node.name == layer["name"]]
                assert layer["params"][which] == stored[node.input[1]] + stored[node.input[2]]
                assert layer["macs"][which] == layer["params"][which] * STEPS * 2
    again = onnxdecomp.compress(
        model, "again.onnx", plan=done.record["plan"], bench=False, calib="calib.npz", seed=0
    )
    assert Path("again.onnx").read_bytes() == Path("out.onnx").read_bytes()
    assert again.record["channels"] == done.record["channels"]


@pytest.mark.parametrize("how", [{"rank": "2"}, {"target": "macs=1.3x"}])
def test_chains_alone_count_the_recurrence_too(here: Path, how: dict[str, Any]) -> None:
    """What the record says of a layer and of the whole is what the files hold."""
    model = saved(Recurrent().model(), here / "net.onnx")
    done = onnxdecomp.compress(model, "out.onnx", method="svd", bench=False, calib="calib.npz", **how)
    layer = done.record["layers"][0]
    (rank,) = layer["ranks"]
    rows, recurrence = 4 * 8, 4 * 8 * 8
    wanted = {"before": rows * FEATURES, "after": rank * (rows + FEATURES)}
    for which, numbers in wanted.items():
        assert layer["params"][which] == numbers + recurrence
        assert layer["macs"][which] == (numbers + recurrence) * STEPS * 2
    found = onnxdecomp.inspect("out.onnx", method="svd", rank="1.0").record
    assert found["totals"]["macs"]["before"] == done.record["totals"]["macs"]["after"]


def test_int8_after_a_cut(here: Path) -> None:
    network = replace(NETWORKS["gru"], hidden=16)
    model = saved(network.model(), here / "net.onnx")
    done = onnxdecomp.compress(
        model, "out.onnx", method="width", rank="0.5", bench=False, calib="calib.npz", quantize="int8"
    )
    assert [c.kept for c in done.channels if c.width > 1] == [8, 8]
    wanted, got = (np.stack(run(file, samples(3))) for file in (model, "out.onnx"))
    assert np.isfinite(got).all()
    assert np.linalg.norm(got - wanted) < np.linalg.norm(wanted)


def test_a_table_may_become_too_small_to_be_a_layer(here: Path) -> None:
    nodes = [
        node_of("Gather", "table ids", "embedded"),
        node_of("GRU", "embedded rnn.w rnn.r", "states", hidden_size=HALF, linear_before_reset=1),
        node_of("MatMul", "states dense.w", "dense"),
    ]
    weights = {"table": normal(70, 64), "rnn.w": normal(1, 3 * HALF, 64), "rnn.r": normal(1, 3 * HALF, HALF)}
    ids = value("ids", [STEPS, 2], onnx.TensorProto.INT64)
    outputs = {"dense": [STEPS, 1, 2, 3]}
    model = saved(make(nodes, [ids], outputs, weights | {"dense.w": normal(HALF, 3)}), here / "net.onnx")
    np.savez("ids.npz", ids=np.random.default_rng(1).integers(0, 70, (16, STEPS, 2)))
    done = onnxdecomp.compress(
        *(model, "out.onnx"), method="width", rank="0.5", bench=False, calib="ids.npz", simplify="none"
    )
    assert [(c.name, c.kept) for c in done.channels if c.status == "cut"] == [("embedded", 32), ("states", 2)]
