"""Block refinement: where blocks end, what becomes better, what stays as it is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper

import onnxdecomp
from onnxdecomp.core.layer import Array
from onnxdecomp.data.feeds import Feeds
from onnxdecomp.errors import UsageError
from onnxdecomp.layers.replace import LAYER
from onnxdecomp.training.autograd.network import Network
from onnxdecomp.training.refinement import refine as refinement
from onnxdecomp.training.refinement.batches import batches, positions
from onnxdecomp.training.refinement.blocks import blocks
from onnxdecomp.training.refinement.trimming import Trimming
from tests.builders import graphs
from tests.builders.feeds import normal
from tests.builders.graphs import node
from tests.calibration.test_padding import LENGTHS, MASK, arrays, network, padded

HOW: dict[str, Any] = {
    "method": "svd",
    "must_save": "none",
    "simplify": "none",
    "bench": False,
    "verify": False,
    "skip_below": 0.0,
    "threads": 1,
}


def scaled(*shape: int, seed: int = 0) -> Array:
    found: Array = normal(*shape, seed=seed) / np.sqrt(np.prod(shape[1:])).astype(np.float32)
    return found


def perceptron() -> onnx.ModelProto:
    """Four products with a Relu behind each but the last."""
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, Array] = {}
    x = "x"
    for k in range(4):
        nodes.append(node("Gemm", f"{x} w{k} b{k}", f"a{k}" if k < 3 else "y", name=f"fc{k}", transB=1))
        weights |= {f"w{k}": scaled(16, 16, seed=k) * 1.5, f"b{k}": normal(16, seed=9 + k) / 4}
        if k < 3:
            nodes.append(node("Relu", f"a{k}", f"r{k}"))
        x = f"r{k}"
    return graphs.model(nodes, {"x": ("N", 16)}, {"y": ("N", 16)}, weights)


def convolutions() -> onnx.ModelProto:
    """Two residual blocks of two convolutions."""
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, Array] = {}
    x = "x"
    for k in range(2):
        for part in "ab":
            weights |= {f"w{k}{part}": scaled(8, 8, 3, 3, seed=k), f"b{k}{part}": normal(8, seed=k) / 4}
        nodes += [
            node("Conv", f"{x} w{k}a b{k}a", f"c{k}a", name=f"conv{k}a", pads=[1] * 4),
            node("Relu", f"c{k}a", f"r{k}a"),
            node("Conv", f"r{k}a w{k}b b{k}b", f"c{k}b", name=f"conv{k}b", pads=[1] * 4),
            node("Add", f"{x} c{k}b", f"s{k}"),
            node("Relu", f"s{k}", f"r{k}" if k < 1 else "y"),
        ]
        x = f"r{k}"
    return graphs.model(nodes, {"x": ("N", 8, 6, 6)}, {"y": ("N", 8, 6, 6)}, weights)


def attention() -> onnx.ModelProto:
    """A layer of one head with its residual connections and normalisations."""
    nodes = [
        *(node("MatMul", f"x w{name}", name, name=f"to_{name}") for name in "qkv"),
        node("Transpose", "k", "t", perm=[0, 2, 1]),
        node("MatMul", "q t", "s"),
        node("Softmax", "s", "p"),
        node("MatMul", "p v", "o"),
        node("MatMul", "o wo", "m", name="to_o"),
        node("Add", "x m", "e"),
        node("LayerNormalization", "e scale shift", "n"),
        node("MatMul", "n wi", "h", name="inner"),
        node("Relu", "h", "g"),
        node("MatMul", "g wj", "f", name="outer"),
        node("Add", "n f", "y"),
    ]
    weights = {f"w{name}": scaled(16, 16, seed=ord(name)) for name in "qkvoij"}
    weights |= {"scale": np.ones(16, np.float32), "shift": np.zeros(16, np.float32)}
    return graphs.model(nodes, {"x": ("N", 5, 16)}, {"y": ("N", 5, 16)}, weights)


SIZES = {"perceptron": (16,), "convolutions": (8, 6, 6), "attention": (5, 16)}
MAKE = {"perceptron": perceptron, "convolutions": convolutions, "attention": attention}


def inputs(name: str, count: int, seed: int = 1) -> dict[str, Array]:
    """Features that have to do with each other, as activations' do."""
    axis = 1 if name == "convolutions" else -1
    x = np.moveaxis(normal(count, *SIZES[name], seed=seed), axis, -1)
    mixed = x @ (normal(x.shape[-1], x.shape[-1], seed=5) * 0.8 ** np.arange(x.shape[-1])[:, None])
    return {"x": np.ascontiguousarray(np.moveaxis(mixed, -1, axis)).astype(np.float32)}


def compressed(name: str, **more: Any) -> onnxdecomp.Result:
    model = ir.from_proto(MAKE[name]())
    given = {"rank": "0.4", "calib": inputs(name, 120), "refine": True}
    return onnxdecomp.compress(model, **{**HOW, **given, **more})


def numbers(model: ir.Model) -> dict[str, Array]:
    proto = ir.to_proto(model)
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


@pytest.mark.parametrize("name", MAKE)
def test_less_is_lost_on_other_inputs(name: str) -> None:
    other = inputs(name, 60, seed=2)
    made = [compressed(name, refine=wanted, verify=True, data=other) for wanted in (False, True)]
    found = made[1].record["refinement"]
    assert isinstance(found, dict)
    assert found["kept"]
    assert found["held_out"] == 12
    assert "refinement" not in made[0].record
    lost = [one.verification.worst for one in made if one.verification is not None]
    assert lost[1] is not None
    assert lost[1] < 0.97 * (lost[0] or 0)


def test_the_same_seed_gives_the_same_numbers() -> None:
    one, two, other = (numbers(compressed("perceptron", seed=seed).model) for seed in (0, 0, 1))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_nothing_changes_where_nothing_was_rewritten() -> None:
    done = compressed("perceptron", exclude=("*",))
    before = {t.name: numpy_helper.to_array(t) for t in perceptron().graph.initializer}
    assert not done.changed
    assert "refinement" not in done.record
    assert all(np.array_equal(before[name], array) for name, array in numbers(done.model).items())


def test_layers_that_were_asked_to_stay_do() -> None:
    done = compressed("convolutions", exclude=("conv0b", "conv1b"))
    before = {t.name: numpy_helper.to_array(t) for t in convolutions().graph.initializer}
    after = numbers(done.model)
    for name in ("w0b", "b0b", "w1b", "b1b"):
        assert np.array_equal(before[name], after[name])
    found = done.record["refinement"]
    assert isinstance(found, dict)
    assert found["kept"]


def test_what_stands_in_padding_does_not_count() -> None:
    data = arrays()
    other = {**data, "x": data["x"].copy()}
    for row, length in enumerate(LENGTHS):
        other["x"][row, length:] *= -3
    how = {**HOW, "rank": "3", "refine": True}
    found = [
        onnxdecomp.compress(ir.from_proto(network()), calib=calib, **how).record.get("refinement")
        for calib in (data, other)
    ]
    for one, two in zip(*([*f["blocks"], f] for f in found if isinstance(f, dict)), strict=True):
        assert one["before"] == pytest.approx(two["before"], rel=1e-3)
        assert one["after"] == pytest.approx(two["after"], rel=1e-2)


def test_without_torch_one_line_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "torch" else found(name, *more)
    )
    with pytest.raises(UsageError, match=r"needs torch: pip install 'onnxdecomp\[train\]'"):
        compressed("perceptron")


def test_an_interrupt_leaves_no_file(tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == "refine" and done > 3:
            raise KeyboardInterrupt

    target = tmp_path / "out.onnx"
    model = ir.from_proto(perceptron())
    with pytest.raises(KeyboardInterrupt):
        onnxdecomp.compress(
            model, target, rank="0.4", calib=inputs("perceptron", 40), refine=True, progress=stop, **HOW
        )
    assert not list(tmp_path.iterdir())


def test_memory_bounds_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refinement, "KEPT", 40_000)
    found = compressed("convolutions").record["refinement"]
    assert isinstance(found, dict)
    assert found["samples"] + found["held_out"] < 40


def test_an_operator_that_torch_lacks_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxdecomp.training.autograd import network as reading

    monkeypatch.setattr(reading, "unknown", lambda model: ("Strange",))
    done = compressed("perceptron")
    assert any("Strange" in note for note in done.notes)
    assert "refinement" not in done.record
    assert done.changed


PRODUCTS: dict[str, tuple[onnx.NodeProto, tuple[int, ...], tuple[int, ...]]] = {
    "convolution": (
        node("Conv", "x w", "y", strides=[2, 1], pads=[1, 0, 2, 1], dilations=[1, 2]),
        (2, 3, 7, 8),
        (4, 3, 3, 2),
    ),
    "of one axis": (node("Conv", "x w", "y", pads=[1, 1], strides=[2]), (2, 3, 9), (4, 3, 3)),
    "transposed": (node("Gemm", "x w", "y", transA=1, transB=1), (3, 5), (4, 3)),
    "plain": (node("Gemm", "x w", "y"), (5, 3), (3, 4)),
    "behind": (node("MatMul", "x w", "y"), (2, 5, 3), (3, 4)),
    "before": (node("MatMul", "w x", "y"), (2, 3, 5), (4, 3)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_rows_are_what_a_weight_multiplies(name: str) -> None:
    """Their second moments are those of the outputs for a weight of one output, whatever the layout."""
    operator, x, w = PRODUCTS[name]
    proto = graphs.model([operator], {"x": x}, {"y": None}, {"w": normal(*w)})
    network = Network(ir.from_proto(proto), ["w"])
    given = {"x": torch.from_numpy(normal(*x, seed=3))}
    ((found, rows, axis),) = network.rows(network.nodes, given)
    weight = network.parameters["w"].detach()
    made = rows @ (weight if axis == 0 else weight.reshape(len(weight), -1).T)
    expected = network(given)["y"].detach()
    assert found == "w"
    assert torch.allclose(made.flatten().sort().values, expected.flatten().sort().values, atol=1e-4)


@pytest.mark.parametrize("count", [2, 9, 10, 25])
def test_inputs_are_set_apart_once(count: int) -> None:
    feeds = Feeds(tuple({"x": np.full((1,), k)} for k in range(count)), "here")
    rest, others = feeds.apart(min(10, count))
    values = [[int(feed["x"][0]) for feed in some] for some in (rest, others)]
    assert sorted(values[0] + values[1]) == list(range(count))
    assert [len(rest), len(others)] == [len(own) for own in values]
    assert len(others) == (1 if count < 20 else 2)


@pytest.mark.parametrize(
    ("name", "layers", "ends"),
    [
        ("perceptron", 1, ["r0", "r1", "r2", "y"]),
        ("perceptron", 2, ["r1", "y"]),
        ("convolutions", 2, ["r0", "y"]),
        ("attention", 4, ["n", "y"]),
    ],
)
def test_blocks_end_where_one_value_goes_on(name: str, layers: int, ends: list[str]) -> None:
    model = ir.from_proto(MAKE[name]())
    weights = [name for name in model.graph.initializers if name.startswith("w")]
    for one in model.graph:
        if any(value is not None and value.name in weights for value in one.inputs):
            one.metadata_props[LAYER] = one.name or ""
    found = blocks(model.graph, model.graph, weights, layers)
    assert [block.leaves for block in found] == [(end,) for end in ends]
    assert sorted(name for block in found for name in block.weights) == sorted(weights)
    assert [block.enters for block in found] == [(), *((end,) for end in ends[:-1])]


def test_what_reads_no_more_than_a_shape_does_not_keep_a_block_open() -> None:
    """As masks do that are laid out for an activation."""
    proto = perceptron()
    more = [node("Shape", "r0", "s"), node("Expand", "zero s", "e")]
    nodes = [*list(proto.graph.node)[:2], *more, *list(proto.graph.node)[2:-1]]
    nodes += [node("Add", "r2 e", "t"), node("Gemm", "t w3 b3", "y", name="fc3", transB=1)]
    weights = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    weights["zero"] = np.zeros((1, 16), np.float32)
    model = ir.from_proto(graphs.model(nodes, {"x": ("N", 16)}, {"y": ("N", 16)}, weights))
    wanted = [f"w{k}" for k in range(4)]
    for one in model.graph:
        if one.op_type == "Gemm":
            one.metadata_props[LAYER] = one.name or ""
    assert [block.leaves for block in blocks(model.graph, model.graph, wanted, 2)] == [("r1",), ("y",)]


def test_whole_tables_of_embeddings_stay() -> None:
    nodes = [node("Gather", "table ids", "h", name="words"), node("MatMul", "h w", "y", name="layer")]
    weights = {"table": normal(4096, 4), "w": normal(4, 4)}
    inputs = [graphs.value("ids", ["N", "S"], onnx.TensorProto.INT64)]
    model = ir.from_proto(graphs.model(nodes, inputs, {"y": ("N", "S", 4)}, weights))
    assert list(refinement._tables(model)) == ["table"]
    model.graph[0].metadata_props[LAYER] = "words"
    assert list(refinement._tables(model)) == []


def summed() -> onnx.ModelProto:
    """The sum over all positions, padding among them."""
    nodes = [node("MatMul", "x w", "h", name="layer"), node("ReduceSum", "h axes", "y")]
    inputs = [
        graphs.value("x", ["N", "S", 8]),
        graphs.value("attention_mask", ["N", "S"], onnx.TensorProto.INT64),
    ]
    weights = {"w": normal(8, 6), "axes": np.array([1])}
    return graphs.model(nodes, inputs, {"y": ("N", 1, 6)}, weights)


@pytest.mark.parametrize("cut", [True, False])
def test_padding_is_cut_off_where_the_model_gives_the_same_without_it(cut: bool) -> None:
    model = ir.from_proto(network() if cut else summed())
    run = refinement._Run(Network(model), Network(model), {}, refinement.How(), MASK, None)
    feeds = padded()
    trimming = Trimming.of(model, MASK)
    assert trimming is not None
    run.trim(trimming, feeds)
    assert (run.trimming is not None) == cut
    assert [trimming.length(feed) for feed in feeds] == list(LENGTHS)
    short = trimming.cut(feeds[1], 2)
    assert {name: array.shape for name, array in short.items()} == {"x": (1, 2, 8), "attention_mask": (1, 2)}


def test_a_refined_run_is_without_its_padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Trimming | None] = []

    def spied(*given: Any, **named: Any) -> Any:
        drawn.append(named.get("trimming"))
        return batches(*given, **named)

    monkeypatch.setattr(refinement, "batches", spied)
    file = graphs.saved(network(), tmp_path / "net.onnx")
    how: dict[str, Any] = {"method": "svd", "rank": "3", "must_save": "none", "skip_below": 0.0}
    onnxdecomp.compress(
        file, tmp_path / "new.onnx", calib=arrays(), refine=True, simplify="none", bench=False, **how
    )
    assert drawn[1:]
    assert all(trimming is not None for trimming in drawn[1:])  # the first is one sample, cut before


def test_samples_of_like_lengths_share_a_batch() -> None:
    trimming = Trimming.of(ir.from_proto(network()), MASK)
    found = batches(padded(), 3, 0, stackable=True, trimming=trimming, mask=MASK)
    sizes = [tuple(batch.feed["attention_mask"].shape) for batch in found]
    assert [batch.weight for batch in found] == [int(batch.feed["attention_mask"].sum()) for batch in found]
    assert sum(batch.count for batch in found) == len(LENGTHS)
    assert all(rows * longest <= 3 * sum(LENGTHS) / len(LENGTHS) for rows, longest in sizes)
    assert len(found) < len(LENGTHS)
    real = positions(MASK, {"attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])})
    assert real is not None
    assert real.tolist() == [True, True, False, True, False, False]
