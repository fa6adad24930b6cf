"""The whole search for a graphics card, on one whose clock obeys a roofline: it picks what pays there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import onnxdecomp
from models.encoder import encoder
from onnxdecomp.errors import UsageError
from onnxdecomp.latency.meter import timed_input
from onnxdecomp.latency.roofline import Roof, Roofline
from onnxdecomp.runtime.setting import Setting
from onnxdecomp.workflow.result import Result
from tests.builders import graphs
from tests.builders.fake_device import LAUNCH_BOUND, FakeDevice, install

CHANNELS, SIZE = 32, 8


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDevice:
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(tmp_path))
    return install(monkeypatch, FakeDevice())


def network(path: Path, depth: int) -> Path:
    """x [N, 16, 8, 8] -> convolutions of rank 6, each with a Relu but for the last one -> y."""
    rng = np.random.default_rng(0)
    nodes, weights, x, inputs = [], dict[str, Any](), "x", 16
    for k in range(depth):
        low = rng.standard_normal((CHANNELS, 6)) @ rng.standard_normal((6, inputs * 9))
        low += 0.3 * rng.standard_normal(low.shape)
        weights[f"w{k}"] = (low / np.sqrt(60 * inputs)).reshape(-1, inputs, 3, 3).astype(np.float32)
        last = k == depth - 1
        output = "y" if last else f"c{k}"
        nodes.append(helper.make_node("Conv", [x, f"w{k}"], [output], name=f"conv{k}", pads=[1, 1, 1, 1]))
        if not last:
            nodes.append(helper.make_node("Relu", [output], [f"r{k}"], name=f"relu{k}"))
        x, inputs = f"r{k}", CHANNELS
    made = graphs.model(nodes, {"x": ["N", 16, SIZE, SIZE]}, {"y": ["N", CHANNELS, SIZE, SIZE]}, weights)
    onnx.save(made, path)
    return path


def compress(path: Path, **options: Any) -> Result:
    x = np.random.default_rng(1).standard_normal((12, 16, SIZE, SIZE)).astype(np.float32)
    asked: dict[str, Any] = {"calib": {"x": x}, "method": "tucker", "provider": "cuda", **options}
    return onnxdecomp.compress(path, verify=False, simplify="none", threads=1, **asked)


def test_of_one_sample_widths_pay_and_chains_do_not(tmp_path: Path, fake: FakeDevice) -> None:
    """A chain adds launches, which take most of the time; a narrower layer adds none."""
    net = network(tmp_path / "net.onnx", 3)
    done = compress(net, method="tucker,width", target="latency=1.15x", batch=1, profile="deploy")
    assert done.plan.cuts
    assert not done.plan.decomposed
    assert any("does not pay" in choice.reason for choice in done.plan.choices)
    assert done.latency is not None
    (timed,) = done.latency.settings
    assert (timed.provider, timed.batch, timed.profile, timed.graph) == ("cuda", 1, "deploy", True)
    assert timed.models[1].ratio is not None
    assert timed.models[1].ratio.value < 1 / 1.15
    assert done.record["settings"][0]["options"]["prefer_nhwc"] == "1"
    assert {setting.batch for setting in fake.seen if setting.profile == "deploy"} == {1}


def test_of_many_samples_chains_pay(tmp_path: Path, fake: FakeDevice) -> None:
    """Where no unit may go, since all are outputs; the same network of one sample has no plan."""
    net = network(tmp_path / "net.onnx", 1)
    with pytest.raises(UsageError, match="out of reach"):
        compress(net, target="latency=1.15x", batch=1)
    done = compress(net, target="latency=1.5x", batch=64)
    (choice,) = done.plan.decomposed
    assert not done.plan.cuts
    assert choice.before is not None
    assert choice.after is not None
    assert choice.after.macs < choice.before.macs / 2
    assert all(rank % 8 == 0 for rank in choice.ranks)
    assert done.latency is not None
    assert done.latency.settings[0].models[1].ratio is not None
    assert done.latency.settings[0].models[1].ratio.value < 1 / 1.5


@pytest.mark.parametrize("target", ["latency=1.3x", "macs=1.3x"])
def test_ranks_are_multiples_of_what_is_measured(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where convolutions work in blocks of 16, a layer of four such blocks gets ranks of whole ones."""
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(tmp_path))
    roofs = {**LAUNCH_BOUND.roofs, "convolution": Roof(1e-4, 1 / 30e3, 16)}
    install(monkeypatch, FakeDevice(Roofline(100.0, roofs)))
    weight = np.random.default_rng(0).standard_normal((64, 64, 3, 3)).astype(np.float32) / 24
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1, 1, 1])
    net, sizes = tmp_path / "net.onnx", ("N", 64, SIZE, SIZE)
    onnx.save(graphs.model([node], {"x": sizes}, {"y": sizes}, {"w": weight}), net)
    x = np.random.default_rng(1).standard_normal((12, 64, SIZE, SIZE)).astype(np.float32)
    done = compress(net, calib={"x": x}, target=target, batch=16, allow_slower=True)
    (choice,) = done.plan.decomposed
    assert choice.ranks
    assert all(rank % 16 == 0 for rank in choice.ranks)


def test_two_nodes_come_before_three(tmp_path: Path, fake: FakeDevice) -> None:
    """Of a convolution that is narrow on both sides MACs choose three nodes, launches two."""
    rng = np.random.default_rng(0)
    core = np.einsum("ta,abhw,bs->tshw", *(rng.standard_normal(s) for s in ((32, 8), (8, 8, 3, 3), (8, 32))))
    weight = ((core + 3 * rng.standard_normal(core.shape)) / 100).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1, 1, 1])
    net, sizes = tmp_path / "net.onnx", ("N", 32, SIZE, SIZE)
    onnx.save(graphs.model([node], {"x": sizes}, {"y": sizes}, {"w": weight}), net)
    x = rng.standard_normal((12, 32, SIZE, SIZE)).astype(np.float32)
    asked: dict[str, Any] = {"calib": {"x": x}, "method": "auto"}
    (few,) = compress(net, target="latency=1.35x", batch=8, **asked).plan.decomposed
    assert few.method in ("svd", "spatial")
    (many,) = compress(net, target="macs=6x", provider="cpu", allow_slower=True, **asked).plan.decomposed
    assert many.method == "tucker"


def test_siblings_share_their_first_factor(tmp_path: Path, fake: FakeDevice) -> None:
    """Chains of their own would launch six kernels where there were three; with one in common it is four."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((64, 8))
    weights = {
        name: ((first @ rng.standard_normal((8, 64)) + 0.3 * rng.standard_normal((64, 64))) / 20).astype(
            np.float32
        )
        for name in "qkv"
    }
    nodes = [helper.make_node("MatMul", ["x", name], [f"{name}_y"], name=f"to_{name}") for name in "qkv"]
    outputs = {f"{name}_y": ("N", 64, 64) for name in "qkv"}
    net = tmp_path / "net.onnx"
    onnx.save(graphs.model(nodes, {"x": ["N", 64, 64]}, outputs, weights), net)
    x = rng.standard_normal((12, 64, 64)).astype(np.float32)
    done = compress(net, calib={"x": x}, method="auto", target="latency=1.25x", batch=16)
    assert [choice.method for choice in done.plan.decomposed] == ["shared"] * 3


@pytest.mark.parametrize(
    ("method", "faster", "cuts"), [("attention", 1.02, {"attention"}), ("auto", 1.06, {"attention", "width"})]
)
def test_an_encoder_of_one_sample_gets_fewer_features_and_no_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, faster: float, cuts: set[str]
) -> None:
    """A launch takes as long as half of its largest product: heads and widths are cut, on whole blocks."""
    monkeypatch.setenv("ONNXDECOMP_CACHE", str(tmp_path))
    roofs = {**LAUNCH_BOUND.roofs, "product": Roof(1e-4, 1 / 10e3, 8)}
    install(monkeypatch, FakeDevice(Roofline(100.0, roofs)))
    net = tmp_path / "net.onnx"
    ir.save(encoder(layers=1, width=64, heads=4, vocabulary=20, longest=16), net)
    x = {
        "input_ids": np.random.default_rng(0).integers(0, 20, (6, 16)),
        "attention_mask": np.ones((6, 16), np.int64),
    }
    asked: dict[str, Any] = {"calib": x, "method": method, "target": f"latency={faster}x"}
    done = compress(net, batch=1, profile="deploy", **asked)
    assert done.plan.cuts
    assert {cut.method for cut in done.plan.cuts} <= cuts
    assert all(cut.kept * (16 if cut.channel.endswith(":blocks") else 1) % 8 == 0 for cut in done.plan.cuts)
    assert not done.plan.decomposed
    assert len(done.model.graph) == len(ir.load(net).graph)
    assert done.latency is not None
    assert done.latency.settings[0].models[1].ratio is not None
    assert done.latency.settings[0].models[1].ratio.value < 1 / faster


def test_a_batch_is_tried_on_the_card(tmp_path: Path, fake: FakeDevice) -> None:
    net = network(tmp_path / "net.onnx", 1)
    for setting in (Setting("cpu"), Setting("cuda", precision="fp16", profile="deploy")):
        (feed,) = timed_input(net, batch=6, setting=setting)
        assert feed["x"].shape[0] == 6
    (seen,) = fake.seen
    assert (seen.converted, seen.graph, seen.profile) == ("", False, "deploy")


def test_graphs_are_a_part_of_the_answer(tmp_path: Path, fake: FakeDevice) -> None:
    """Without a recorded graph launches take so much that the widths gain less."""
    net = network(tmp_path / "net.onnx", 3)
    settings: list[tuple[dict[str, str], bool]] = [({"enable_cuda_graph": "0"}, False), ({}, True)]
    for options, graph in settings:
        done = compress(
            net, rank="0.5", allow_slower=True, profile="deploy", provider_options=options or None
        )
        assert done.latency is not None
        assert done.latency.settings[0].graph is graph
